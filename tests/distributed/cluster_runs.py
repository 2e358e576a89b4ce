"""Plugins for runs on clusters, and when two runs are the same."""

from pathlib import Path

from command import files
from test_end_to_end import records_of, weights_of, without_times

PATIENT = '''
"""topk that takes its time while there is a file that says so."""
import time
from pathlib import Path
from sae_bench import ARCHITECTURES, register_architecture

@register_architecture("patient")
class Patient(ARCHITECTURES["topk"]):
    def after_step(self, step):
        super().after_step(step)
        if Path({slow!r}).exists():
            time.sleep(0.02)
'''

FATAL = '''
"""Takes its process with it."""
import os, signal
from sae_bench import Loss, SparseAutoencoder, reconstruction_loss, register_architecture

@register_architecture("fatal")
class Fatal(SparseAutoencoder):
    def encode(self, x):
        return self.select(x, keep=lambda z: z > 0)

    def loss(self, x, step):
        os.kill(os.getpid(), signal.SIGKILL)
'''

MENDED = '''
"""topk, or no longer."""
from sae_bench import ARCHITECTURES, register_architecture

@register_architecture("mended")
class Mended(ARCHITECTURES["topk"]):
    def after_step(self, step):
        {what}
'''


def same(run: Path, other: Path) -> None:
    """The same weights, training logs, latents and records, and the same board, but for times."""
    assert weights_of(run) == weights_of(other)
    for part in ("latents", "collections"):
        assert files(run / part) == files(other / part)
    logs = [{path.parent.name: path.read_text() for path in of.glob("saes/*/metrics.jsonl")} for of in (run, other)]
    assert logs[0] == logs[1]
    records = [{name: without_times(record) for name, record in records_of(of).items()} for of in (run, other)]
    assert records[0] == records[1]
    assert (run / "leaderboard.md").read_text() == (other / "leaderboard.md").read_text()
