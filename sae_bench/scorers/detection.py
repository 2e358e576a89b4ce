"""Detection (Paulo et al. 2024): does an excerpt contain what the explanation says?

Excerpts from every decile of activation against excerpts in which the latent is known to be silent; balanced accuracy.
"""

import json
from collections.abc import Sequence

from sae_bench.answers import booleans, read_json
from sae_bench.judge import Answer
from sae_bench.prompt import identifiers
from sae_bench.scorers.base import Question, Scorer, Verdict, View, balanced_accuracy, object_schema, portions

PER_QUESTION = 10


class Detection(Scorer):
    name = "detection"

    def questions(self, view: View, explanation: str) -> list[Question]:
        active, silent = view.scoring("decile"), view.scoring("silent", "hard")
        if not active or not silent:
            return []
        return [
            self._question(view, explanation, numbers)
            for numbers in portions([*active, *silent], PER_QUESTION, view.draw(self.name))
        ]

    def _question(self, view: View, explanation: str, numbers: list[int]) -> Question:
        texts = [view.excerpts[i].text for i in numbers]
        names = identifiers(texts)
        return Question(
            messages=self.prompt.messages(
                {"explanation": explanation, "excerpts": dict(zip(names, texts, strict=True))},
                count=len(names),
                example=json.dumps({name: i % 3 == 0 for i, name in enumerate(names)}),
            ),
            schema=object_schema({name: {"type": "boolean"} for name in names}),
            max_tokens=32 + 16 * len(names),
            read=lambda text: read_json(text, booleans(names)),
            excerpts=numbers,
            truth=[view.excerpts[i].kind == "decile" for i in numbers],
        )

    def mark(self, questions: Sequence[Question], answers: Sequence[Answer]) -> Verdict:
        return balanced_accuracy(questions, answers)
