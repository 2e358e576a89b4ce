"""What every sparse autoencoder is: four weights, a selection rule, a loss, and a way to be saved.

An architecture subclasses `SparseAutoencoder`, writes `encode` and `loss` (and `initialise`, `after_step`, `fold` where
it has more than the four weights) and registers itself. It never sees the language model, the trainer or a task.

What an average over batches or the like needs is a buffer: it is in checkpoints and in no file of a finished SAE.

Life of an SAE: built from an `SAEConfig` -> `initialise` on a sample of scaled activations -> trained on scaled
activations, E||x||^2 = 1 -> `after_training` -> `fold(scale)` once, after which it takes raw activations -> saved,
loaded, evaluated. A parameter that learns nothing is frozen by `requires_grad_(False)`.

Shapes: B tokens, D = d_in, F = d_sae.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sae_bench.errors import UserError
from sae_bench.saes.active import Active, KeepRule, Latents, as_active, decode, latent_major, select_all
from sae_bench.saes.knobs import Knob
from sae_bench.saes.rules import LargestOfBatch
from sae_bench.saes.step import Loss, Step

START_OVER = 1.5
"""L0, as a multiple of the wanted one, that an SAE starts at where initial values are quantiles of the data."""

START_DENSITY = 0.02
"""Share of latents active at such a start where no L0 is wanted."""

SparsityControl = Literal["k", "target", "coefficient"]
"""How an architecture reaches a wanted L0: by construction, by a penalty on the distance to it, by its coefficient."""

Nonlinearity = Literal["relu", "jumprelu", "topk", "gated", "abs_topk", "matching_pursuit"]
"""What makes f of z = x W_enc + b_enc, in terms that the field shares; each is also a built-in architecture.

    relu        f = ReLU(z)
    jumprelu    f = z H(z - threshold), threshold [F] >= 0
    topk        f = ReLU(z) on the `config.sparsity` largest z of a token
    gated       f = H(x W_enc + b_gate) ReLU(exp(r_mag) x W_enc + b_mag), without b_enc
    abs_topk    f = z on the `config.sparsity` largest |z| of a token: f < 0 is active too
    matching_pursuit    W_dec, of rows d_j of norm one, and b_dec alone: r = x - b_dec, f = 0, and `config.sparsity`
                times: j = argmax_i ReLU(r . d_i), v = ReLU(r . d_j), f_j += v, r -= v d_j
