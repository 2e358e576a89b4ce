"""The contract of architectures: every built-in passes it, and each way of breaking it is called by its name."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from sae_bench import (
    ARCHITECTURES,
    Loss,
    SparseAutoencoder,
    active_per_token,
)
from sae_bench.testing import check_architecture

pytestmark = pytest.mark.usefixtures("own_plugins_of_a_test")

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


ReLU: Any = ARCHITECTURES["relu"]
JumpReLU: Any = ARCHITECTURES["jumprelu"]
ByBatch: Any = ARCHITECTURES["batchtopk"]


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
