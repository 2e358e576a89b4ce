"""Qwen Scope's `layerN.sae.pt`: f = relu(z) on a token's K largest z = x W_enc + b_enc, of raw x.

The pickle holds the four tensors alone, both matrices transposed. The layer is in its name; K and the model are in the
repository's, `SAE-Res-Qwen3-8B-Base-W64K-L0_50`, which the path therefore has to keep. All are of the residual stream.
"""

import re
from pathlib import Path

from sae_bench.errors import UserError
from sae_bench.formats.foreign import (
    ForeignSAE,
    Layout,
    Source,
    check_shapes,
    load_pickle,
    open_pickle,
    shapes_of,
    whole_number,
)
from sae_bench.formats.hook_names import PATH, Place, nearest
from sae_bench.saes.convert import Weights

FORMAT = "qwen-scope"
NAMED = r"layer(\d+)\.sae\.pt"
REPOSITORY = re.compile(r"SAE-Res-([\w.-]+?)-W\d+K-L0_(\d+)")
LAYOUT: Layout = {"W_enc": ("d_sae", "d_in"), "W_dec": ("d_in", "d_sae"), "b_enc": ("d_sae",), "b_dec": ("d_in",)}


def read(source: Source) -> ForeignSAE:
    """See what a layerN.sae.pt holds."""
    ((name, path),) = source.files.items()
    said, layer = REPOSITORY.search(nearest(source.name)), re.fullmatch(NAMED, name)
    if said is None:
        raise UserError(f"{path}: how many latents are on is said by the repository's name alone, as in "
                        "SAE-Res-Qwen3-8B-Base-W64K-L0_50: call the file's folder that")  # fmt: skip
    d_in, d_sae = check_shapes(path, shapes_of(open_pickle(path, LAYOUT)), LAYOUT)
    k = whole_number(path, "the L0 in its path", int(said[2]), d_sae)
    assert layer is not None, "a file of this name"
    place = Place("resid_post", int(layer[1]), f"Qwen/{said[1]}").read_in(PATH)
    return ForeignSAE(FORMAT, source, "topk", d_in, d_sae, place, lambda: _load(path), k)


def _load(path: Path) -> Weights:
    found = load_pickle(path, LAYOUT)
    return found | {name: found[name].T for name in ("W_enc", "W_dec")}
