"""A language model and its tokenizer by name, and what to tell the user when they cannot be had.

Three ways: with its trained weights; with weights drawn anew, as a control; and without weights, to plan a run.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sae_bench.device import free_bytes
from sae_bench.errors import UserError
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.model_names import HUB_MODELS, known_shape, resolve_model
from sae_bench.lm.skeleton import auto_class, build_skeleton, check_quantisation
from sae_bench.progress import quiet_hub


def _in_one_line(load: Callable[..., LanguageModel]) -> Callable[..., LanguageModel]:
    """Whatever a folder's configuration makes of a model's own code, before and after its weights are read."""

    @wraps(load)
    def loading(name_or_path: str, **options: Any) -> LanguageModel:
        try:
            return load(name_or_path, **options)
        except UserError:
            raise
        except Exception as error:
            raise UserError(_explanation(name_or_path, options.get("revision"), error)) from error

    return loading


@_in_one_line
def load_language_model(
    name_or_path: str,
    *,
    called: str | None = None,
    device: torch.device | str,
    dtype: torch.dtype,
    revision: str | None = None,
    trust_remote_code: bool = False,
    random_seed: int | None = None,
) -> LanguageModel:
    """Load a causal language model and its tokenizer by short name (`ls models`), folder or hub name.

    Its name is what it is `called`, else as it was named.
    With a `random_seed` its weights are drawn anew, as its class initialises them, on the device and without a
    checkpoint: the control of arXiv 2501.17727. Its name then says so.

    Raises UserError for a name that means nothing, for a model that cannot be had (gated, missing, no network,
    unreadable, quantised in a way that this machine cannot run), for one that the device has no memory for, for one
    whose logits are not its LM head's output, soft-capped or not, and for one that has no embedding for words of its
    tokenizer.
    """
    name, source = resolve_model(name_or_path)
    name = called or name
    device, random = torch.device(device), random_seed is not None
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _explained(source, revision, random=random):
        config = _config(name_or_path, source, options, published=random)
        check_quantisation(config)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    quantised = getattr(config, "quantization_config", None) is not None  # how large it is, its method alone knows
    read = [] if quantised else dict.fromkeys([device, torch.device("cpu")])  # by way of the CPU
    for place in [device] if random else read:
        _check_memory(name, config, place, dtype, trust_remote_code)
    with _explained(source, revision, random=random):
        if random_seed is None:
            model: Any = auto_class(config).from_pretrained(source, config=config, **_how(config, dtype), **options)
        else:
            model = _draw(config, device, dtype, trust_remote_code, random_seed)
            name = random_name(name, random_seed)
        model = model.to(device)
    lm = LanguageModel(model, tokenizer, name, hub_commit(source, revision))
    lm.check_words()
    lm.check_logits()
    return lm


def random_name(name: str, seed: int) -> str:
    """What records and boards call a model with random weights."""
    return f"{name} with random weights (seed {seed})"


@_in_one_line
def language_model_shape(
    name_or_path: str,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    trust_remote_code: bool = False,
    published: bool = True,
) -> LanguageModel:
    """A language model without its weights: under torch's FakeTensorMode it takes no memory, and a run can be planned.

    A model of `ls models` asks for neither network nor licence: its configuration is the cached one, or else the
    published one, and in its tokenizer's place stands one that opens contexts and knows no word. Without `published` it
    has its own, as any other has.

    Raises UserError for any other model whose configuration or tokenizer cannot be had.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    shape = known_shape(name_or_path) if published else None
    if shape is None:
        name, source = resolve_model(name_or_path)
        with _explained(source, revision):
            config = _config(name_or_path, source, options, published=False)
            check_quantisation(config)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            skeleton = build_skeleton(config, trust_remote_code=trust_remote_code, **_how(config, dtype))
        lm = LanguageModel(skeleton, tokenizer, name, hub_commit(source, revision))
        lm.check_words()
        return lm
    on_hub = name_or_path in {*HUB_MODELS, *HUB_MODELS.values()}  # the demo model is not made for a plan
    name = resolve_model(name_or_path)[0] if on_hub else name_or_path
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    config = AutoConfig.from_pretrained(cached) if isinstance(cached, str) else AutoConfig.for_model(**shape["config"])
    words = Tokenizer(models.WordLevel({"<bos>": 0}, unk_token="<bos>"))
    opener = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>")
    skeleton = build_skeleton(config, trust_remote_code=trust_remote_code, **_how(config, dtype))
    return LanguageModel(skeleton, opener, name)


