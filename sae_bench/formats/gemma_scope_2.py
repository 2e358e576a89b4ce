"""Gemma Scope 2's `params.safetensors`: jumprelu of raw x, as Gemma Scope's, in tensors named w_enc and w_dec.

A `config.json` beside it, if there is one, names the module and its side (`model.layers.9.self_attn.o_proj.input`). A
transcoder has the same tensors: its configuration or its path gives it away, if a skip connection does not.
"""

from pathlib import Path

from sae_bench.errors import UserError
from sae_bench.formats.foreign import JUMPRELU, ForeignSAE, Source, check_shapes, load_checked, unread
from sae_bench.formats.headers import read_settings, safetensors_shapes
from sae_bench.formats.hook_names import Place, place_of_module, place_of_path
from sae_bench.saes.convert import Weights

FORMAT = "gemma-scope-2"
FILES = ("params.safetensors",)

THEIRS = {name: name.replace("W_", "w_") for name in JUMPRELU}
LAYOUT = {THEIRS[name]: sizes for name, sizes in JUMPRELU.items()}
KNOWN = "architecture|model_name|hf_hook_point_(in|out)|affine_connection|width|l0|type|dtype|layer"


def read(source: Source) -> ForeignSAE:
    """See what a params.safetensors holds."""
    path, where = source.files["params.safetensors"], source.files.get("config.json")
    shapes, settings = safetensors_shapes(path, LAYOUT), read_settings(where) if where else {}
    if "affine_skip_connection" in shapes or settings.get("hf_hook_point_out") is not None:
        raise UserError(f"{path}: it is a transcoder, which predicts other activations than it reads: it is no "
                        "autoencoder and cannot be evaluated")  # fmt: skip
    architecture = settings.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise UserError(f"{where}: architecture {architecture!r} is not jump_relu: it cannot be evaluated")
    d_in, d_sae = check_shapes(path, shapes, LAYOUT)
    model = settings.get("model_name")
    place = _place(settings.get("hf_hook_point_in")).read_in("config.json").or_else(place_of_path(source.name))
    place = place.or_else(Place(model=model if isinstance(model, str) else None))
    notes = unread(where, settings, KNOWN) if where else ()
    return ForeignSAE(FORMAT, source, "jumprelu", d_in, d_sae, place, lambda: _load(path), notes=notes)


def _place(point: object) -> Place:
    if point is None:
        return Place()
    module, _, side = str(point).rpartition(".")
    known = side in ("input", "output")
    return place_of_module(module, side) if known else Place(unclear=f"hf_hook_point_in is {point!r}")


def _load(path: Path) -> Weights:
    weights = load_checked(path, LAYOUT)
    return {name: weights[theirs] for name, theirs in THEIRS.items()}
