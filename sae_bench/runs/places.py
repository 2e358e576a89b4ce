"""Where an imported SAE is measured: what its files say, what their path says, what the flags say; and the very module.

A flag answers what the files leave open or say unclearly. It wins over what a path says, with a word; against what a
file says it is a contradiction, which is refused. Where the same command trains SAEs, flags say where to train.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import nn

from sae_bench.errors import UserError
from sae_bench.formats.foreign import ForeignSAE
from sae_bench.formats.hook_names import PATH, Place, layer_of
from sae_bench.lm.activations import ActivationModel
from sae_bench.lm.layers import find_backbone
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import ADDITIVE, KINDS, Site, find_site, kind_of
from sae_bench.records.run_folder import SAE_DESCRIPTION
from sae_bench.runs.config import RunConfig

FLAG = "a flag"
NO_EFFECT = {
    "center_unembed", "n_devices", "device", "device_map", "move_to_device", "default_prepend_bos",
    "default_padding_side", "low_cpu_mem_usage", "trust_remote_code", "token", "use_auth_token", "cache_dir",
    "local_files_only", "first_n_layers", "attn_implementation",
}  # fmt: skip
"""How TransformerLens may be told to load a model without a change in activations at the sites that there are here."""

FOLDS = ("fold_value_biases", "refactor_factored_attn_matrices")
"""What changes the outputs of attention heads, and nothing behind them."""


@dataclass(frozen=True)
class Located:
    """The site of an SAE, where that was read, and what else a reader has to know."""

    site: Site
    read_from: str
    notes: tuple[str, ...]


def locate(lm: LanguageModel, config: RunConfig, sae: ForeignSAE) -> Located:
    """Find the site of an SAE in the model.

    Raises:
        UserError: it is not known, not clear, not there, of another width, or contradicted by a flag.
    """
    said = flags_of(config)
    place, notes = settled(sae.place, said, training=bool(config.archs))
    try:
        _check_known(place)
        site = find(lm.model, place)
        if not config.archs:
            _check_agrees(lm.model, place, said, site)
    except UserError as error:
        raise UserError(f"--sae {sae.source.name}: {error}") from None
    _check_width(lm, site, sae)
    centred, more = processed(lm, site, sae)
    site = replace(site, centred=centred)
    layer_from = place.layer_from if place.layer is not None else place.kind_from
    read_from = place.kind_from if place.kind_from == layer_from else f"{place.kind_from}, layer {layer_from}"
    return Located(site, read_from, (*notes, *sae.notes, *more))


def locate_in_world(world: ActivationModel, config: RunConfig, sae: ForeignSAE) -> Located:
    """The one site of a model that is no language model, whatever the SAE's files say of theirs.

    Raises:
        UserError: it is of another width.
    """
    (site,) = world.find_sites(config.sites, config.layers)
    _check_width(world, site, sae)
    return Located(site, world.name, sae.notes)


def _check_width(lm: ActivationModel, site: Site, sae: ForeignSAE) -> None:
    if site.d_in != sae.d_in:
        raise UserError(
            f"--sae {sae.source.name} is for activations {sae.d_in} wide, {site.path} of {lm.name} has {site.d_in}: "
            "is it for another model, layer or site?"
        )


def flags_of(config: RunConfig) -> Place:
    """The place that flags say, if they say one: not their defaults, and not one of several."""
    given = config.model_fields_set
    kind = config.sites[0] if "sites" in given and len(config.sites) == 1 else None
    return Place(kind, config.layers[0] if len(config.layers) == 1 else None).read_in(FLAG)


def settled(place: Place, said: Place, *, training: bool) -> tuple[Place, tuple[str, ...]]:
    """What a file, its path and the flags say together, and a word on what was overruled."""
    if said.kind and place.unclear:
        place = replace(place, unclear=None)
    if training:
        return place.or_else(said), ()
    notes = []
    if said.kind and place.kind and place.kind_from == PATH and said.kind != place.kind:
        notes.append(f"its path says {place.kind}, --site {said.kind}: it is measured there")
        place = replace(place, kind=None)
    if said.layer is not None and place.layer_from == PATH and said.layer != place.layer:
        notes.append(f"its path says layer {place.layer}, --layer {said.layer}: it is measured there")
        place = replace(place, layer=None)
    return place.or_else(said), tuple(notes)


def _check_known(place: Place) -> None:
    if place.unclear:
        raise UserError(f"{place.unclear}: which site that is, is not known here: say it with --site (a kind of "
                        "`ls sites`, or path:MODULE) and --layer, if it is an SAE of one")  # fmt: skip
    for what, flag, value in (("layer", "--layer", place.layer), ("site", "--site", place.kind)):
        if value is None and not (what == "layer" and place.kind and place.kind.startswith("path:")):
            raise UserError(f"it does not say its {what}: give one with {flag}")


def find(model: nn.Module, place: Place) -> Site:
    """The site of a place, by its short name where it has one; files may leave out where the model's body begins."""
    kind, layer = place.kind or "", place.layer or 0
    if not kind.startswith("path:") or place.kind_from in (FLAG, SAE_DESCRIPTION):
        return find_site(model, kind, layer)
    name, _, side = kind.removeprefix("path:").partition("@")
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    path = next((path for path in _spellings(model, name) if path in names), None)
    if path is None:
        raise UserError(f"{type(model).__name__} has no module {name}: name one with --site path:MODULE")
    number = layer_of(path)
    known = number is not None and side in ("", "input", "output")
    short = kind_of(model, path, "input" if side == "input" else "output") if known else None
    if short:
        with suppress(UserError):  # a module that is named is measured, though its short name may not be sure
            return find_site(model, short, number or 0)
    return find_site(model, f"path:{path}" + (f"@{side}" if side else ""), number or 0)