def count_layers(name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> int:
    """Decoder layers of a model, read in its configuration; one of `ls models` asks for no network.

    Raises UserError for any other model whose configuration cannot be had, or does not say how many.
    """
    found = known_layers(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    if found is None:
        raise UserError(
            f"the configuration of {name_or_path} does not say how many layers it has: name some by --layer"
        )
    return found


def known_layers(name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> int | None:
    """As `count_layers`; None where the configuration does not say."""
    known = known_shape(name_or_path)
    if known is not None and "num_hidden_layers" in known["config"]:
        return int(known["config"]["num_hidden_layers"])
    _, source = resolve_model(name_or_path)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _explained(source, revision):
        text = _config(name_or_path, source, options, published=True).get_text_config()
    found: int | None = getattr(text, "num_hidden_layers", None)
    return found


def _config(name_or_path: str, source: str, options: Mapping[str, Any], *, published: bool) -> PreTrainedConfig:
    """The model's own configuration; where it cannot be had and `published` allows it, the one that is known here."""
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception:
        if not published or (shape := known_shape(name_or_path)) is None:
            raise
        config = AutoConfig.for_model(**shape["config"])
    assert isinstance(config, PreTrainedConfig)
    return config


def _build(config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """The model with weights as its class initialises them, on torch's current device."""
    model: PreTrainedModel = auto_class(config).from_config(
        config, trust_remote_code=trust_remote_code, **_how(config, dtype)
    )
    return model


def _how(config: PreTrainedConfig, dtype: torch.dtype) -> dict[str, Any]:
    # The scaled-dot-product kernel cannot soft-cap attention scores.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {"dtype": dtype, "attn_implementation": "eager" if capped else None}


def _draw(
    config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, seed: int
) -> PreTrainedModel:
    """The model with random weights, from numbers of their own: those of `seed` itself are what SAEs are drawn from."""
    digest = hashlib.sha256(f"language model {seed}".encode()).hexdigest()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(int(digest[:15], 16))
        return _build(config, dtype, trust_remote_code)


def _check_memory(
    name: str, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> None:
    """Raise UserError if the weights alone are more than the device has left."""
    free = free_bytes(device)
    if free is None:
        return
    with torch.device("meta"):
        skeleton = _build(config, dtype, trust_remote_code)
    n_bytes = sum(weight.nbytes for weight in skeleton.parameters())
    if n_bytes > free:
        halved = "--dtype bfloat16, " if dtype == torch.float32 else ""
        raise UserError(
            f'model "{name}" needs {n_bytes / 1e9:.2f} GB in {str(dtype).removeprefix("torch.")}, and {device} has '
            f"{free / 1e9:.2f} GB left: free some, or try {halved}another --device or a smaller model"
        )


def hub_commit(source: str, revision: str | None) -> str | None:
    """Return the commit hash under which the hub's cache keeps a model that was just loaded, None for a folder."""
    if Path(source).is_dir():
        return None
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


@contextmanager
def _explained(source: str, revision: str | None, *, random: bool = False) -> Iterator[None]:
    """What a loader raises becomes one line with a remedy; `random` weights are none that are missing."""
    try:
        with quiet_hub():
            yield
    except Exception as error:  # a loader raises anything: OSError, KeyError, what a model's own code raises
        enough = "; with --random-lm a folder with config.json and the tokenizer is enough" if random else ""
        raise UserError(_explanation(source, revision, error) + enough) from error


def _explanation(source: str, revision: str | None, error: Exception) -> str:
    """What transformers and the hub raise while loading `source`, in one line with a remedy."""
    # The hub's own exceptions say more than the OSError that transformers wraps around them.
    cause = error if error.__cause__ is None else error.__cause__
    page = f"https://huggingface.co/{source}"
    if isinstance(cause, GatedRepoError):
        return f'model "{source}" is gated: accept its licence at {page} and run `hf auth login`'
    if isinstance(cause, RepositoryNotFoundError):
        return f'model "{source}" is not on the hub: check the name, or run `hf auth login` if it is private'
    if isinstance(cause, RevisionNotFoundError):
        return f'model "{source}" has no revision "{revision}": choose one listed at {page}'
    if isinstance(cause, ConnectionError) or "connect" in str(error):
        return f'model "{source}" cannot be downloaded: check the network, or give a local folder instead'
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    if isinstance(error, KeyError):
        reason = f"KeyError: {reason}"
    if isinstance(error, ImportError):
        return f'model "{source}" cannot be loaded ({reason}): install that, or choose a checkpoint without need of it'
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return f'model "{source}" has no room ({reason}): free some memory, or try another --device or a smaller model'
    return f'model "{source}" cannot be loaded ({reason}): give another folder or a causal LM from the hub'
