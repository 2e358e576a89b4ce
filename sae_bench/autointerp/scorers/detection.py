"""Detection (Paulo et al. 2024): does an excerpt contain what the explanation says?

Excerpts from every decile of activation against excerpts in which the latent is known to be silent; balanced accuracy.
"""

from collections.abc import Sequence

from sae_bench.autointerp.client import Answer
from sae_bench.autointerp.scorers.base import Question, Scorer, Verdict, View, balanced_accuracy, portions, yes_or_no


class Detection(Scorer):
    name = "detection"

    def questions(self, view: View, explanation: str, at_most: int) -> list[Question]:
        active, silent = view.scoring("decile"), view.scoring("silent", "hard")
        if not active or not silent:
            return []
        return [
            self._question(view, explanation, numbers)
            for numbers in portions([*active, *silent], at_most, view.draw(self.name))
        ]

    def _question(self, view: View, explanation: str, numbers: list[int]) -> Question:
        texts = [view.excerpts[i].text for i in numbers]
        return yes_or_no(self.prompt, explanation, texts, numbers, [view.excerpts[i].kind == "decile" for i in numbers])

    def mark(self, questions: Sequence[Question], answers: Sequence[Answer]) -> Verdict:
        return balanced_accuracy(questions, answers)
