"""What a run's settings say against each other, each of them being in its range."""

from typing import TYPE_CHECKING

from sae_bench.errors import UserError
from sae_bench.synthetic.settings import NAME

if TYPE_CHECKING:
    from sae_bench.runs.config import RunConfig


def check_together(config: "RunConfig") -> None:
    """See that the settings of a run go together.

    Raises:
        UserError: some do not.
    """
    if not config.archs and not config.saes:
        raise UserError("--arch: name an architecture, or give an SAE with --sae")
    if config.tokens * config.reuse < config.batch_size:
        served = f"--tokens {config.tokens} used {config.reuse} times"
        raise UserError(f"{served} is less than one batch of {config.batch_size}: raise --tokens")
    if config.world is not None:
        _check_world(config)
    if config.recipe is not None:
        config.recipe.check(config.preset, config.split)
    if config.kernels == "dense" and config.screening == "on":
        raise UserError("--screening on finds few pairs, and --kernels dense works on all: leave out one of the two")
    if config.probe_sets:
        _check_unprobed(config)
    if config.activations_cache == "":
        raise UserError("--activations-cache: name a folder")
    if config.cache_limit is not None and config.activations_cache is None:
        raise UserError("--cache-limit bounds --activations-cache: name its folder, or leave it out")


def _check_world(config: "RunConfig") -> None:
    """Raise UserError for what a language model has, and a synthetic world does not."""
    for flag, given in (
        ("--layer", config.layers), ("--random-lm", config.random_lm),
        ("--site", config.sites != (NAME,)), ("--dataset", config.dataset != NAME), ("--revision", config.revision),
        ("--activations-cache", config.activations_cache),
    ):  # fmt: skip
        if given:
            raise UserError(f"{flag} is for language models: leave it out with --model {config.model}")


def _check_unprobed(config: "RunConfig") -> None:
    """Raise UserError if probes would be asked about text that SAEs learn from, or that their recipe was tuned on."""
    from sae_bench.probing.sets import NATURAL, SMALL  # loads numpy

    beyond = [name for name in config.probe_sets if name not in ("small", *SMALL)]
    if beyond and config.dataset == "natural":
        raise UserError(
            f"--probe-sets {beyond[0]}: --dataset natural has these texts, and a probe is not asked about what was "
            "trained on: give sets of small, or another --dataset"
        )
    if beyond and config.recipe is not None and config.recipe.dataset.startswith(NATURAL):
        raise UserError(
            f"--probe-sets {beyond[0]}: --recipe {config.recipe.name} was tuned on these texts (--dataset natural), "
            "and a probe is not asked about what settings were chosen by: give sets of small, or another recipe"
        )
