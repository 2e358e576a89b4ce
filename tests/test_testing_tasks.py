"""The contract of tasks: every built-in passes it, and each way of breaking it is called by its name."""

from typing import Any

import pytest
import torch

from sae_bench import (
    TASKS,
    LatentTask,
    Metric,
    Result,
    Score,
    Task,
    active_per_token,
)
from sae_bench.evaluation.task import BaseTask, default_tasks
from sae_bench.testing import check_task

pytestmark = pytest.mark.usefixtures("own_plugins_of_a_test")


@pytest.mark.parametrize("name", default_tasks())  # those with text of their own are checked where their text is
def test_every_task_passes(name: str) -> None:
    check_task(name)


Reconstruction: Any = TASKS["reconstruction"]


class MissingScore(Reconstruction):
    def finish(self):
        found = super().finish()
        return Result({name: score for name, score in found.scores.items() if name != "l0"})


class NotANumber(Reconstruction):
    def finish(self):
        found = super().finish()
        return Result(found.scores | {"l0": Score(float("nan"), None, 5)})


class SilentlyUndefined(Reconstruction):
    def finish(self):
        found = super().finish()
        return Result(found.scores | {"l0": Score(None, None, 5)})


class MeanOfBatches(Task):
    """Averages over batches instead of tokens."""

    version = "1"
    metrics = (Metric("l0", None, "latents", "mean number of active latents"),)

    def start(self, setting):
        self.means = []

    def update(self, batch):
        self.means.append(active_per_token(batch.f).float().mean().item())

    def finish(self):
        return Result({"l0": Score(sum(self.means) / len(self.means), None, 70)})


class SharedState(MeanOfBatches):
    """All instances add to one list; a batch weighs what its tokens do."""

    tokens: list = []  # noqa: RUF012

    def start(self, setting):
        pass

    def update(self, batch):
        self.tokens.extend(active_per_token(batch.f).tolist())

    def finish(self):
        return Result({"l0": Score(sum(self.tokens) / len(self.tokens), None, len(self.tokens))})


class CountsPadding(Reconstruction):
    """Takes whatever stands among the values for an active latent."""

    def update(self, batch):
        super().update(batch)
        self.sums._sums["active"] *= batch.f.values.numel() / len(batch.f.pairs()[0])


class NotJSON(Reconstruction):
    def finish(self):
        return Result(super().finish().scores, details={"edges": torch.zeros(2)})


class WrongLength(Reconstruction):
    def finish(self):
        return Result(super().finish().scores, per_latent={"count": [1, 2]})


class Unversioned(Task):
    metrics = MeanOfBatches.metrics
    start = update = finish = MeanOfBatches.finish


class MeanOfScores(LatentTask):
    """Sound: the mean over the latents that the first scorer has scored."""

    version = "1"
    metrics = (Metric("mean", "up", "", "mean score"),)

    def __init__(self, scorers):
        super().__init__(scorers)
        self.values = []

    def update(self, latent):
        self.values.append(latent.scores[self.scorers[0].name])

    def finish(self):
        found = [value for value in self.values if value is not None]
        if not found:
            return Result({"mean": Score(None, None, 0, note="nothing scored")})
        return Result({"mean": Score(sum(found) / len(found), None, len(found))})


class NothingIsNaN(MeanOfScores):
    def finish(self):
        found = [value for value in self.values if value is not None] or [float("nan")]
        return Result({"mean": Score(sum(found) / len(found), None, len(found))})


class LastLatent(MeanOfScores):
    def finish(self):
        return Result({"mean": Score(self.values[-1] or 0.0 if self.values else 0.0, None, 1)})


class SharedLatents(MeanOfScores):
    values: list = []  # noqa: RUF012

    def __init__(self, scorers):
        self.scorers = scorers


class NoMetrics(MeanOfScores):
    metrics = ()


class NeitherKind(BaseTask):
    version, metrics = "1", MeanOfScores.metrics
    finish = MeanOfScores.finish


def test_a_sound_task_about_latents_passes() -> None:
    TASKS.register("under_test")(MeanOfScores)
    check_task("under_test")


BROKEN_TASKS = {
    MissingScore: "lacks {'l0'}",
    NotANumber: "what cannot be had is None",
    SilentlyUndefined: "None without a note",
    MeanOfBatches: "serving 2 batches turns l0's value",
    SharedState: "turns l0's",
    CountsPadding: "stored as a matrix turns l0's value",
    NotJSON: "no JSON",
    WrongLength: "2 values instead of 24",
    Unversioned: "declares no version",
    NothingIsNaN: "what cannot be had is None",
    LastLatent: "another order of latents turns mean's value",
    SharedLatents: "turns mean's",
    NoMetrics: "declares no metrics",
    NeitherKind: "neither a Task nor a LatentTask nor a TextTask",
}


@pytest.mark.parametrize(("broken", "message"), BROKEN_TASKS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_task_is_told_what_is_wrong(broken: type, message: str) -> None:
    TASKS.register("under_test")(broken)
    with pytest.raises(AssertionError, match=f'(?s)task "under_test".*{message}'):
        check_task("under_test")
