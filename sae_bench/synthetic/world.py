"""A world of known features, as a model that gives activations: x = sum_j a_j d_j + b (arXiv 2602.14687).

A sample is a pure function of its number: samples are drawn in blocks, from random numbers that the block's place
decides, on the device. So a capture gives the same bits wherever it begins, and evaluation can ask for the features
that made a sample.

Shapes: n contexts, S tokens in each; B samples of a block, N features, D width, R rank of the correlations.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_bench.errors import UserError
from sae_bench.lm.activations import StreamOptions
from sae_bench.lm.fingerprint import Identity
from sae_bench.lm.sites import Site
from sae_bench.synthetic.dictionary import feature_directions, generator_for, seed_for
from sae_bench.synthetic.hierarchy import Level, applied, compensated, levels_of
from sae_bench.synthetic.samples import OPENING, SampleStream
from sae_bench.synthetic.settings import BLOCK, NAME, WorldSettings

LEAST_DELTA = 0.01
"""Of a feature's variance at least so much is its own: a row of F that leaves less is shortened."""

DRAWN = 40
"""Floating-point operations that a random number and what is done with it take, about; for plans."""


class World:
    """A synthetic world; an `ActivationModel` with `KnownFeatures`.

    Nothing is computed before it is asked for: a plan needs no numbers. `dtype` is that of the activations.
    """

    revision: str | None = None
    n_layers = 1
    special_ids = frozenset({OPENING})
    no_language_model: str | None = "a synthetic world has no language model to splice into, and no text"

    def __init__(
        self, settings: WorldSettings, name: str, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.settings, self.name, self.device, self.dtype = settings, name, device, dtype
        self.d_model = settings.d_in

    @cached_property
    def features(self) -> Float[Tensor, "N D"]:
        """The features' directions, unit rows."""
        return feature_directions(self.settings, self.device)

    @cached_property
    def bias(self) -> Float[Tensor, " D"]:
        """The bias b."""
        drawn = torch.randn(self.settings.d_in, generator=generator_for("bias", self.settings.seed))
        return (self.settings.bias_norm * torch.nn.functional.normalize(drawn, dim=0)).to(self.device)

    @cached_property
    def frequencies(self) -> Float[Tensor, " N"]:
        """How often features fire, before the hierarchy; about how often, after it, where that is compensated for."""
        s = self.settings
        power = torch.arange(1, s.n_features + 1, dtype=torch.float64) ** -s.exponent
        spread = power[0] - power[-1]
        share = (power - power[-1]) / spread if spread > 0 else torch.ones_like(power)
        return (s.min_probability + (s.max_probability - s.min_probability) * share).float()

    @cached_property
    def drawn_with(self) -> Float[Tensor, " N"]:
        """The probabilities that firing is drawn with."""
        s = self.settings
        if not s.compensated:
            return self.frequencies
        return compensated(self.frequencies.double(), levels_of(s), exclusive=s.exclusive).float()

    @cached_property
    def factor(self) -> Float[Tensor, "N R"]:
        """F of the correlations, z = F eps + sqrt(delta) eta, where z has variance one."""
        s = self.settings
        drawn = torch.randn(s.n_features, s.correlation_rank, generator=generator_for("correlations", s.seed))
        drawn *= s.correlation_scale
        longest = math.sqrt(1 - LEAST_DELTA)
        shortened: Tensor = drawn / (drawn.norm(dim=1, keepdim=True) / longest).clamp(min=1)
        return shortened

    @cached_property
    def magnitudes(self) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Mean and standard deviation of each feature's magnitude, before it is cut off at zero."""
        s = self.settings
        spread = torch.randn(s.n_features, generator=generator_for("deviations", s.seed)) * s.deviation_spread
        mean = torch.linspace(s.first_magnitude, s.last_magnitude, s.n_features)
        return mean.to(self.device), (s.deviation_mean + spread).abs().to(self.device)

    @cached_property
    def _firing(self) -> tuple[Float[Tensor, "R N"], Float[Tensor, " N"], Float[Tensor, " N"], list[Level]]:
        """F transposed, sqrt(delta), the thresholds Phi^-1(1 - p), and the hierarchy's levels, on the device."""
        delta = 1 - self.factor.double().square().sum(1)
        threshold = -torch.special.ndtri(self.drawn_with.double())
        numbers = (self.factor.T.contiguous(), delta.sqrt().float(), threshold.float())
        factor, own, above = (number.to(self.device) for number in numbers)
        return factor, own, above, levels_of(self.settings, self.device)

    @torch.no_grad()
    def block(self, first: int) -> Float[Tensor, "B N"]:
        """Activations of the features in the block whose first sample has this number."""
        s, (mean, deviation) = self.settings, self.magnitudes
        factor, own, above, levels = self._firing
        draws = torch.Generator(self.device).manual_seed(seed_for("block", s.seed, first))

        def normal(n: int) -> Float[Tensor, "B n"]:
            return torch.randn(BLOCK, n, generator=draws, device=self.device)

        fires = firing(normal(len(factor)), normal(s.n_features), factor, own, above)
        a = normal(s.n_features).mul_(deviation).add_(mean).relu_().mul_(fires)
        if not levels:
            return a
        lots = torch.rand(a.shape, generator=draws, device=self.device) if s.exclusive else a
        return applied(a, levels, mean, lots, exclusive=s.exclusive, scaled=s.scaled)

    def truth(self, tokens: Int[Tensor, "n S"]) -> Float[Tensor, "c N"]:
        """Activations of the features at every sample of some whole contexts, in a row."""
        return torch.cat([self.block(first) for first in _blocks(tokens)])

    @torch.no_grad()
    def capture(
        self, tokens: Int[Tensor, "n S"], sites: Iterable[Site], *, check: bool = True
    ) -> dict[Site, Float[Tensor, "n S D"]]:
        """The activations at some whole contexts of samples, zero at the token that opens each; always finite."""
        x = torch.zeros(*tokens.shape, self.d_model, device=self.device, dtype=self.dtype)
        made = [torch.addmm(self.bias, self.block(first), self.features) for first in _blocks(tokens)]
        x[:, 1:] = torch.cat(made).view(len(tokens), -1, self.d_model).to(self.dtype)
        return dict.fromkeys(sites, x)

    def find_sites(self, kinds: Sequence[str], layers: Sequence[int]) -> list[Site]:
        """The one site that there is.

        Raises:
            UserError: another is asked for.
        """
        if layers:
            raise UserError(f"--layer {' '.join(map(str, layers))}: {self.name} has no layers: leave out --layer")
        for kind in kinds:
            if kind != NAME:
                raise UserError(f'--site {kind}: {self.name} has one site, "{NAME}": leave out --site')
        return [Site(0, NAME, NAME, "output", self.d_model)]

    def stream(self, source: str, **options: Unpack[StreamOptions]) -> SampleStream:
        """Samples of one side."""
        return SampleStream(
            self.name,
            split=options["split"],
            context_size=options["context_size"],
            n_tokens=options["n_tokens"],
            skip_tokens=options["skip_tokens"],
            part=options.get("part"),
        )

    def weight_hash(self) -> str:
        """sha256 (hex) over the settings, everything that was drawn from them, and what fires in the first block."""
        return self._weight_hash

    def identity(self) -> Identity:
        """All of it is in the one hash."""
        return {"world": self._weight_hash}

    @cached_property
    def _weight_hash(self) -> str:
        digest = hashlib.sha256(self.settings.model_dump_json().encode())
        drawn = (self.features, self.bias, self.drawn_with, self.factor, *self.magnitudes)
        for numbers in (*drawn, self.block(0) > 0):
            digest.update(numbers.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def tokenizer_hash(self) -> None:
        """There is no tokenizer."""

    @property
    def precision(self) -> str:
        """What records say of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def n_bytes(self) -> int:
        """Size of what it is made of."""
        s = self.settings
        return 4 * (s.n_features * (s.d_in + s.correlation_rank + 5) + s.d_in)

    def token_flops(self, context_size: int) -> float:
        """Floating-point operations of one sample, about."""
        s = self.settings
        return s.n_features * (2 * (s.d_in + s.correlation_rank) + 3 * DRAWN)


def firing(
    eps: Float[Tensor, "B R"],
    eta: Float[Tensor, "B N"],
    factor: Float[Tensor, "R N"],
    own: Float[Tensor, " N"],
    above: Float[Tensor, " N"],
) -> Bool[Tensor, "B N"]:
    """Which features fire, before the hierarchy: where z = F eps + sqrt(delta) eta exceeds its threshold.

    `own` is sqrt(delta); `eta` is overwritten.
    """
    return eta.mul_(own).addmm_(eps, factor) > above


def _blocks(tokens: Int[Tensor, "n S"]) -> list[int]:
    """The numbers of the first samples of the blocks in some whole contexts."""
    firsts: list[int] = tokens[:, 1::BLOCK].flatten().tolist()
    return firsts
