"""Gemma Scope 2's `params.safetensors`: jumprelu of raw x, as Gemma Scope's, in tensors named w_enc and w_dec.

A `config.json` beside it, if there is one, names the module and its side (`model.layers.9.self_attn.o_proj.input`) as
where the SAE reads and where it writes. A transcoder has the same tensors: that these two differ gives it away, or its
`type`, its path, a skip connection.
"""

from pathlib import Path

from safetensors.torch import save

from sae_bench.errors import UserError
from sae_bench.formats.foreign import JUMPRELU, About, ForeignSAE, Source, check_shapes, load_checked, unread
from sae_bench.formats.gemma_scope import width_name
from sae_bench.formats.headers import read_settings, safetensors_shapes
from sae_bench.formats.hook_names import Place, check_autoencoder, place_of_module, place_of_path
from sae_bench.records.files import write_bytes, write_json
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.convert import Weights

FORMAT = "gemma-scope-2"
FILES = ("params.safetensors",)
HOLDS = ("jumprelu",)

THEIRS = {name: name.replace("W_", "w_") for name in JUMPRELU}
LAYOUT = {THEIRS[name]: sizes for name, sizes in JUMPRELU.items()}
KNOWN = "architecture|model_name|hf_hook_point_(in|out)|affine_connection|width|l0|type|dtype|layer"


def read(source: Source) -> ForeignSAE:
    """See what a params.safetensors holds."""
    path, where = source.files["params.safetensors"], source.files.get("config.json")
    shapes, settings = safetensors_shapes(path, LAYOUT), read_settings(where) if where else {}
    check_autoencoder(where, str(settings.get("type", "sae")))
    reads, writes = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    if "affine_skip_connection" in shapes or writes not in (None, reads):
        raise UserError(f"{path}: it is a transcoder, which predicts other activations than it reads: it is no "
                        "autoencoder and cannot be evaluated")  # fmt: skip
    architecture = settings.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise UserError(f"{where}: architecture {architecture!r} is not jump_relu: it cannot be evaluated")
    d_in, d_sae = check_shapes(path, shapes, LAYOUT)
    model = settings.get("model_name")
    place = _place(reads).read_in("config.json").or_else(place_of_path(source.name))
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


def write(folder: Path, sae: SparseAutoencoder, about: About) -> Path:
    """Write an SAE as Gemma Scope 2 has them: SITE/layer_L_width_W_l0_N, with its configuration."""
    site, l0 = about.site, round(about.l0 or 0)
    named = site["kind"] if site["kind"] in ("resid_post", "mlp_out", "attn_out") else "path"
    folder = folder / named / f"layer_{site['layer']}_width_{width_name(sae)}_l0_{l0}"
    tensors = {THEIRS[name]: value.cpu().contiguous() for name, value in sae.stored().items()}
    write_bytes(folder / "params.safetensors", save(tensors))
    point = f"{site['path']}.{site['side']}"
    write_json(
        folder / "config.json",
        {
            "hf_hook_point_in": point, "hf_hook_point_out": point, "width": sae.config.d_sae,
            "model_name": about.metadata.get("model_name"), "architecture": "jump_relu", "l0": l0,
            "affine_connection": False, "type": "sae",
        },
    )  # fmt: skip
    return folder
