"""Where in a language model an SAE belongs, read off the many names that this has.

A file may name TransformerLens's hook, a module, or nothing; then its path may: `pt-res/layer_20` in Gemma Scope,
`layers.9` in sparsify, `resid_post_layer_8` in dictionary_learning. What stays unsaid is the user's to say.
"""

import re
from dataclasses import dataclass, replace

from sae_bench.errors import UserError

HOOKS = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z"}
"""TransformerLens's names, which SAELens uses."""

IN_PATHS = {
    "resid_post": r"(?:pt|it)-res\b|resid_post",
    "mlp_out": r"(?:pt|it)-mlp\b|mlp_out",
    "attn_out": r"(?:pt|it)-att\b|attn_out",
}
"""What paths call the sites: Gemma Scope's repositories, and our SAEs' folders."""


@dataclass(frozen=True)
class Place:
    """As much of a site as is known: its kind (`resid_post`, `path:MODULE`), its layer, and the model's name."""

    kind: str | None = None
    layer: int | None = None
    model: str | None = None

    def or_else(self, other: "Place") -> "Place":
        """This place, with what it leaves open taken from another."""
        kind = self.kind or other.kind
        named = kind is not None and kind.startswith("path:")  # a module's path has its layer in it
        layer = self.layer if self.layer is not None or (named and self.kind) else other.layer
        return replace(self, kind=kind, layer=layer, model=self.model or other.model)


def place_of_path(path: str) -> Place:
    """What a path says."""
    layers = re.findall(r"(?<![a-z0-9])layers?[_.](\d+)(?![\d])", path)
    kinds = {kind for kind, pattern in IN_PATHS.items() if re.search(pattern, path)}
    return Place(kinds.pop() if len(kinds) == 1 else None, int(layers[-1]) if layers else None)


def place_of_hook(where: object, name: str) -> Place:
    """What a hook of TransformerLens, or the module of a model, stands for.

    Raises:
        UserError: it is a hook that is no site here.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(\w+(?:\.\w+)?)", name)
    if match is None:
        return Place(f"path:{name}") if "." in name else Place()
    layer, hook = int(match[1]), match[2]
    if hook == "hook_resid_pre" and layer:  # what enters a layer has left the one before
        layer, hook = layer - 1, "hook_resid_post"
    kinds = {theirs: kind for kind, theirs in HOOKS.items()}
    if hook not in kinds:
        raise UserError(f"{where}: its activations come from {name}, which is none of {', '.join(HOOKS.values())}: "
                        "it cannot be evaluated")  # fmt: skip
    return Place(kinds[hook], layer)
