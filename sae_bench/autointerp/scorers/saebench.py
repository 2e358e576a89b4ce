"""SAEBench's detection, for comparison with its numbers: which of 14 excerpts contain the latent? Plain accuracy.

2 top excerpts, 2 drawn by their activation and 10 silent ones. Naming none of them scores 10/14 = .714, so that number
is its floor. Ours differs in one thing: SAEBench takes random excerpts for silent, here they are known to be.
"""

from collections.abc import Sequence

from sae_bench.autointerp.client import Answer
from sae_bench.autointerp.parse import read_json, subset
from sae_bench.autointerp.prompt import identifiers
from sae_bench.autointerp.scorers.base import TOO_FEW, Question, Scorer, Verdict, View, count_answers, object_schema

N_TOP, N_WEIGHTED, N_SILENT = 2, 2, 10


class SAEBenchDetection(Scorer):
    name = "saebench_detection"

    def questions(self, view: View, explanation: str, at_most: int) -> list[Question]:
        draw = view.draw(self.name)
        top, deciles, silent = (view.scoring(kind) for kind in ("top", "decile", "silent"))
        weighted: list[int] = []
        while len(weighted) < N_WEIGHTED and (left := [i for i in deciles if i not in weighted]):
            weighted += draw.choices(left, [view.excerpts[i].peak for i in left])
        if len(top) < N_TOP or len(weighted) < N_WEIGHTED or len(silent) < N_SILENT:
            return []
        numbers = [*top[:N_TOP], *weighted, *draw.sample(silent, N_SILENT)]
        draw.shuffle(numbers)
        texts = [view.excerpts[i].text for i in numbers]
        names = identifiers(texts)
        return [
            Question(
                messages=self.prompt.messages(
                    {"explanation": explanation, "excerpts": dict(zip(names, texts, strict=True))}, count=len(names)
                ),
                schema=object_schema({"active": {"type": "array", "items": {"type": "string", "enum": names}}}),
                max_tokens=32 + 10 * len(names),
                read=lambda text: read_json(text, subset(names)),
                excerpts=numbers,
                truth=[view.excerpts[i].kind != "silent" for i in numbers],
            )
        ]

    def mark(self, questions: Sequence[Question], answers: Sequence[Answer]) -> Verdict:
        if not questions:
            return TOO_FEW
        counts = count_answers(questions, answers)
        n = len(questions[0].truth) - counts["unanswered"]
        if not n:
            return Verdict(None, 0, counts, "no answer")
        return Verdict((counts["true_positive"] + counts["true_negative"]) / n, n, counts)