"""


class Options(BaseModel):
    """The hyperparameters of an architecture; a subclass names its own. Unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SAEConfig(BaseModel):
    """What an SAE is made from. Exactly one of `l0` (wanted L0) and `coefficient` (raw, or k) is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_in: int = Field(gt=0)
    d_sae: int = Field(gt=0)
    l0: float | None = Field(default=None, gt=0)
    coefficient: float | None = Field(default=None, ge=0)
    seed: int = 0
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """The number that sets the sparsity, whichever kind it is.

        Raises:
            UserError: neither is known, as of some SAEs from elsewhere.
        """
        wanted = self.l0 if self.l0 is not None else self.coefficient
        if wanted is None:
            raise UserError("neither l0 nor coefficient of the SAE is known, and its architecture asks for one of them")
        return wanted


class SparseAutoencoder(nn.Module, ABC):
    """Base of all architectures: x_hat = f W_dec + b_dec, float32 always.

    The encoder sees x - b_dec when `pre_encoder_bias`; decoder rows are held at norm one when `unit_norm_decoder`.
    """

    name: ClassVar[str]
    """Short name, set by registration."""
    version: ClassVar[str] = "1"
    """Raised when a change alters what the architecture learns."""
    is_control: ClassVar[bool] = False
    """Whether it shows what no learning, or less of it, reaches: `--controls` adds it, boards show it apart."""
    is_trained: ClassVar[bool] = True
    """Whether steps change it; where they do not, `initialise` makes it what it is, and no step is taken."""
    options_type: ClassVar[type[Options]] = Options
    options: Options
    nonlinearity: ClassVar[Nonlinearity | None] = None
    """What f is of x once folded, if it is one of these; inherited unless a class has its own `encode` or `decode`."""
    stored_names: ClassVar[dict[str, str]] = {}
    """What files call a parameter, where it is not the attribute's name: the names of `Nonlinearity`."""
    signed: ClassVar[bool] = False
    """Whether f may be below zero, which is active as well."""
    tied: ClassVar[bool] = False
    """Whether W_dec is all that it encodes with, and there are no W_enc and b_enc; it then always sees x - b_dec."""
    selects_by_batch: ClassVar[bool] = False
    """Whether training keeps latents by a rule over the batch, so that a loss's are not those of `encode`."""
    recipes: ClassVar[dict[str, dict[str, Any]]] = {}
    """Per preset, the recipe fields in which this architecture departs from the shared ones."""
    knobs: ClassVar[dict[str, Knob]] = {}
    """What `tune` looks for besides the learning rate: options and fields of the recipe, at most three."""
    tuned_as: ClassVar[str | None] = None
    """The architecture whose tuned settings it takes, where they cannot be its own."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if {"encode", "decode"} & vars(cls).keys() and "nonlinearity" not in vars(cls):
            cls.nonlinearity = None  # what it inherits may no longer be so

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        self.options = self.options_type(**config.options)
        W_dec = initial_decoder(config.d_in, config.d_sae, config.seed)
        self.W_dec = nn.Parameter(W_dec)
        if not self.tied:
            self.W_enc = nn.Parameter(latent_major(W_dec.T))
            self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.folded = False

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        """Raise ValueError, with the remedy, for a configuration that this architecture cannot be built from."""

    @classmethod
    def departures(cls, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What a preset's shared recipe is changed in, and the options, where a user's own `settings` leave it open."""
        return cls.recipes.get(preset, {})

    # --- what an architecture says -----------------------------------------------------------------------------

    @abstractmethod
    def encode(self, x: Float[Tensor, "B D"]) -> Latents:
        """Latents' activations f."""

    @abstractmethod
    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        """The training loss, summed over dimensions and averaged over tokens."""

    @property
    def control(self) -> SparsityControl:
        """How it reaches the wanted L0."""
        return "coefficient"

    @property
    def pre_encoder_bias(self) -> bool:
        """Whether the encoder sees x - b_dec; never once folded."""
        return not self.folded

    @property
    def unit_norm_decoder(self) -> bool:
        return True

    def survey(self, parts: Sequence[Tensor]) -> Sequence[Any] | None:
        """What the loss of each part, [b, D], must know of the whole batch, where memory forces a batch into parts.

        The parts' losses are averaged over their tokens. That is the loss of the whole where it is a mean over tokens,
        each looked at alone: then None. Otherwise each part's loss finds what is said here in `Step.survey`.
        """
        return None

    def initialise(self, x: Float[Tensor, "B D"]) -> None:
        """Set data-dependent starting values from a sample of scaled activations; b_dec is set already."""

    def after_step(self, step: Step) -> None:
        """Project parameters onto their constraints, after the optimiser's step and the decoder's renormalisation."""

    def after_training(self) -> None:
        """What happens once, after the last step and before `fold`."""

    def biases(self) -> list[Float[Tensor, " F"]]:
        """The per-latent parameters on the scale of the pre-activations: b_enc, and thresholds where there are any."""
        return [] if self.tied else [self.b_enc]

    def shift_biases(self, shift: Float[Tensor, " F"]) -> None:
        """Take the pre-encoder bias's contribution, shift = b_dec W_enc, out of the encoder's biases; for `fold`."""
        self.b_enc.sub_(shift)

    def as_built_in(self) -> "SparseAutoencoder | None":
        """For an architecture of your own, whose parameters need work: a built-in one's SAE that computes the same.

        Called once folded. Where `nonlinearity` and `stored_names` say it all, leave it; None: there is none such.
        """
        return None

    @property
    def starting_density(self) -> float:
        """Share of the tokens that a latent fires on where initial biases or thresholds are quantiles of the data."""
        wanted = START_OVER * self.config.l0 / self.config.d_sae if self.config.l0 is not None else START_DENSITY
        return min(wanted, 0.5)

    # --- what every architecture gets --------------------------------------------------------------------------

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Reconstruct x."""
        return self.decode(self.encode(x))

    def select(self, x: Float[Tensor, "B D"], keep: KeepRule) -> Active:
        """Pre-activations z = (x - b_dec) W_enc + b_enc on the pairs that `keep` selects (folded: of x itself)."""
        return self.select_all(x, (keep,))[0]

    def select_all(self, x: Float[Tensor, "B D"], keeps: Sequence[KeepRule]) -> tuple[Active, ...]:
        """One active set for each rule, from one encoder product."""
        return select_all(x, self.W_enc, self.b_enc, keeps, self.b_dec if self.pre_encoder_bias else None)

    def split(self, rule: LargestOfBatch, parts: Sequence[Tensor]) -> list[LargestOfBatch]:
        """What a rule over a whole batch is for each of its parts, [b, D]; for `survey`."""
        return rule.split([self.select(part, rule).pairs()[2] for part in parts])

    def decode(self, f: Latents) -> Float[Tensor, "B D"]:
        """x_hat = f W_dec + b_dec."""
        return decode(as_active(f), self.W_dec, self.b_dec)

    def stored(self) -> dict[str, Tensor]:
        """The parameters, by the names that files know."""
        return {self.stored_names.get(name, name): value.detach() for name, value in self.named_parameters()}

    def load_stored(self, tensors: Mapping[str, Tensor], *, assign: bool = False) -> "SparseAutoencoder":
        """Take over what `stored` of a folded SAE has given; `assign`: these very tensors.

        Raises:
            RuntimeError: names or shapes differ.
        """
        names = {stored: name for name, stored in self.stored_names.items()}
        self._end_training()
        self.load_state_dict({names.get(name, name): value for name, value in tensors.items()}, assign=assign)
        return self.requires_grad_(False)

    def _end_training(self) -> None:
        """From now on it is folded, and its parameters are all that it is: buffers are training's."""
        self.folded = True
        for name, _ in list(self.named_buffers()):
            setattr(self, name, None)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from each decoder row's gradient the part along the row, which would only change its norm."""
        grad = self.W_dec.grad
        assert grad is not None
        along = torch.linalg.vecdot(grad, self.W_dec)
        grad.addcmul_(self.W_dec, along[:, None], value=-1.0)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Bring decoder rows back to norm one."""
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True))

    @torch.no_grad()
    def fold(self, scale: float) -> "SparseAutoencoder":
        """Absorb the input scale C, the pre-encoder bias and the decoder's norms: afterwards it takes raw x.

        f' = C ||W_dec,i|| f and x_hat' = C x_hat on raw x.
        """
        assert not self.folded, "an SAE is folded once"
        if self.pre_encoder_bias and not self.tied:
            self.shift_biases(self.b_dec @ self.W_enc)
        self._end_training()
        for bias in (self.b_dec, *self.biases()):
            bias.mul_(scale)
        if not self.unit_norm_decoder:
            norms = torch.linalg.vector_norm(self.W_dec, dim=1)
            self.W_dec.div_(norms[:, None])
            for per_latent in (self.W_enc, *self.biases()):
                per_latent.mul_(norms)
        return self


def initial_decoder(d_in: int, d_sae: int, seed: int) -> Float[Tensor, "F D"]:
    """He-uniform rows brought to norm one; the same for every architecture with this shape and seed."""
    W_dec = torch.empty(d_sae, d_in)
    generator = torch.Generator().manual_seed(seed)
    bound = math.sqrt(6.0 / d_in)
    W_dec.uniform_(-bound, bound, generator=generator)
    return nn.functional.normalize(W_dec, dim=1)


def upper_quantile(
    x: Float[Tensor, "B D"], W_enc: Float[Tensor, "D F"], share: float, latents_at_once: int = 4096
) -> Float[Tensor, " F"]:
    """Per latent, the value of x W_enc that the given share of the tokens exceeds."""
    n_above = max(1, round(share * len(x)))
    blocks = W_enc.split(latents_at_once, dim=1)
    return torch.cat([(x @ block).topk(n_above, dim=0, sorted=False).values.amin(0) for block in blocks])


def active_per_token(f: Latents) -> Int[Tensor, " B"]:
    """How many latents are active on each token: its L0."""
    return as_active(f).active_per_token()


def reconstruction_loss(x: Float[Tensor, "B D"], x_hat: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """||x - x_hat||^2, summed over dimensions and averaged over tokens."""
    return (x - x_hat).square().sum(1).mean()
