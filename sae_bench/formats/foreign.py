"""An SAE from elsewhere, as every format's reader hands it over: a built-in architecture on raw activations.

It comes in two steps. The first looks at headers alone: which architecture, how wide, at which site. The second loads
the tensors, looks at every number, and builds the SAE. Both refuse in one line.

Shapes: D = d_in, F = d_sae.
"""

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_bench.errors import UserError
from sae_bench.formats.headers import Shapes, check_pickle, damaged, regular, safetensors_shapes
from sae_bench.formats.hook_names import Place
from sae_bench.saes.base import SAEConfig, SparseAutoencoder
from sae_bench.saes.convert import Weights, assemble

Layout = Mapping[str, Sequence[str]]
"""Tensors' names and the sizes of their dimensions: "d_in", "d_sae"; none for a scalar."""

JUMPRELU: Layout = {
    "W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_enc": ("d_sae",), "b_dec": ("d_in",),
    "threshold": ("d_sae",),
}  # fmt: skip
"""A jumprelu SAE, as it is laid out in most formats and here."""


PICKLED_DTYPES = ("float32", "float16", "bfloat16", "float64")
"""Number types of weights in a pickle; float64 is rounded to float32."""


@dataclass(frozen=True)
class Source:
    """The files of one SAE.

    `name` is what was asked for, which may say the site; `files` are the paths by their names in the SAE's folder.
    """

    name: str
    files: Mapping[str, Path]
    hub_commit: str | None = None

    def sha256(self) -> str:
        """SHA-256 (hex) over the names and bytes of the files."""
        digest = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            with regular(path) as file:
                digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ForeignSAE:
    """What a file holds, before it is loaded."""

    format: str
    source: Source
    arch: str
    d_in: int
    d_sae: int
    place: Place
    load: Callable[[], Weights]
    """Loads the tensors, folded: afterwards the SAE takes raw x and subtracts nothing from it."""
    k: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """The architecture's, where the file says them."""
    processing: Mapping[str, Any] = field(default_factory=dict)
    """How TransformerLens was told to change the model's weights, or to load them, before activations were taken."""
    notes: tuple[str, ...] = ()
    """What a reader has to know of the file."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Our own description of it, if it was trained here."""

    @property
    def config(self) -> SAEConfig:
        """What the architecture is made from."""
        if self.own:
            return SAEConfig(**self.own["config"])
        return SAEConfig(d_in=self.d_in, d_sae=self.d_sae, coefficient=self.k, options=dict(self.options))

    def build(self) -> SparseAutoencoder:
        """Load it, whole and checked, as a built-in architecture that takes raw activations.

        Raises:
            UserError: a number is not finite.
        """
        weights = {name: value.float() for name, value in self.load().items()}
        for name, value in weights.items():
            if not torch.isfinite(value).all():
                raise UserError(f"{self.source.name}: {name} holds NaN or infinity: it cannot be evaluated")
        if "threshold" in weights:  # relu(z) (z > threshold) is the same for all thresholds up to zero
            weights["threshold"] = weights["threshold"].clamp(min=0)
        return assemble(self.arch, self.config, weights)


@dataclass(frozen=True)
class About:
    """What a writer says of an SAE beside its weights: its site, what other tools want to know, its measured L0."""

    site: Mapping[str, Any]
    metadata: Mapping[str, Any]
    l0: float | None = None


def check_shapes(where: Path, shapes: Shapes, wanted: Layout) -> tuple[int, int]:
    """Return (d_in, d_sae), by which all tensors wanted are there and in shape.

    Raises:
        UserError: a tensor is missing or of another shape.
    """
    missing = sorted(wanted.keys() - shapes.keys())
    if missing:
        raise UserError(f"{where}: {missing[0]} is missing; it holds {', '.join(sorted(shapes)) or 'nothing'}")
    first = next(name for name, sizes in wanted.items() if len(sizes) == 2)
    if len(shapes[first]) != 2:
        raise UserError(f"{where}: {first} has the shape {shapes[first]}, not {_layout(wanted[first])}")
    sizes = dict(zip(wanted[first], shapes[first], strict=True))
    bias = next((name for name, of in wanted.items() if tuple(of) == ("d_in",)), None)
    if bias is not None and shapes[bias] == (sizes["d_sae"],) != (sizes["d_in"],):
        raise UserError(f"{where}: {first} is transposed: it has the shape {shapes[first]}, and {bias} is "
                        f"{shapes[bias][0]} wide; it must be {_layout(wanted[first])}")  # fmt: skip
    for name, of in wanted.items():
        if shapes[name] != tuple(sizes[size] for size in of):
            expected = ", ".join(f"{size} = {sizes[size]}" for size in of) or "no dimension"
            raise UserError(f"{where}: {name} has the shape {shapes[name]}, not {_layout(of)} ({expected})")
    if not math.prod(sizes.values()):
        raise UserError(f"{where}: {first} is empty")
    return sizes["d_in"], sizes["d_sae"]


