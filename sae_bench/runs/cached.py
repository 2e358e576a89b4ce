"""A run's language model behind a cache of its activations: `--activations-cache DIR`."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig

from sae_bench.activations_cache.identity import (
    FORMAT,
    files_digest,
    folder_of,
    known_hashes,
    nearest_other,
    write_manifest,
)
from sae_bench.activations_cache.model import CachedModel
from sae_bench.activations_cache.sizes import Need, bytes_in, in_words
from sae_bench.activations_cache.store import PassStore
from sae_bench.errors import UserError
from sae_bench.lm.corpus import describe
from sae_bench.lm.load import language_model_shape, random_name
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.model_names import resolve_model
from sae_bench.lm.sites import Site
from sae_bench.progress import Progress
from sae_bench.records.files import digest_of
from sae_bench.runs.config import RunConfig
from sae_bench.runs.provenance import environment

DECIDING = ("torch", "transformers")
"""Packages whose version may decide how a product is rounded."""


def cached_model(
    config: RunConfig,
    device: torch.device,
    dtype: torch.dtype,
    load: Callable[[], LanguageModel],
    progress: Progress,
    **about: Any,
) -> CachedModel:
    """The run's language model, loaded by `load` where the cache does not do; `about` are attributes it will have.

    Raises:
        UserError: the cache has no room for the run, or is damaged.
    """
    assert config.activations_cache is not None, "no cache is asked for"
    root = Path(config.activations_cache)
    if root.exists() and not root.is_dir():
        raise UserError(f"--activations-cache {root} is a file: name a folder")
    name, source = resolve_model(config.model)
    name = config.folder_name or name
    about["name"] = random_name(name, config.seeds[0]) if config.random_lm else name
    mode = FakeTensorMode()
    with mode:
        shape = language_model_shape(
            config.model,
            dtype=dtype,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            published=False,
        )
        sites = {site for part in config.parts() if part.archs for site in shape.find_sites(part.sites, part.layers)}
    identity = _identity(config, shape, device, source, **about)
    known = known_hashes(root, identity)
    folder = folder_of(root, identity)
    cache_need(config, sites, dtype).check(root, folder, config.cache_limit)
    if known is None:
        other = nearest_other(root, identity)
        near = f" (the nearest there differs: {other})" if other else ""
        progress.say(f"activations cache: nothing of this run in {root}{near}; what is captured is kept")
        loaded = load()
        load, known = (lambda: loaded), (loaded.weight_hash(), loaded.buffer_hash())
        identity = _identity(config, shape, device, source, **about)  # its files may have come just now
        folder = folder_of(root, identity)
    else:
        progress.say(f"activations cache: {folder}; {config.model} is loaded where that does not do")
    hashes = known

    def begun() -> None:
        if known_hashes(root, identity) is None:
            write_manifest(root, identity, *hashes)

    if folder.is_dir():
        begun()
    alone = influence_each_other(shape.config)
    store = PassStore(folder, digest_of(identity), root, config.cache_limit, alone=alone, begun=begun)
    return CachedModel(shape, mode, load, store, known, device=device, dtype=dtype, **about)


def cache_need(config: RunConfig, sites: Collection[Site], dtype: torch.dtype) -> Need:
    """What the activations of a run's own SAEs take, in training and evaluation."""
    return Need.of(set(sites), set(sites), dtype, config.tokens, config.n_held_out, config.context_size)


def describe_cache(config: RunConfig, sites: Collection[Site], dtype: torch.dtype) -> list[str]:
    """What a dry run says of it, if there is one.

    Raises:
        UserError: it would never have room for the run.
    """
    if config.activations_cache is None:
        return []
    need, root = cache_need(config, sites, dtype), Path(config.activations_cache)
    if config.cache_limit is not None and need.total > config.cache_limit:
        need.check(Path(config.activations_cache), None, config.cache_limit)
    limit = f" of {in_words(config.cache_limit)} that it may take" if config.cache_limit else ""
    each = sum(site.d_in for site in sites) * dtype.itemsize
    return [
        f"cache      about {in_words(need.total, up=True)}{limit} in {root} (computed: {each:,} bytes a token at "
        f"{len(sites)} sites); {in_words(bytes_in(root))} are there"
    ]


def influence_each_other(config: PreTrainedConfig) -> bool:
    """Whether contexts of a pass may decide how each other's products are rounded: experts take them in one product."""
    return any("expert" in key and value for key, value in config.to_dict().items())


def _identity(
    config: RunConfig, shape: LanguageModel, device: torch.device, source: str, **about: Any
) -> dict[str, Any]:
    """What decides the bits of the run's activations."""
    here = environment(device)
    products = ", bfloat16 products" if about.get("bfloat16_products") else ""
    return {
        "format": FORMAT,
        "model": about.get("name", shape.name),
        "model_files": files_digest(source, config.revision),
        "tokenizer_sha256": shape.tokenizer_hash(),
        "dtype": shape.precision + products,
        "context_size": config.context_size,
        "dataset": describe(config.called_as(config.dataset)),
        "text_column": config.text_column,
        "split": config.split,
        "device": here["device"],
        "threads": here["threads"] if device.type == "cpu" else None,
        "versions": {name: here["versions"][name] for name in DECIDING},
    }
