"""The contract: every built-in passes it, and each way of breaking it is called by its name."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from sae_bench import (
    ARCHITECTURES,
    TASKS,
    LatentTask,
    Loss,
    Metric,
    Result,
    Score,
    SparseAutoencoder,
    Task,
    active_per_token,
)
from sae_bench.evaluation.task import BaseTask, default_tasks
from sae_bench.testing import check_architecture, check_task

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ARCHITECTURES),
    ("gated", {"penalty": "ri_l1"}),
    ("jumprelu", {"theta_init": "quantile"}),
    ("jumprelu", {"train_log_theta": False}),
    ("jumprelu", {"theta_init": "quantile", "train_log_theta": False, "bandwidth": 0.1}),
    ("topk", {"k_aux": 2}),
    ("batchtopk", {"threshold_start": 0.0}),
    ("matryoshka", {"group_shares": (0.5,)}),
    ("p_anneal", {"anneal_start": 0.0, "n_levels": 3}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_every_architecture_passes(name: str, options: dict[str, Any]) -> None:
    check_architecture(name, **options)


@pytest.mark.parametrize("name", default_tasks())  # those with text of their own are checked where their text is
def test_every_task_passes(name: str) -> None:
    check_task(name)


@pytest.fixture(autouse=True)
def _classes_under_test_are_forgotten() -> Iterator[None]:
    yield
    for registry in (ARCHITECTURES, TASKS):
        registry._classes.pop("under_test", None)


ReLU: Any = ARCHITECTURES["relu"]
JumpReLU: Any = ARCHITECTURES["jumprelu"]
ByBatch: Any = ARCHITECTURES["batchtopk"]
Reconstruction: Any = TASKS["reconstruction"]


class Dense(SparseAutoencoder):
    """ReLU with plain tensors and an unweighted L1 penalty; decoder rows of norm one."""

    def encode(self, x):
        x = x if self.folded else x - self.b_dec
        return torch.relu(x @ self.W_enc + self.b_enc)

    def loss(self, x, step):
        f = self.encode(x)
        x_hat = self.decode(f)
        return Loss((x - x_hat).square().sum(1).mean() + step.coefficient * f.sum(1).mean(), x_hat, f)


def test_an_architecture_may_be_written_densely() -> None:
    ARCHITECTURES.register("under_test")(Dense)
    check_architecture("under_test")


class Unseeded(ReLU):
    def __init__(self, config):
        super().__init__(config)
        self.W_dec.data = torch.randn(config.d_sae, config.d_in)


class OwnStart(ReLU):
    def __init__(self, config):
        super().__init__(config)
        self.W_dec.data = self.W_dec.data.flip(0)


class SharedMemory(ReLU):
    def __init__(self, config):
        super().__init__(config)
        self.W_enc = nn.Parameter(self.W_dec.data.T)


class HalfPrecision(JumpReLU):
    def __init__(self, config):
        super().__init__(config)
        self.theta_parameter.data = self.theta_parameter.data.bfloat16()


class NegativeLatents(ReLU):
    def encode(self, x):
        return self.select(x, keep=lambda z: z < 0)


class BatchTopK(ReLU):
    """Selects over the batch, at inference too."""

    def encode(self, x):
        return self.select(x, keep=lambda z: (z > 0) & (z >= z.flatten().topk(2 * len(z)).values[-1]))


class OtherLatents(ReLU):
    """Trains on other latents than it infers with."""

    def loss(self, x, step):
        loss = super().loss(x, step)
        return Loss(loss.total, loss.x_hat, loss.latents.with_values(2 * loss.latents.values))


class NoEncoderGradient(ReLU):
    def loss(self, x, step):
        f = self.encode(x)
        x_hat = self.decode(f.with_values(f.values.detach()))
        return Loss((x - x_hat).square().sum(1).mean(), x_hat, f)


class UnboundedLoss(ReLU):
    """Divides by the number of active latents, of which there may be none."""

    def loss(self, x, step):
        loss = super().loss(x, step)
        return Loss(loss.total / active_per_token(loss.latents).sum(), loss.x_hat, loss.latents)


class DriftingDecoder(ReLU):
    """Says that its rows are of norm one, and undoes it."""

    unit_norm_decoder = True

    def after_step(self, step):
        self.W_dec.mul_(1.5)


class UnfoldedThreshold(JumpReLU):
    def biases(self):
        return [self.b_enc]


class ForgottenState(ReLU):
    """Keeps a number outside of parameters and configuration."""

    def __init__(self, config):
        super().__init__(config)
        self.gain = 1.0

    def initialise(self, x):
        self.gain = 1.25

    def encode(self, x):
        f = super().encode(x)
        return f.with_values(self.gain * f.values)


class UntoldParts(ByBatch):
    """Its rule over a batch is one over a part where memory is short."""

    def survey(self, parts):
        return None


class UnsaidRule(ByBatch):
    """Does not say that training keeps others than `encode`."""

    selects_by_batch = False


class OtherExport(ReLU):
    """Goes into other tools' files as something else."""

    def as_built_in(self):
        other = copy.deepcopy(self)
        other.b_dec.data.add_(1.0)
        return other


class OtherNonlinearity(ReLU):
    """Says that it is a relu, and is one and a half."""

    nonlinearity = "relu"

    def encode(self, x):
        f = super().encode(x)
        return f.with_values(1.5 * f.values, zero_at_zero=True)


class UnknownRecipe(ReLU):
    recipes = {"short": {"learning_rate": 0.1}}  # noqa: RUF012


class LooseOptions(ReLU):
    class options_type(ReLU.options_type):
        model_config = {"extra": "ignore"}  # noqa: RUF012


class RefusesAll(ReLU):
    @classmethod
    def check(cls, config):
        raise ValueError("never")


BROKEN_ARCHITECTURES = {
    Unseeded: "one seed gives two different SAEs",
    OwnStart: "does not start at `initial_decoder`",
    SharedMemory: "two parameters share memory",
    HalfPrecision: "not float32",
    NegativeLatents: "negative latents",
    BatchTopK: "depend on the rest of its batch",
    OtherLatents: "Loss.latents are not what encode returns",
    NoEncoderGradient: "no gradient reaches W_enc",
    UnboundedLoss: "not a finite scalar",
    DriftingDecoder: "not of norm one after training",
    UnfoldedThreshold: "after fold.C., x_hat",
    ForgottenState: "a loaded SAE is not the saved one",
    UntoldParts: "the loss of a batch is not the mean of its parts'",
    UnsaidRule: "set selects_by_batch = True",
    OtherExport: "as_built_in gives an SAE that computes something else",
    OtherNonlinearity: "or nonlinearity is not what it computes",
    UnknownRecipe: "learning_rate",
    LooseOptions: "misspelt names",
    RefusesAll: "refuses every configuration",
}


@pytest.mark.parametrize(
    ("broken", "message"), BROKEN_ARCHITECTURES.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_a_broken_architecture_is_told_what_is_wrong(broken: type, message: str) -> None:
    ARCHITECTURES.register("under_test")(broken)
    with pytest.raises(AssertionError, match=f'(?s)architecture "under_test".*{message}'):
        check_architecture("under_test")


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
