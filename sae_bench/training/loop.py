"""The one training loop: for every batch of the stream, one step of every SAE.

What happens to one SAE is its own affair: it may diverge, raise an exception or want more memory than there is, and the
others go on. A signal to stop is heard between steps.
"""

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sae_bench.progress import Progress
from sae_bench.signals import shielded
from sae_bench.training.buffer import ActivationStream
from sae_bench.training.logging import LogSink
from sae_bench.training.trainer import Trainee

log = logging.getLogger(__name__)

N_LOGGED = 100
"""Logging steps of a run."""


@runtime_checkable
class AfterStep(Protocol):
    """Who is told that steps are done, and takes checkpoints: a Keeper."""

    def after_step(self, n_done: int) -> None:
        """Called after every step, between two."""

    def save(self, n_done: int) -> None:
        """Called when the training stops: at its end, or where it is interrupted."""


def train(
    trainees: Sequence[Trainee],
    stream: ActivationStream,
    progress: Progress,
    sink: LogSink = lambda sae_id, row: None,
    *,
    n_done: int = 0,
    keeper: AfterStep | None = None,
) -> None:
    """Train every SAE on the stream, from step `n_done` on; stream and trainees have been started or restored.

    Every row of a training log also goes to `sink`. A signal that says to stop is heard between steps: `keeper` saves,
    and KeyboardInterrupt is raised.
    """
    first, n_steps = n_done, n_done + stream.n_left
    every = max(1, n_steps // N_LOGGED)
    within = False
    try:
        for step, batch in enumerate(progress.track("train", stream.batches(), stream.n_left), n_done):
            logged = step % every == 0 or step == n_steps - 1
            with shielded():
                within = True
                alive = [trainee for trainee in trainees if trainee.failure is None]
                for trainee in alive:
                    try:
                        trainee.step(batch[trainee.site, trainee.seed], step, logged=logged)
                    except Exception as error:  # noqa: BLE001 (whatever it is, the others go on)
                        trainee.fail(error, step)
                        continue
                    if logged:
                        _tell(sink, trainee)
                n_done, within = step + 1, False
            if logged and alive:
                progress.note = _summary(alive)
            if not alive:
                break
            if keeper is not None:
                keeper.after_step(n_done)
    except (KeyboardInterrupt, Exception):  # a signal, or a stream that cannot go on
        if keeper is not None and not within and n_done > first:
            keeper.save(n_done)
        raise
    if keeper is not None:
        keeper.save(n_done)


def _tell(sink: LogSink, trainee: Trainee) -> None:
    """A log that nobody can write any more is no reason to stop training."""
    try:
        sink(trainee.id, trainee.log[-1])
    except Exception:
        log.exception("the training log cannot be shown")


def _summary(trainees: Sequence[Trainee]) -> str:
    rows = [trainee.log[-1] for trainee in trainees if trainee.log]
    if not rows:
        return ""
    fve = [row["fve"] for row in rows]
    l0 = [row["l0"] for row in rows]
    return f"fve {min(fve):.3f}..{max(fve):.3f}  l0 {min(l0):.0f}..{max(l0):.0f}"
