"""What a run names, seen before a model is loaded: plugins, settings, sites, layers, corpus and judge."""

from collections.abc import Iterable
from itertools import product

from sae_bench.autointerp.judges import check_judge
from sae_bench.errors import UserError, did_you_mean
from sae_bench.evaluation.task import latent_tasks
from sae_bench.lm.corpus import check_source, describe, size_of
from sae_bench.lm.load import known_layers
from sae_bench.lm.sites import KINDS
from sae_bench.runs.config import RunConfig
from sae_bench.runs.plan import check_l0, check_names, check_tuned, settle

LETTERS_PER_TOKEN = 4
"""Of English text, about."""

OWN_CORPUS = ("demo",)
"""Models that the embedded corpus is for."""


def check(config: RunConfig, tasks: Iterable[str]) -> None:
    """See that everything that the run names is there, as far as this shows without the model itself.

    Of its tasks, which are to be run, those about latents ask a judge.

    Raises:
        UserError: something is not.
    """
    check_names(config)
    if config.tuned is not None:
        check_tuned(config.archs, config.tuned)  # all that it lacks, in one line
    for arch in config.archs:
        settle(arch, config.preset, config.tuned)
        for l0, width in product(config.l0s, config.widths):
            check_l0(arch.label, l0, width)
    if latent_tasks(tasks):
        check_judge(config)
    if config.world is None:
        _check_places(config)
        check_source(config.dataset)


def _check_places(config: RunConfig) -> None:
    for site in config.sites:
        if site not in KINDS and not site.startswith("path:"):
            raise UserError(f'unknown site "{site}"{did_you_mean(site, (*KINDS, "path:MODULE"))}')
    numbered = [site for site in config.sites if site in KINDS or "{layer}" in site]
    if not (config.layers and numbered and config.archs):
        return
    n_layers = known_layers(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    for layer in config.layers:
        if n_layers is not None and not 0 <= layer < n_layers:
            raise UserError(f"--layer {layer}: {config.model} has layers 0..{n_layers - 1}; choose one of them")


def default_corpus(config: RunConfig) -> list[str]:
    """What nobody may have chosen: that a model of which no corpus is known trains on the embedded one."""
    if config.world is not None or not config.archs or config.dataset != "embedded" or config.model in OWN_CORPUS:
        return []
    corpus = describe(config.dataset)
    return [f"no corpus is known for {config.model}: it trains on the embedded one, {corpus}; --dataset names another"]


def repeats(config: RunConfig) -> list[str]:
    """How often training reads a corpus again that has fewer tokens than are wanted, where its size is known."""
    n_letters = size_of(config.dataset) if config.world is None and config.archs else None
    n_tokens = (n_letters or 0) // LETTERS_PER_TOKEN
    if not 0 < n_tokens < config.tokens:
        return []
    return [
        f"{config.dataset} has about {n_tokens:,} tokens: --tokens {config.tokens:,} read it about "
        f"{config.tokens / n_tokens:.1f} times (computed, {LETTERS_PER_TOKEN} letters a token)"
    ]
