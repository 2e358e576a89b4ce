"""The one training loop: for every batch of activations, one step of every SAE.

What happens to one SAE is its own affair: it may diverge, raise an exception or want more memory than there is, and the
others go on. A signal to stop is heard between steps.
"""

import logging
from collections.abc import Sequence

from sae_bench.device import trim_memory
from sae_bench.progress import Progress
from sae_bench.signals import shielded
from sae_bench.training.checkpoint import CheckpointSaver
from sae_bench.training.logging import LogSink
from sae_bench.training.source import ActivationSource
from sae_bench.training.trainer import SAETrainer

log = logging.getLogger(__name__)

N_LOGGED = 100
"""Logging steps of a run."""


def train(
    trainers: Sequence[SAETrainer],
    source: ActivationSource,
    progress: Progress,
    sink: LogSink = lambda sae_id, row: None,
    *,
    n_done: int = 0,
    saver: CheckpointSaver | None = None,
) -> None:
    """Train every SAE on what is left in the source, from step `n_done` on.

    Every row of a training log also goes to `sink`. A signal that says to stop is heard between steps: `saver` saves,
    and KeyboardInterrupt is raised.
    """
    first, n_steps = n_done, n_done + source.n_left
    every = max(1, n_steps // N_LOGGED)
    within = False
    try:
        for step, batch in enumerate(progress.track("train", source.batches(), source.n_left), n_done):
            logged = step % every == 0 or step == n_steps - 1
            with shielded():
                within = True
                alive = [trainer for trainer in trainers if trainer.failure is None]
                for trainer in alive:
                    try:
                        trainer.step(batch[trainer.key], step, logged=logged)
                    except Exception as error:  # noqa: BLE001 (whatever it is, the others go on)
                        trainer.fail(error, step)
                        continue
                    if logged:
                        trim_memory(trainer.sae.W_dec.device)
                        _tell(sink, trainer)
                n_done, within = step + 1, False
            if logged and alive:
                progress.note = _summary(alive)
            if not alive:
                break
            if saver is not None:
                saver.after_step(n_done)
    except (KeyboardInterrupt, Exception):  # a signal, or a source that cannot go on
        if saver is not None and not within and n_done > first:
            saver.save(n_done)
        raise
    if saver is not None:
        saver.save(n_done)


def _tell(sink: LogSink, trainer: SAETrainer) -> None:
    """A log that nobody can write any more is no reason to stop training."""
    if not trainer.sae.is_trained:
        return
    try:
        sink(trainer.id, trainer.log[-1])
    except Exception:
        log.exception("the training log cannot be shown")


def _summary(trainers: Sequence[SAETrainer]) -> str:
    rows = [trainer.log[-1] for trainer in trainers if trainer.log]
    if not rows:
        return ""
    fve = [row["fve"] for row in rows]
    l0 = [row["l0"] for row in rows]
    return f"fve {min(fve):.3f}..{max(fve):.3f}  l0 {min(l0):.0f}..{max(l0):.0f}"
