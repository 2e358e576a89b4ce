"""The pass over text that tasks bring: its activations are captured once for all SAEs, and fed to every one's task.

Of one object of passages what is captured at some sites is held at once, and no more: where all sites of a run would
take too much, they are worked through in groups, each with a pass of its own. How contexts make batches is decided by
the passages and the language model alone, so that an SAE's numbers do not depend on which others are beside it.

Contexts of a batch are filled up behind their ends: what stands there comes after all that is looked at, and a causal
model cannot see it.

Shapes: n positions that are wanted, D width of a site.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.device import halved, send
from sae_bench.evaluation.loop import Candidate, contexts_at_once
from sae_bench.evaluation.task import OwnText, Passages, TextTask
from sae_bench.lm.finite import check_finite
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site
from sae_bench.progress import Progress

log = logging.getLogger(__name__)

HELD_BYTES = 1 << 30
"""Bound on the activations that are held at once; one site is worked on at least."""

MAX_BATCH = 256

USUAL_CONTEXT = 128
"""Of shorter contexts more are run at a time: as many tokens as there are of this length."""


@torch.no_grad()
def measure_texts(
    lm: LanguageModel,
    texts: Mapping[str, OwnText],
    candidates: Sequence[Candidate[TextTask]],
    progress: Progress,
) -> None:
    """Run every task of every candidate on the task's text, one of `texts`; fill in `results` or `failures`."""
    for name, text in texts.items():
        with_it = [candidate for candidate in candidates if name in candidate.tasks]
        try:
            _measure(lm, name, text, with_it, progress)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the text's own code, which may be a plugin's
            log.exception("%s failed", name)
            for candidate in with_it:
                candidate.fail([name], error)


def _measure(
    lm: LanguageModel, name: str, text: OwnText, candidates: Sequence[Candidate[TextTask]], progress: Progress
) -> None:
    everything = list(text.passages(lm.tokenizer, lm.max_context)) if candidates else []
    for sites in _groups(everything, list(dict.fromkeys(candidate.site for candidate in candidates))):
        here = [candidate for candidate in candidates if candidate.site in sites]
        for passages in progress.track(name, everything, len(everything)):
            x = positions_of(lm, passages, sites)
            for site in sites:
                shared = text.of_site(passages, x[site])
                for candidate in here:
                    if candidate.site == site and name not in candidate.failures:
                        with candidate.guarded([name]):
                            candidate.tasks[name].update(passages, x[site], candidate.sae, shared)
    for candidate in candidates:
        if name not in candidate.failures:
            with candidate.guarded([name]):
                candidate.results[name] = candidate.tasks[name].finish().checked()


def _groups(everything: Iterable[Passages], sites: Sequence[Site]) -> Iterator[list[Site]]:
    """The sites in groups whose activations are held at once."""
    most = max((sum(map(len, passages.wanted)) for passages in everything), default=0)
    group: list[Site] = []
    for site in sites:
        if group and 4 * most * sum(one.d_in for one in [*group, site]) > HELD_BYTES:
            yield group
            group = []
        group.append(site)
    if group:
        yield group


@torch.no_grad()
def positions_of(lm: LanguageModel, passages: Passages, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "n D"]]:
    """The activations at the positions that passages want, in their order, in float32, on the model's device.

    Where memory does not suffice, half as many contexts are run at a time.

    Raises:
        UserError: activations are not finite.
    """
    size = MAX_BATCH
    while True:
        try:
            return _positions_of(lm, passages, sites, size)
        except torch.OutOfMemoryError:
            size = halved(size, "contexts of a task's own text")


def _positions_of(
    lm: LanguageModel, passages: Passages, sites: Sequence[Site], size: int
) -> dict[Site, Float[Tensor, "n D"]]:
    wanted = passages.wanted
    starts = torch.tensor([0, *map(len, wanted)]).cumsum(0).tolist()
    x = {site: torch.empty(starts[-1], site.d_in, device=lm.device) for site in sites}
    finite = {site: torch.ones((), dtype=torch.bool, device=lm.device) for site in sites}
    for batch in _batches(lm, passages, size):
        length = max(len(passages.contexts[i]) for i in batch)
        tokens = torch.full((len(batch), length), passages.contexts[0][0])
        for row, i in enumerate(batch):
            tokens[row, : len(passages.contexts[i])] = torch.tensor(passages.contexts[i])
        places = torch.tensor([row * length + at for row, i in enumerate(batch) for at in wanted[i]])
        rows = torch.tensor([starts[i] + k for i in batch for k in range(len(wanted[i]))])
        places, rows = send(places, lm.device), send(rows, lm.device)
        for site, whole in lm.capture(tokens, sites, check=False).items():
            found = whole.flatten(0, 1)[places].float()
            finite[site] &= torch.isfinite(found).all()
            x[site][rows] = found
    for site in sites:
        check_finite(site, finite[site], lm.dtype)
    return x


def _batches(lm: LanguageModel, passages: Passages, size: int) -> Iterator[list[int]]:
    """The contexts' numbers, those of like length together, up to `size` and no more tokens than evaluation holds."""
    batch: list[int] = []
    for i in sorted(range(len(passages.contexts)), key=lambda i: len(passages.contexts[i])):
        length = len(passages.contexts[i])
        whole = max(length, USUAL_CONTEXT)
        if batch and len(batch) >= min(size, contexts_at_once(lm, whole) * (whole // length)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
