"""An SAE as its users have it: raw activations in, activations of latents out, in tensors of any leading shape.

Shapes: ... any leading dimensions, D = d_in, F = d_sae.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.errors import UserError, did_you_mean
from sae_bench.registry import ARCHITECTURES
from sae_bench.saes.active import Active, as_active
from sae_bench.saes.base import SAEConfig, SparseAutoencoder
from sae_bench.saes.convert import assemble


@dataclass(frozen=True)
class SAE:
    """A trained sparse autoencoder on raw activations, and where in which language model it reads, if that is known."""

    autoencoder: SparseAutoencoder
    site: str | None = None
    """The kind of the site: resid_post, mlp_out, path:MODULE."""
    layer: int | None = None
    model: str | None = None

    @classmethod
    def of_weights(
        cls,
        arch: str,
        weights: Mapping[str, Tensor],
        *,
        k: float | None = None,
        options: Mapping[str, Any] | None = None,
        site: str | None = None,
        layer: int | None = None,
    ) -> "SAE":
        """One around tensors of your own: W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D], jumprelu's threshold [F].

        It takes raw x: what is subtracted from it or divides it must be folded into the weights before. `k` is that of
        topk and its kin.

        Raises:
            UserError: there is no such architecture, or it has other tensors.
        """
        if arch not in ARCHITECTURES:
            raise UserError(f'unknown architecture "{arch}"{did_you_mean(arch, ARCHITECTURES)}')
        if "W_dec" not in weights or weights["W_dec"].ndim != 2:
            raise UserError("weights: W_dec, of shape [d_sae, d_in], is missing")
        d_sae, d_in = weights["W_dec"].shape
        config = SAEConfig(d_in=d_in, d_sae=d_sae, coefficient=k, options=dict(options or {}))
        tensors = {name: value.detach().float() for name, value in weights.items()}
        return cls(assemble(arch, config, tensors), site, layer)

    @property
    def arch(self) -> str:
        return self.autoencoder.name

    @property
    def d_in(self) -> int:
        return self.autoencoder.config.d_in

    @property
    def d_sae(self) -> int:
        return self.autoencoder.config.d_sae

    @property
    def W_dec(self) -> Float[Tensor, "F D"]:
        """A row for each latent: what it adds to the reconstruction where its activation is 1."""
        return self.autoencoder.W_dec

    @property
    def b_dec(self) -> Float[Tensor, " D"]:
        return self.autoencoder.b_dec

    @overload
    def encode(self, x: Tensor, *, sparse: Literal[False] = ...) -> Tensor: ...
    @overload
    def encode(self, x: Tensor, *, sparse: Literal[True]) -> Active: ...
    @torch.no_grad()
    def encode(self, x: Float[Tensor, "... D"], *, sparse: bool = False) -> Float[Tensor, "... F"] | Active:
        """Activations of the latents, in float32; `sparse`: the active pairs of the tokens in one row.

        Raises:
            UserError: x has another width.
        """
        f = self._encode(x)
        return f if sparse else f.to_dense().view(*x.shape[:-1], self.d_sae)

    @torch.no_grad()
    def decode(self, f: Float[Tensor, "... F"]) -> Float[Tensor, "... D"]:
        """The reconstruction of x from activations.

        Raises:
            UserError: f has another width.
        """
        self._check(f, self.d_sae, "d_sae")
        return self.autoencoder.decode(f.reshape(-1, self.d_sae).float()).view(*f.shape[:-1], self.d_in)

    def __call__(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """The reconstruction of x, in float32."""
        with torch.no_grad():
            return self.autoencoder.decode(self._encode(x)).view(x.shape)

    def _encode(self, x: Float[Tensor, "... D"]) -> Active:
        self._check(x, self.d_in, "d_in")
        rows = x.reshape(-1, self.d_in).float()
        return as_active(self.autoencoder.encode(rows) if len(rows) else rows.new_zeros(0, self.d_sae))

    def to(self, device: torch.device | str) -> "SAE":
        """The same on another device."""
        self.autoencoder.to(device)
        return self

    def _check(self, tensor: Tensor, width: int, name: str) -> None:
        if tensor.ndim == 0 or tensor.shape[-1] != width:
            raise UserError(f"the last dimension of {list(tensor.shape)} must be {name} = {width}")

    def __repr__(self) -> str:
        place = [str(part) for part in (self.model, self.layer, self.site) if part is not None]
        return f"SAE({', '.join([self.arch, f'd_in {self.d_in}', f'd_sae {self.d_sae}', *place])})"
