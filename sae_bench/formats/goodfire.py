"""Goodfire's `MODEL-SAE-lN.pt` or `.pth`: f = relu(x W_enc + b_enc) of raw x, two of torch's Linear layers in a pickle.

The layer, of whose residual stream they are, and the model are in the file's name. Their SAEs for DeepSeek-R1 are
BatchTopKs that were saved without a threshold.
"""

import re
from pathlib import Path

from sae_bench.errors import UserError
from sae_bench.formats.foreign import ForeignSAE, Layout, Source, check_shapes, load_pickle, open_pickle, shapes_of
from sae_bench.formats.hook_names import PATH, Place
from sae_bench.saes.convert import Weights

FORMAT = "goodfire"
NAMED = r"(.+)-SAE-l(\d+)\.pth?"
LAYOUT: Layout = {
    "encoder_linear.weight": ("d_sae", "d_in"), "encoder_linear.bias": ("d_sae",),
    "decoder_linear.weight": ("d_in", "d_sae"), "decoder_linear.bias": ("d_in",),
}  # fmt: skip


def read(source: Source) -> ForeignSAE:
    """See what a MODEL-SAE-lN.pt holds."""
    ((name, path),) = source.files.items()
    tensors = open_pickle(path, LAYOUT)
    if "W" in tensors:
        raise UserError(f"{path}: it is a BatchTopK that was saved without a threshold, so what it selects depends on "
                        "the batch: it cannot be evaluated")  # fmt: skip
    d_in, d_sae = check_shapes(path, shapes_of(tensors), LAYOUT)
    said = re.fullmatch(NAMED, name)
    assert said is not None, "a file of this name"
    place = Place("resid_post", int(said[2]), said[1]).read_in(PATH)
    return ForeignSAE(FORMAT, source, "relu", d_in, d_sae, place, lambda: _load(path))


def _load(path: Path) -> Weights:
    found = load_pickle(path, LAYOUT)
    return {
        "W_enc": found["encoder_linear.weight"].T, "b_enc": found["encoder_linear.bias"],
        "W_dec": found["decoder_linear.weight"].T, "b_dec": found["decoder_linear.bias"],
    }  # fmt: skip