def whole_number(where: Path, name: str, value: object, most: int) -> int:
    """A setting that has to be a whole number from 1 on.

    Raises:
        UserError: it is not.
    """
    if type(value) not in (int, float) or not 0 < value <= most or value != int(value):  # type: ignore[operator, call-overload]
        raise UserError(f"{where}: {name} is {value!r}: it must be a whole number from 1 to {most}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def positive(where: Path, name: str, value: object) -> float:
    """A setting that has to be a number above zero.

    Raises:
        UserError: it is not.
    """
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise UserError(f"{where}: {name} is {value!r}: it must be a number above zero")
    return float(value)  # type: ignore[arg-type]


def unread(where: Path, settings: Iterable[str], known: str) -> tuple[str, ...]:
    """What to say of the settings of a file whose names do not match `known`, a regular expression."""
    names = sorted(name for name in settings if not re.fullmatch(known, name))
    note = f"{where.name} has settings that are not known here and were left out: {', '.join(names)}"
    return (note,) if names else ()


def load_checked(path: Path, wanted: Layout, *, every: bool = False) -> Weights:
    """The tensors wanted of a safetensors file, or all, in float32; checked again, for it may have changed since."""
    shapes = safetensors_shapes(path, None if every else wanted)
    check_shapes(path, shapes, wanted)
    try:
        with safe_open(path, "pt") as tensors:
            return {name: tensors.get_tensor(name).float() for name in (shapes if every else wanted)}
    except SafetensorError as error:
        raise damaged(path, str(error)) from None


def open_pickle(path: Path, wanted: Layout) -> Weights:
    """The tensors of a pickle, still in the file and in its types; those wanted, if they are there, are weights.

    It is opened only after its list of names has been found to hold tensors alone, and then by torch's reader that
    builds nothing else.

    Raises:
        UserError: it holds something else.
    """
    check_pickle(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 (an unpickler raises anything)
        raise damaged(path, " ".join(str(error).split())[:200]) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise damaged(path, "it is no dictionary of tensors")
    tensors: Weights = {str(name): value for name, value in found.items()}
    # A view may show the same number as often as it likes, and would be written out in full once it is used.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > os.path.getsize(path):
        raise damaged(path, "its tensors claim more than the file holds")
    for name in filter(tensors.__contains__, wanted):
        dtype = str(tensors[name].dtype).removeprefix("torch.")
        if dtype not in PICKLED_DTYPES:
            raise UserError(f"{path}: {name} has the dtype {dtype}: give {', '.join(PICKLED_DTYPES)}")
        if tensors[name].layout != torch.strided:
            raise damaged(path, f"{name} is no plain tensor")
    return tensors


def shapes_of(tensors: Weights) -> Shapes:
    """Their shapes."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def load_pickle(path: Path, wanted: Layout) -> Weights:
    """The tensors wanted of a pickle, in float32 and out of the file; checked again, for it may have changed since."""
    tensors = open_pickle(path, wanted)
    check_shapes(path, shapes_of(tensors), wanted)
    return {name: tensors[name].float().clone() for name in wanted}


def with_norms_folded(weights: Weights) -> Weights:
    """Latents f ||W_dec,i|| in the place of f, with decoder rows of norm one; everything else stays as it is."""
    norms = torch.linalg.vector_norm(weights["W_dec"].double(), dim=1)
    inverse = torch.where(norms > 0, 1 / norms, 0.0)  # a row of zeros says nothing, whatever its latent does
    folded = {
        name: (weights[name].double() * norms).float() for name in weights if name not in ("W_dec", "b_dec", "r_mag")
    }
    return weights | folded | {"W_dec": (weights["W_dec"].double() * inverse[:, None]).float()}


def without_input_bias(weights: Weights) -> Weights:
    """Take b_dec W_enc out of the encoder's biases, so that the encoder may see x itself instead of x - b_dec."""
    return with_input_bias(weights, sign=-1.0)


def with_input_bias(weights: Weights, sign: float = 1.0) -> Weights:
    """The way back: biases plus b_dec W_enc, of which a gated SAE's magnitudes see exp(r_mag) times as much.

    In float64: a residual stream's mean is far longer than what varies about it, and float32 would round that away.
    """
    shift = sign * (weights["b_dec"].double() @ weights["W_enc"].double())
    bias = "b_gate" if "b_gate" in weights else "b_enc"
    shifted = {bias: weights[bias].double() + shift}
    if "b_mag" in weights:
        shifted["b_mag"] = weights["b_mag"].double() + weights["r_mag"].double().exp() * shift
    return weights | {name: bias.float() for name, bias in shifted.items()}


def _layout(sizes: Sequence[str]) -> str:
    return f"[{', '.join(sizes)}]"
