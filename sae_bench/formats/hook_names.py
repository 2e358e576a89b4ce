"""Where in a language model an SAE belongs, read off the many names that this has; docs/formats.md has them as a table.

A file may name TransformerLens's hook or a module, and its path may have a word for the site: `pt-res/layer_20` in
Gemma Scope, `layers.9` in sparsify, `resid_post_layer_8` in dictionary_learning. What is said and not understood is
kept as that, and never becomes another site; what stays unsaid is the user's to say.
"""

import re
from dataclasses import dataclass, field, replace

from sae_bench.errors import UserError

HOOKS = {
    "resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid", "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z", "attn_add": "hook_attn_out",
}  # fmt: skip
"""TransformerLens's names, which SAELens uses."""

WORDS = {
    "resid_post": r"(?:pt|it)-res|resid_(?:post|out)", "resid_pre": "resid_pre", "resid_mid": "resid_mid",
    "mlp_out": r"(?:pt|it)-mlp|mlp_out", "attn_out": r"(?:pt|it)-att|(?<!hook_)attn_out|hook_z|attn_z",
    "attn_add": "hook_attn_out|attention_out|attn_add",
}  # fmt: skip
"""What paths call the sites: Gemma Scope's repositories, dictionary_learning's folders, hooks, ours."""

MODULE = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
EMBEDDING = re.compile(r"(?:^|[/.])(?:embedding|embed|hook_embed|embed_tokens|embed_in|wte)(?:/|$)")
NO_AUTOENCODER = re.compile(r"(?:^|[-_/.])(skip_transcoder|(?:transcoder|crosscoder|clt))s?(?=$|[-_/.])")
PATH = "its path"


@dataclass(frozen=True)
class Place:
    """As much of a site as is known: its kind (`resid_post`, `path:MODULE`), its layer, and the model's name.

    `unclear` is what is said of the site and is no site known here; then only the user can say the kind. Where kind and
    layer were read stands in `kind_from` and `layer_from`.
    """

    kind: str | None = None
    layer: int | None = None
    model: str | None = None
    unclear: str | None = None
    kind_from: str = field(default="", compare=False)
    layer_from: str = field(default="", compare=False)

    def read_in(self, where: str) -> "Place":
        """This place, which was read there."""
        return replace(self, kind_from=where if self.kind else "", layer_from=where if self.layer is not None else "")

    def or_else(self, other: "Place") -> "Place":
        """This place, with what it leaves open taken from another."""
        place = self
        if self.kind is None and self.unclear is None:
            place = replace(place, kind=other.kind, kind_from=other.kind_from, unclear=other.unclear)
        named = self.kind is not None and self.kind.startswith("path:")  # a module's path has its layer in it
        if self.layer is None and not named:
            place = replace(place, layer=other.layer, layer_from=other.layer_from)
        return replace(place, model=self.model or other.model)


def place_of_path(path: str, attn_out: str = "attn_out") -> Place:
    """What the last parts of a path say; `attn_out` is the kind that its format calls so."""
    path = nearest(path)
    layers = re.findall(r"(?<![a-z0-9])layers?[_.]?(\d+)(?!\d)", path)
    layer = int(layers[-1]) if layers else None
    if EMBEDDING.search(path):
        return Place(None, layer, unclear=f"{path} is of the embedding").read_in(PATH)
    kinds = {kind for kind, word in WORDS.items() if re.search(rf"(?<![A-Za-z0-9])(?:{word})(?![A-Za-z0-9])", path)}
    kind = kinds.pop() if len(kinds) == 1 else None
    return Place(attn_out if kind == "attn_out" else kind, layer).read_in(PATH)


def nearest(path: str) -> str:
    """The parts of a path that are about an SAE: repository, layer, width, L0, and the file; what lies above is not."""
    return "/".join(path.rstrip("/").split("/")[-5:])


def layer_of(module: str) -> int | None:
    """The number of the layer that a module's path is in, or None."""
    match = re.search(r"(?<=\.)\d+(?=\.|@|$)", module)
    return int(match[0]) if match else None


def place_of_module(name: str, side: str = "output") -> Place:
    """The module of a model: `gpt_neox.layers.1.mlp`, `layers[1].mlp`, or from the model's body on, `layers.1.mlp`."""
    name = re.sub(r"\[(\d+)\]", r".\1", name)
    if EMBEDDING.search(name):
        return Place(unclear=f"{name} is the embedding")
    if not MODULE.fullmatch(name):
        return Place(unclear=f"{name!r} is no module's name")
    return Place(f"path:{name}" + ("@input" if side == "input" else ""))


def place_of_hook(name: str) -> Place:
    """What a hook of TransformerLens, or the module of a model, stands for."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    kinds = {theirs: kind for kind, theirs in HOOKS.items()}
    if match and match[2] in kinds:
        layer, kind = int(match[1]), kinds[match[2]]
        # What enters a layer has left the one before.
        return Place("resid_post", layer - 1) if kind == "resid_pre" and layer else Place(kind, layer)
    if "hook_" in name and not EMBEDDING.search(name):
        return Place(None, int(match[1]) if match else None, unclear=f"{name} is none of {', '.join(HOOKS.values())}")
    return place_of_module(name)


def check_autoencoder(where: object, said: str) -> None:
    """Refuse what a path or a setting says is no autoencoder: it reads one site and predicts another, or several.

    Raises:
        UserError: it does.
    """
    if match := NO_AUTOENCODER.search(said):
        raise UserError(
            f'{where}: "{said}" names a {match[1]}, which predicts other activations than it reads: it is no '
            "autoencoder and cannot be evaluated (if the name is wrong, change it)"
        )
