"""SAELens's folder, `cfg.json` and `sae_weights.safetensors`: version 6, and the older ones that hubs are full of.

b_dec is subtracted before the encoder unless `apply_b_dec_to_input` is false; our own SAEs say false. A topk that was
trained with `rescale_acts_by_decoder_norm` chooses by z ||W_dec,i||, which becomes plain topk once norms are folded. A
BatchTopK and its Matryoshka form are saved as jumprelu; a checkpoint of their training has one threshold for all
latents, which means latents times norms where these are folded. Matching pursuit is tied, and stops a token early where
`residual_threshold` or `stop_on_duplicate_support` says so: by default both do.

Per-token normalisations cannot be folded into weights: an SAE that asks for one is refused. How the model was loaded
(`model_from_pretrained_kwargs`) is handed on: some of it changes activations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from sae_bench.errors import UserError
from sae_bench.formats.foreign import (
    JUMPRELU,
    About,
    ForeignSAE,
    Layout,
    Source,
    check_shapes,
    load_checked,
    positive,
    unread,
    whole_number,
    with_norms_folded,
    without_input_bias,
)
from sae_bench.formats.headers import read_settings, safetensors_shapes
from sae_bench.formats.hook_names import Place, check_autoencoder, place_of_hook, place_of_path
from sae_bench.records.files import write_bytes, write_json
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.convert import Weights

FORMAT = "saelens"
CONFIG = "cfg.json"
FILES = (CONFIG, "sae_weights.safetensors")
THRESHOLD = "topk_threshold"
"""A BatchTopK's in a checkpoint of training; zero until it has been updated."""
TIED: Layout = {"W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
COMMON = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
LAYOUTS: dict[str, Layout] = {
    "standard": COMMON | {"b_enc": ("d_sae",)},
    "topk": COMMON | {"b_enc": ("d_sae",)},
    "jumprelu": JUMPRELU,
    "gated": COMMON | {"b_gate": ("d_sae",), "b_mag": ("d_sae",), "r_mag": ("d_sae",)},
    "abstopk": COMMON | {"b_enc": ("d_sae",)},
    "matching_pursuit": TIED,
    **dict.fromkeys(("batchtopk", "matryoshka_batchtopk"), COMMON | {"b_enc": ("d_sae",), THRESHOLD: ()}),
}
"""The tensors of each of their architectures; files of ours use the same names."""

ARCHITECTURE = {
    "relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated", "abs_topk": "abstopk",
    "matching_pursuit": "matching_pursuit",
}  # fmt: skip
"""What they call each nonlinearity."""

ARCHS = {theirs: ours for ours, theirs in ARCHITECTURE.items()} | {
    "batchtopk": "jumprelu", "matryoshka_batchtopk": "jumprelu"
}  # fmt: skip
"""Our architecture for each of theirs."""

HOLDS = tuple(ARCHITECTURE)

KNOWN = (
    "architecture|d_in|d_sae|dtype|device|metadata|apply_b_dec_to_input|normalize_activations|reshape_activations|k|"
    "rescale_acts_by_decoder_norm|residual_threshold|max_iterations|stop_on_duplicate_support|matryoshka_widths|"
    "use_matryoshka_aux_loss|finetuning_scaling_factor|activation_fn(_str|_kwargs)?|model_(name|class_name|kwargs)|"
    "model_from_pretrained_kwargs|(hf_)?hook_(name|point)(_out)?|hook_(point_)?(layer|head_index|eval)(_out)?|prepend_bos|"
    "context_size|seqpos_slice|exclude_special_tokens|neuronpedia_id|module_(path|side)|sae_lens_.*|unique_id|seed|verbose|"
    # What trained it, in the configurations of all versions; it is in the weights.
    "(l0|l1|lr|adam|train|training|store|n|b_dec_init|init|dead|wandb|log|eval|checkpoint|resume|run|autocast|compile|"
    "dataset|streaming|cached|total|tokens|jumprelu|aux|topk)_.*|lp_norm|mse_loss_.*|is_dataset_.*|expansion_factor|"
    "decoder_(init|orthogonal|heuristic).*|normalize_sae_decoder|scale_sparsity_.*|feature_sampling_.*|use_(ghost|cached|"
    "sparse)_.*|from_pretrained_path|act_store_.*|output_path|autocast|streaming|lr"
)
"""Settings that are read here, or that change nothing; a regular expression."""


def read(source: Source) -> ForeignSAE:
    """See what a folder of SAELens holds."""
    where, settings = source.files["cfg.json"], _settings(source.files["cfg.json"])
    architecture = settings.get("architecture", "standard")
    check_autoencoder(where, str(architecture))
    if not isinstance(architecture, str) or architecture not in ARCHS:
        raise UserError(f"{where}: architecture {architecture!r} is none of {', '.join(ARCHS)}: it cannot be evaluated")
    path = source.files["sae_weights.safetensors"]
    layout = _layout(path, architecture)
    d_in, d_sae = check_shapes(path, safetensors_shapes(path, layout), layout)
    hook = settings.get("hook_name")
    if isinstance(hook, str) and (layer := settings.get("hook_layer", settings.get("hook_point_layer"))) is not None:
        hook = hook.replace("{layer}", str(layer))  # as the first versions wrote it
    place = Place() if hook is None else place_of_hook(str(hook)).read_in(where.name)
    if place.kind == f"path:{settings.get('module_path')}":  # an SAE of ours, at a module that has no hook
        place = replace(place, kind=f"{place.kind}@{settings.get('module_side')}")
    model = settings.get("model_name")
    place = place.or_else(place_of_path(source.name)).or_else(Place(model=model if isinstance(model, str) else None))
    processing = settings.get("model_from_pretrained_kwargs")
    notes = (*unread(where, settings, KNOWN), *_notes(where, settings))
    k, options = _latents(where, architecture, settings, d_in, d_sae)
    return ForeignSAE(
        FORMAT, source, ARCHS[architecture], d_in, d_sae, place, lambda: _load(path, architecture, settings), k,
        options, processing if isinstance(processing, dict) else {}, notes,
    )  # fmt: skip


def _settings(path: Path) -> dict[str, Any]:
    """Their configuration, flat; what it is called before version 6 is called as in version 6."""
    settings = read_settings(path)
    metadata = settings.pop("metadata", None)
    settings = {**(metadata if isinstance(metadata, dict) else {}), **settings}
    for old, new in (("hook_point", "hook_name"), ("activation_fn_str", "activation_fn")):
        settings.setdefault(new, settings.get(old))
    if settings["activation_fn"] == "topk":
        arguments = settings.get("activation_fn_kwargs")
        settings["architecture"] = "topk"
        settings.setdefault("k", arguments.get("k") if isinstance(arguments, dict) else None)
    elif settings["activation_fn"] not in (None, "relu"):
        raise UserError(
            f"{path}: activation {settings['activation_fn']!r} is neither relu nor topk: it cannot be evaluated"
        )
    for name in ("normalize_activations", "finetuning_scaling_factor"):
        if settings.get(name) not in (None, False, "none"):
            raise UserError(
                f"{path}: {name} is {settings[name]!r}, which is not part of the weights: fold it into them first"
            )
    for names, what in ((("hook_name_out", "hook_point_out"), "a transcoder's output"),
                        (("hook_head_index", "hook_point_head_index"), "one attention head alone")):  # fmt: skip
        for name in names:
            if settings.get(name) is not None:
                raise UserError(f"{path}: {name} is {settings[name]!r}, {what}: it cannot be evaluated")
    return settings


def _latents(
    where: Path, architecture: str, settings: Mapping[str, Any], d_in: int, d_sae: int
) -> tuple[int | None, dict[str, Any]]:
    """How many latents are on, where that is a number, and what else decides it."""
    if architecture in ("topk", "abstopk"):
        return whole_number(where, "k", settings.get("k"), d_sae), {}
    if architecture != "matching_pursuit":
        return None, {}
    if settings.get("apply_b_dec_to_input", True) is not True:
        raise UserError(f"{where}: apply_b_dec_to_input is {settings['apply_b_dec_to_input']!r}: matching pursuit "
                        "without b_dec cannot be evaluated")  # fmt: skip
    threshold, stop = settings.get("residual_threshold", 1e-2), settings.get("stop_on_duplicate_support", True)
    if threshold != 0:
        threshold = positive(where, "residual_threshold", threshold)
    steps = settings.get("max_iterations")
    k = whole_number(where, "max_iterations", d_in if steps is None else steps, d_sae)
    return k, {"residual_threshold": float(threshold), "stop_on_duplicate_support": bool(stop)}


def _notes(path: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """What differs between the tokens that an SAE was trained on and ours, which all follow a BOS."""
    if settings.get("prepend_bos") is False:
        yield f"{path.name} has prepend_bos false: it was trained without the BOS that opens every context here"
    if settings.get("seqpos_slice") not in (None, [None], [None, None], [None, None, None]):
        yield f"{path.name} has seqpos_slice {settings['seqpos_slice']}: it was trained on these positions alone"


def _layout(path: Path, architecture: str) -> Layout:
    """The tensors of an architecture; what is trained as the logarithm of a threshold may be saved so."""
    layout = LAYOUTS[architecture]
    if (
        "threshold" in layout
        and "threshold" not in (shapes := safetensors_shapes(path, layout))
        and ("log_threshold" in shapes)
    ):
        return {("log_threshold" if name == "threshold" else name): sizes for name, sizes in layout.items()}
    return layout


def _load(path: Path, architecture: str, settings: Mapping[str, Any]) -> Weights:
    weights = load_checked(path, _layout(path, architecture))
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    if architecture == "matching_pursuit":
        return weights
    threshold = weights.pop(THRESHOLD, None)
    if settings.get("apply_b_dec_to_input", True):
        weights = without_input_bias(weights)
    if architecture != "jumprelu" and settings.get("rescale_acts_by_decoder_norm"):
        weights = with_norms_folded(weights)
    if threshold is None:
        return weights
    if not threshold:
        raise UserError(f"{path}: its {THRESHOLD} was never set, so what it selects depends on the batch: it cannot be "
                        "evaluated; train it for a step")  # fmt: skip
    return weights | {"threshold": threshold.expand_as(weights["b_enc"]).clone()}


def holds(sae: SparseAutoencoder) -> bool:
    """Whether the stored tensors of an SAE, as they are, are those of an architecture of theirs."""
    return sae.stored().keys() == LAYOUTS.get(ARCHITECTURE.get(sae.nonlinearity or "", ""), {}).keys()


def config_of(sae: SparseAutoencoder, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """cfg.json as version 6 reads it: scale and pre-encoder bias are folded into the weights."""
    return {
        "architecture": ARCHITECTURE.get(sae.nonlinearity or ""),
        "d_in": sae.config.d_in,
        "d_sae": sae.config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.nonlinearity == "matching_pursuit",
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if metadata.get("hook_name", "").endswith("hook_z") else "none",
        **_settings_of(sae),
        "metadata": {"sae_lens_version": "6.0.0", "sae_lens_training_version": None, **metadata},
    }


def _settings_of(sae: SparseAutoencoder) -> dict[str, Any]:
    """How many latents are on, in the words of an architecture that says so."""
    if sae.nonlinearity in ("topk", "abs_topk"):
        return {"k": int(sae.config.sparsity)}
    if sae.nonlinearity == "matching_pursuit":
        stops = {"residual_threshold": 0.0, "stop_on_duplicate_support": False} | sae.config.options
        return {"max_iterations": int(sae.config.sparsity), **stops}
    return {}


def write(folder: Path, sae: SparseAutoencoder, about: About) -> Path:
    """Write an SAE as SAELens v6 does."""
    tensors = {name: value.cpu().contiguous() for name, value in sae.stored().items()}
    write_bytes(folder / "sae_weights.safetensors", save(tensors))
    write_json(folder / CONFIG, config_of(sae, about.metadata))
    return folder
