"""How fast stages of earlier runs went on this machine: kept in the cache folder, for the next run's plan."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_bench.lm.activations import ActivationModel
from sae_bench.records.kept import keep, read_kept
from sae_bench.records.names import cache_folder
from sae_bench.records.schema import SAEDescription
from sae_bench.runs.config import RunConfig
from sae_bench.runs.provenance import environment


@dataclass(frozen=True)
class Rate:
    """Tokens per second that went through all SAEs of a run together, and the seconds of the run that showed it."""

    tokens_per_second: float
    seconds: float


def _key(stage: str, lm: ActivationModel, config: RunConfig, saes: Sequence[SAEDescription]) -> str:
    """What decides how fast a stage goes: all but the number of tokens, L0s and seeds."""
    place = environment(lm.device)
    kinds = Counter(f"{sae.label} at {sae.site.name}, width {sae.d_sae}" for sae in saes)
    batches = f"contexts of {config.context_size}, batches of {config.batch_size} used {config.reuse} times"
    return (
        f"{stage} on {place['device']}, {place['threads']} threads: {lm.name} in {lm.dtype}, {batches}; "
        + "; ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    )


def _path() -> Path:
    return cache_folder() / "rates.json"


def _rates() -> dict[str, dict[str, float]]:
    """All rates, by `_key`; none where the file is damaged: they are an estimate, and no run shall fail for one."""
    return read_kept(_path())


def known_rate(stage: str, lm: ActivationModel, config: RunConfig, saes: Sequence[SAEDescription]) -> Rate | None:
    """What the longest such stage of an earlier run showed here; None if there was none."""
    found, key = _rates(), _key(stage, lm, config, saes)
    return Rate(**found[key]) if key in found else None


def remember_rate(
    stage: str, lm: ActivationModel, config: RunConfig, saes: Sequence[SAEDescription], n_tokens: int, began: float
) -> None:
    """Keep how fast a stage went that began at `began` (`time.monotonic`), unless a longer one is known.

    Where that cannot be done a word says so: what was made in that time is worth more than how long it took.
    """
    seconds = time.monotonic() - began
    if config.activations_cache is not None:
        return  # another run would have to run its language model
    known = known_rate(stage, lm, config, saes)
    if n_tokens and (known is None or known.seconds <= seconds):
        rate = {"tokens_per_second": n_tokens / seconds, "seconds": seconds}
        keep(_path(), _rates() | {_key(stage, lm, config, saes): rate})


def step_part(label: str, d_in: int, d_sae: int) -> str:
    """The part of the work that the steps of such an SAE are."""
    return f"steps of {label}, {d_in} x {d_sae}"


def known_part(part: str, lm: ActivationModel, config: RunConfig, threads: int | None = None) -> float | None:
    """How much of a part of the work was done here in a second; None if it was not measured. See `remember_parts`."""
    found = _rates().get(_part_key(part, lm, config, threads or torch.get_num_threads()))
    return found["tokens_per_second"] if found else None


def remember_parts(lm: ActivationModel, config: RunConfig, parts: Mapping[str, tuple[float, float]]) -> None:
    """Keep how much was done of each part of the work, and the seconds that it took.

    The parts are what a plan for several devices is put together from: "capture" and "evaluation", in tokens through
    one decoder layer; "start", in starts; and those of `step_part`, in steps.
    """
    if config.activations_cache is not None:
        return
    threads = torch.get_num_threads()
    new = {
        _part_key(part, lm, config, threads): {"tokens_per_second": amount / seconds, "seconds": seconds}
        for part, (amount, seconds) in parts.items()
        if amount and seconds > 0
    }
    keep(_path(), _rates() | new)


def _part_key(part: str, lm: ActivationModel, config: RunConfig, threads: int) -> str:
    place = f"{part} on {environment(lm.device)['device']}, {threads} threads"
    batches = f"contexts of {config.context_size}, batches of {config.batch_size}"
    return f"{place}: {batches}" if part.startswith("steps") else f"{place}: {lm.name} in {lm.dtype}, {batches}"
