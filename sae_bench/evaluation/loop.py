"""The one evaluation pass: held-out tokens through the language model once, every SAE and every task fed from it.

First a pass to the deepest site alone gives each site's mean activation, which FVE and mean ablation need. Then, batch
by batch: one clean pass, the ablations, and for each SAE a replay of the layers after its site; losses come from the
final hidden states tile by tile through the vocabulary. The same tokens serve every SAE and every metric.

What is held of SAEs at once is bounded: they are worked through in groups, as many as fit. How many contexts a batch
has is decided by the language model and the context size alone: the numbers of an SAE are, to the last bit, the same
whichever others are evaluated beside it. Nothing in a batch waits for the device.

Shapes: n contexts in a batch, S tokens in each, D width of a site, c counted positions, m predictions. Positions are
numbered through all contexts of a batch, so that they index the rows of [n S, ...].
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.device import halved, has_cuda, trim_memory
from sae_bench.evaluation.task import BaseTask, EvalBatch, EvalSetting, LMLosses, Result, Task
from sae_bench.lm.ablations import Ablations
from sae_bench.lm.activations import ActivationModel, ContextStream, KnownFeatures
from sae_bench.lm.contexts import Contexts, site_means
from sae_bench.lm.losses import TILE_BYTES, token_losses
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.passes import run_pass
from sae_bench.lm.replay import CleanPass
from sae_bench.lm.sites import Site
from sae_bench.progress import Progress
from sae_bench.saes.active import Active, as_active
from sae_bench.saes.base import START_DENSITY, SAEConfig, SparseAutoencoder
from sae_bench.saes.kernel_choice import crossovers
from sae_bench.saes.kernels import kernels

log = logging.getLogger(__name__)

BATCH_BYTES = 512 << 20
"""Bound on what a batch holds of the language model, activations at sites apart, and on what it holds of a group of
SAEs; a batch is one context and a group one SAE at least."""

MAX_CONTEXTS = 16

PAIR_BYTES = 20
"""An active latent as it is held: token, latent, value."""

WORKING_BYTES = 48
"""Per number of an activation, while a decoder layer runs or a task computes in float64, one SAE at a time."""


T = TypeVar("T", bound=BaseTask)


@dataclass
class Candidate(Generic[T]):
    """An SAE under evaluation: it takes raw activations at its site; one task instance per task."""

    sae: SparseAutoencoder
    site: Site
    tasks: Mapping[str, T]
    siblings: Sequence[SparseAutoencoder] = ()
    """SAEs that differ from it in the seed alone."""
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Why a task has no result."""

    @contextmanager
    def guarded(self, tasks: Iterable[str]) -> Iterator[None]:
        """Let some tasks fail, and the others go on. Memory is not theirs alone: too little ends the whole pass."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            log.exception("%s failed", " and ".join(tasks))
            self.fail(tasks, error)

    def fail(self, tasks: Iterable[str], error: Exception) -> None:
        """Note why some tasks have no result; of two reasons the first stays."""
        for name in tasks:
            self.failures.setdefault(name, f"{type(error).__name__}: {error}")

    def running(self) -> list[tuple[str, T]]:
        """The tasks that have not failed."""
        return [(name, task) for name, task in self.tasks.items() if name not in self.failures]


@dataclass(frozen=True)
class Reply:
    """What an SAE makes of a batch, and what the model makes of that: its final hidden states at the predictions."""

    candidate: Candidate[Task]
    f: Active
    x_hat: Float[Tensor, "c D"]
    hidden: Float[Tensor, "m d_model"] | None

    @property
    def n_bytes(self) -> int:
        latents = min(PAIR_BYTES * self.f.values.numel(), 5 * self.f.n_tokens * self.candidate.sae.config.d_sae)
        return latents + self.x_hat.nbytes + (0 if self.hidden is None else self.hidden.nbytes)


@torch.no_grad()
def evaluate(
    lm: ActivationModel,
    stream: ContextStream,
    candidates: Sequence[Candidate[Task]],
    progress: Progress,
    means: dict[Site, Float[Tensor, " _"]] | None = None,
) -> None:
    """Run every task of every candidate over the stream's contexts and fill in their `results` or `failures`.

    `means` are the sites' mean activations, measured on the same tokens if they are not given. Where memory does not
    suffice the pass begins again with half as many contexts at a time. Tasks that need losses are for a language model
    alone.
    """
    sites = list(dict.fromkeys(candidate.site for candidate in candidates))
    size = contexts_at_once(lm, stream.context_size)
    while True:
        try:
            if means is None:
                means = site_means(lm, stream, sites, size, progress)
            _evaluate(lm, stream, candidates, means, size, progress)
            return
        except torch.OutOfMemoryError:
            size = halved(size, "contexts in an evaluation batch")


def _evaluate(
    lm: ActivationModel,
    stream: ContextStream,
    candidates: Sequence[Candidate[Task]],
    means: dict[Site, Float[Tensor, " D"]],
    size: int,
    progress: Progress,
) -> None:
    with_losses = any(task.needs_lm_loss for candidate in candidates for task in candidate.tasks.values())
    with_truth = any(task.needs_truth for candidate in candidates for task in candidate.tasks.values())
    world = lm if with_truth and isinstance(lm, KnownFeatures) else None
    ablations = words = None
    if with_losses:
        assert isinstance(lm, LanguageModel), "losses are a language model's"
        ablations, words = Ablations(lm, means), _word_counts(lm, stream)
    shared: dict[Site, dict[str, Any]] = {site: {} for site in means}
    for candidate in candidates:
        candidate.failures.clear()
        candidate.results.clear()
        mean, siblings = means[candidate.site], candidate.siblings
        setting = EvalSetting(
            candidate.sae, mean, stream.n_documents, lm.device, siblings, world, shared[candidate.site]
        )
        for name, task in candidate.tasks.items():
            with candidate.guarded([name]):
                task.start(setting)

    for batch in progress.track("evaluate", stream.batches(size), stream.n_contexts, lambda batch: len(batch.tokens)):
        contexts = Contexts.of(batch, lm.special_ids, lm.device, words)
        # `site_means` has seen that the same activations are finite.
        clean = ablations.lm.clean_pass(contexts.tokens, means, check=False) if ablations else None
        activations = clean.activations if clean else run_pass(lm, batch, list(means), len(batch.tokens))
        x = {site: whole.flatten(0, 1)[contexts.counted].float() for site, whole in activations.items()}
        places = (contexts.counted, contexts.predicts, contexts.targets, contexts.opening)
        truth = world.truth(contexts.tokens) if world else None
        ablated = ablations.losses(clean, *places) if ablations and clean else {}
        held: list[Reply] = []
        for i, candidate in enumerate(candidates, start=1):
            with candidate.guarded(candidate.tasks):
                if candidate.running():
                    held.append(_reply(candidate, x[candidate.site], clean, contexts))
            is_full = clean is None or sum(reply.n_bytes for reply in held) > BATCH_BYTES  # losses alone are shared
            if held and (i == len(candidates) or is_full):
                _score(held, x, clean, ablated, contexts, truth)
                held.clear()
            progress.within((2 * i - len(held)) / (2 * len(candidates)))  # of each SAE a replay, and its losses

    for candidate in candidates:
        for name, task in candidate.running():
            with candidate.guarded([name]):
                candidate.results[name] = task.finish().checked()


def _word_counts(lm: LanguageModel, stream: ContextStream) -> Int[Tensor, " V"]:
    """How often each word of the vocabulary occurs in the stream."""
    if not stream.words:
        stream.read()
    counts = torch.zeros(lm.n_vocab, dtype=torch.long)
    words = torch.tensor(list(stream.words))
    counts[words] = torch.tensor(list(stream.words.values()))
    return counts


def _reply(candidate: Candidate[Task], x: Float[Tensor, "c D"], clean: CleanPass | None, contexts: Contexts) -> Reply:
    with _encoding(candidate.sae.config, x):
        f = as_active(candidate.sae.encode(x))
    x_hat = candidate.sae.decode(f)
    hidden = clean.splice(candidate.site, contexts.counted, x_hat)[contexts.predicts] if clean else None
    return Reply(candidate, f, x_hat, hidden)


def _encoding(config: SAEConfig, x: Float[Tensor, "c D"]) -> AbstractContextManager[None]:
    """On a GPU an SAE is screened if that is faster; on a CPU its encoder is a hundredth of what its losses take."""
    if not has_cuda(x.device):
        return nullcontext()
    about = 1 << (len(x) - 1).bit_length()  # measured once for batches of about this size
    return kernels("auto", crossovers(config.d_in, config.d_sae, about, x.device))


def _score(
    replies: Sequence[Reply],
    x: Mapping[Site, Float[Tensor, "c _"]],
    clean: CleanPass | None,
    ablated: Mapping[Site, tuple[Float[Tensor, " m"], Float[Tensor, " m"]]],
    contexts: Contexts,
    truth: Float[Tensor, "c N"] | None,
) -> None:
    """Feed the tasks of some SAEs with a batch."""
    losses: list[LMLosses | None] = [None] * len(replies)
    if clean:
        assert isinstance(clean.lm, LanguageModel), "it is of one"
        hidden = [reply.hidden for reply in replies if reply.hidden is not None]
        scored = token_losses(clean.lm, clean.hidden.flatten(0, 1)[contexts.predicts], hidden, contexts.targets)
        losses = [
            LMLosses(
                contexts.target_document, scored.ce_clean, ce, *ablated[reply.candidate.site], kl, contexts.frequency
            )
            for reply, ce, kl in zip(replies, scored.ce, scored.kl, strict=True)
        ]
    for reply, loss in zip(replies, losses, strict=True):
        about = (contexts.document, loss, contexts.position, truth)
        view = EvalBatch(x[reply.candidate.site], reply.f, reply.x_hat, *about)
        for name, task in reply.candidate.running():
            with reply.candidate.guarded([name]):
                task.update(view)
        trim_memory(reply.x_hat.device)


def contexts_at_once(lm: ActivationModel, context_size: int) -> int:
    """How many contexts make a batch: as many as keep what is held of the language model within BATCH_BYTES.

    What is held of each site comes on top (`batch_bytes`): how many there are must not decide a batch's size.
    """
    per_token = (2 * lm.dtype.itemsize + WORKING_BYTES) * lm.d_model
    return max(1, min(MAX_CONTEXTS, BATCH_BYTES // (context_size * per_token)))


def batch_bytes(lm: ActivationModel, context_size: int, saes: Sequence[tuple[Site, SAEConfig]]) -> int:
    """About how many bytes the device holds at the height of a batch, weights apart."""
    word = lm.dtype.itemsize

    def of_sae(site: Site, config: SAEConfig) -> int:
        """Reconstruction, final hidden states, latents; for one token."""
        l0 = START_DENSITY * config.d_sae if config.l0 is None else config.l0
        return 4 * site.d_in + word * lm.d_model + round(PAIR_BYTES * l0)

    by_sae = [of_sae(site, config) for site, config in saes]
    sites = {site for site, _ in saes}
    # Of the model: final hidden states, whole and at the predictions; activations, as they are and in float32.
    shared = 2 * word * lm.d_model + sum((word + 4) * site.d_in for site in sites)
    working = WORKING_BYTES * max(lm.d_model, *(site.d_in for site in sites))
    n_tokens = contexts_at_once(lm, context_size) * context_size
    held = min(n_tokens * sum(by_sae), BATCH_BYTES + n_tokens * max(by_sae))
    tiles = 4 * TILE_BYTES.get(lm.device.type, TILE_BYTES["cuda"])
    return n_tokens * (shared + working) + held + tiles