def _spellings(model: nn.Module, name: str) -> Iterator[str]:
    """A module's name as it is; within the model's body, as sparsify has it; below a wrapper, as nnsight has it."""
    yield name
    yield f"{getattr(model, 'base_model_prefix', '')}.{name}"
    yield name.removeprefix("model.")
    yield name.replace("model.", "model.language_model.", 1)


def _check_agrees(model: nn.Module, place: Place, said: Place, site: Site) -> None:
    """Refuse a flag that says another module or layer than the file does."""
    if site.kind == "resid_post" and (said.kind, said.layer) == ("resid_pre", site.layer + 1):
        return  # what enters a layer has left the one before
    if said.kind and place.kind_from != FLAG:
        other = find_site(model, said.kind, site.layer)
        if (other.path, other.side) != (site.path, site.side):
            raise UserError(f"{place.kind_from} says {place.kind}, which is {site.path}, and --site {said.kind}: "
                            "leave out --site, or mend the file")  # fmt: skip
    by_flags = place.kind_from == FLAG and place.layer_from in (FLAG, "")
    if said.layer not in (None, layer_of(site.path), site.layer) and layer_of(site.path) is not None and not by_flags:
        where = place.layer_from or place.kind_from
        raise UserError(f"{where} says {site.name}, and --layer {said.layer}: leave out --layer, or mend the file")


def processed(lm: LanguageModel, site: Site, sae: ForeignSAE) -> tuple[bool, tuple[str, ...]]:
    """Whether activations are to be centred for an SAE, and what to say of how its model was loaded.

    `center_writing_weights` takes the mean over its dimensions off all that is written to the residual stream, exactly,
    where norms are LayerNorms; TransformerLens leaves other models alone. `fold_value_biases` shifts what heads give.

    Raises:
        UserError: weights were changed in a way that cannot be applied here.
    """
    settings = {name: value for name, value in sae.processing.items() if name not in NO_EFFECT and value}
    changes = [name for name in (*FOLDS, "fold_ln", "center_writing_weights") if settings.get(name)]
    if changes and site.kind not in KINDS:
        raise UserError(f"--sae {sae.source.name} was trained with {changes[0]}; what that does to {site.path} is not "
                        "known: it cannot be evaluated there")  # fmt: skip
    settings.pop("fold_ln", None)  # what norms give is at no named site
    centred = bool(settings.pop("center_writing_weights", False)) and _has_layer_norms(lm)
    for name in FOLDS:
        if settings.pop(name, False) and site.kind not in ADDITIVE and (name[0] == "r" or _has_value_biases(lm, site)):
            raise UserError(f"--sae {sae.source.name} was trained with {name}, which changes {site.path}: it cannot be "
                            "evaluated there")  # fmt: skip
    return centred and site.kind in ADDITIVE, tuple(_words(lm, settings))


def _words(lm: LanguageModel, settings: Mapping[str, object]) -> Iterator[str]:
    for name in ("dtype", "torch_dtype"):
        dtype = str(settings.get(name, lm.dtype)).removeprefix("torch.")
        if dtype != str(lm.dtype).removeprefix("torch."):
            yield f"it was trained on activations in {dtype}, and is evaluated in {lm.dtype}".replace("torch.", "")
    others = sorted(settings.keys() - {"dtype", "torch_dtype"})
    if others:
        yield "its model was loaded with settings that may change activations and were left out: " + ", ".join(
            f"{name} = {settings[name]!r}" for name in others
        )


def _has_layer_norms(lm: LanguageModel) -> bool:
    backbone = find_backbone(lm.model)
    if backbone is None:
        raise UserError(f"{type(lm.model).__name__}: whether its writing weights can be centred is not known: the SAE "
                        "was trained with center_writing_weights and cannot be evaluated")  # fmt: skip
    return isinstance(backbone.final_norm, nn.LayerNorm)


def _has_value_biases(lm: LanguageModel, site: Site) -> bool:
    """Whether the attention of a site, whose module is the output projection, has biases before it."""
    attention, _, projection = site.path.rpartition(".")
    names = dict(lm.model.get_submodule(attention).named_parameters())
    return any(name.endswith("bias") and not name.startswith(f"{projection}.") for name in names)
