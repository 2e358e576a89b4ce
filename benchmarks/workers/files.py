"""What the workers that read and write SAE files share: raw activations in, latents and reconstructions out.

    {"do": "load", "folder": ..., "kind": ..., "x": file, "out": file}                     an SAE that we wrote
    {"do": "make", "folder": ..., "kind": ..., "x": file, "out": file, "parts": file}      one of theirs, saved by them,
        "place": ...                                                                        as being of that place

`parts` are tensors by the names of the papers, of which an SAE takes those that it has; `out` gets f [n, F] and x_hat.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.protocol import serve

Compute = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Latents and reconstructions of raw activations."""

Load = Callable[[Path, str], Compute]
Make = Callable[[Path, str, Mapping[str, Tensor], str | None], Compute]


def serve_files(load: Load, make: Make, packages: Sequence[str]) -> None:
    """Answer until the input ends."""
    torch.set_num_threads(2)

    @torch.no_grad()
    def answer(message: Mapping[str, Any]) -> dict[str, Any]:
        folder, kind = Path(message["folder"]), message["kind"]
        if message["do"] == "load":
            compute = load(folder, kind)
        else:
            compute = make(folder, kind, load_file(message["parts"]), message.get("place"))
        f, x_hat = compute(load_file(message["x"])["x"])
        save_file({"f": f.contiguous(), "x_hat": x_hat.contiguous()}, message["out"])
        return {}

    serve(answer, packages)


def set_parameters(module: torch.nn.Module, values: Mapping[str, Tensor]) -> None:
    """Overwrite parameters and buffers by their names."""
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, value in values.items():
        named[name].data = value.clone()
