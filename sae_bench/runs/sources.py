"""What a run's settings name: what gives its activations, and the contexts that it trains and evaluates on."""

from functools import partial

import torch

from sae_bench.activations_cache.identity import files_digest
from sae_bench.activations_cache.model import CachedModel
from sae_bench.device import choose_device, multiplies_bfloat16
from sae_bench.lm.activations import ActivationModel, ContextStream
from sae_bench.lm.corpus import corpus_hash
from sae_bench.lm.load import language_model_shape, load_language_model
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.model_names import resolve_model
from sae_bench.lm.near_duplicates import Split
from sae_bench.progress import Progress
from sae_bench.runs.cached import cached_model
from sae_bench.runs.config import RunConfig
from sae_bench.synthetic.settings import WorldSettings
from sae_bench.synthetic.world import World
from sae_bench.training.buffer import ActivationBuffer

ORDER_SEED = 0
"""Documents come in one order for every run, so that runs on one corpus evaluate on the same tokens."""


def load_model(config: RunConfig, progress: Progress) -> ActivationModel:
    """What gives the run's activations, a language model; with --random-lm, drawn from the run's first seed.

    With --dtype auto a CPU multiplies in bfloat16 where it can. With --activations-cache it is loaded once something is
    asked for that the cache has not.
    """
    device, dtype = choose_device(config.device, config.dtype)
    if config.world is not None:
        progress.say(f"making the world {config.model} on {device}")
        return _world(config, config.world, device, dtype)
    products = config.dtype == "auto" and multiplies_bfloat16(device)
    load = partial(_loaded, config, device, dtype, products, progress)
    if config.activations_cache is None:
        return load()
    return cached_model(config, device, dtype, load, progress, bfloat16_products=products)


def _loaded(
    config: RunConfig, device: torch.device, dtype: torch.dtype, bfloat16_products: bool, progress: Progress
) -> LanguageModel:
    what = f"drawing the weights of {config.model} anew" if config.random_lm else f"loading {config.model}"
    progress.say(f"{what} ({str(dtype).removeprefix('torch.')} on {device})")
    lm = load_language_model(
        config.model,
        called=config.folder_name,
        device=device,
        dtype=dtype,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        random_seed=config.seeds[0] if config.random_lm else None,
    )
    lm.bfloat16_products = bfloat16_products
    return lm


def language_model(lm: ActivationModel) -> LanguageModel:
    """The language model itself, loaded where a cache stands in its place; nothing that it captures is kept."""
    if isinstance(lm, CachedModel):
        return lm.loaded()
    assert isinstance(lm, LanguageModel), "others have no text, and predict nothing"
    return lm


def digests_of(config: RunConfig) -> dict[str, str | None]:
    """By what a run's model and text are known before anything is loaded: SHA-256 (hex) of their files.

    None where nobody has them whole: what is on the hub and not on this machine, and a world, which its settings say.
    """
    if config.world is not None:
        return {"language model": None, "text": None}
    model = files_digest(resolve_model(config.model)[1], config.revision)
    return {"language model": model, "text": corpus_hash(config.dataset)}


def model_shape(config: RunConfig, dtype: torch.dtype) -> ActivationModel:
    """The same without its weights, to plan a run: see `language_model_shape`."""
    if config.world is not None:
        return _world(config, config.world, torch.device("cpu"), dtype)
    return language_model_shape(
        config.model, dtype=dtype, revision=config.revision, trust_remote_code=config.trust_remote_code
    )


def _world(config: RunConfig, settings: WorldSettings, device: torch.device, dtype: torch.dtype) -> World:
    """A synthetic world, whose activations are float32 unless another dtype is asked for."""
    return World(settings, config.called_as(config.model), device, torch.float32 if config.dtype == "auto" else dtype)


def token_stream(
    lm: ActivationModel, config: RunConfig, split: Split, n_tokens: int, after: int = 0, flag: str = "--eval-tokens"
) -> ContextStream:
    """The run's training or evaluation tokens; `after` as many more held-out ones, named by `flag` in messages."""
    return lm.stream(
        config.dataset,
        split=split,
        context_size=config.context_size,
        n_tokens=n_tokens,
        order_seed=ORDER_SEED,
        column=config.text_column,
        skip_tokens=(config.eval_skip, after) if split == "eval" else (),
        flag=flag,
        part=config.part,
    )


def own_capture(lm: ActivationModel, config: RunConfig, progress: Progress) -> "partial[ActivationBuffer]":
    """What opens the run's activations, captured in this process; what they share with the held-out text is counted."""
    tokens = token_stream(lm, config, "train", config.tokens)
    tokens.watch = token_stream(lm, config, "eval", config.n_held_out).shared_runs()
    return partial(ActivationBuffer, lm, tokens, progress=progress)


def interpretation_stream(lm: ActivationModel, config: RunConfig) -> ContextStream:
    """The tokens that latents are interpreted on: held out, and after those of the evaluation."""
    return token_stream(lm, config, "eval", config.interp_tokens_wanted, config.eval_tokens, "--interp-tokens")
