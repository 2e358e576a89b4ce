"""How well a language model can explain single latents: automated interpretability."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_bench import JudgedLatent, LatentTask, Metric, Result, Score, mean_stderr, register_task


@register_task("autointerp")
class AutoInterp(LatentTask):
    """Mean score of a seeded sample of latents that fire (docs/autointerp.md).

    For each of them an explainer sees excerpts in which it fires and says in a sentence what they share. A judge then
    sees that sentence and excerpts that the explainer has not seen, and each scorer asks it something that only a true
    explanation can answer. The latent's score is what the answers come to; the SAE's is the mean over latents, with the
    standard error over latents, which are the units here. A latent without a score enters no mean: the record counts
    these, and every answer that was refused, unreadable or never came.
    """

    version = "1"

    def __init__(self, scorers: Sequence[Metric]) -> None:
        super().__init__(scorers)
        self.metrics = scorers
        self.latents: list[JudgedLatent] = []

    def update(self, latent: JudgedLatent) -> None:
        self.latents.append(latent)

    def finish(self) -> Result:
        names = [metric.name for metric in self.metrics]
        details: dict[str, Any] = {
            "latents": [latent.latent for latent in self.latents],
            "values": {name: [latent.scores.get(name) for latent in self.latents] for name in names},
            "unscored": {name: dict(Counter(self._notes(name))) for name in names},
            "failures": dict(sum((Counter(latent.failures) for latent in self.latents), Counter())),
        }
        scores = {name: self._mean(name) for name in names}
        details["interval_95"] = {
            name: [score.value - 1.96 * score.stderr, score.value + 1.96 * score.stderr]
            for name, score in scores.items()
            if score.value is not None and score.stderr is not None
        }
        return Result(scores, details=details)

    def _notes(self, name: str) -> list[str]:
        return [latent.notes[name] for latent in self.latents if name in latent.notes]

    def _mean(self, name: str) -> Score:
        if not self.latents:
            return Score(None, None, 0, note="no judge")
        found = [latent.scores.get(name) for latent in self.latents]
        values = np.array([value for value in found if value is not None and math.isfinite(value)], dtype=float)
        if not len(values):
            reasons = ", ".join(f"{note} ({n})" for note, n in Counter(self._notes(name)).most_common())
            return Score(None, None, len(found), note=f"undefined for all {len(found)} latents: {reasons}")
        return Score(float(values.mean()), mean_stderr(values), len(values))
