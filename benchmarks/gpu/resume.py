"""The command line on the device: a run that is stopped and goes on, against the run that nobody stopped."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

from safetensors.torch import load_file
from torch import Tensor

from gpu.model import Text
from gpu.scale import Scale
from sae_bench.cli.main import main
from sae_bench.lm.model import LanguageModel
from sae_bench.records.run_folder import RunFolder
from sae_bench.training.trainer import SAETrainer

N_STEPS_BEFORE = 12


class Killed(BaseException):
    """What kill -9 leaves: nothing is written any more."""


def check(lm: LanguageModel, text: Text, scale: Scale, n_tokens: int) -> list[dict[str, Any]]:
    """Two whole runs and one that is stopped in the middle; every run trains and evaluates all architectures."""
    home = scale.scratch / "resume"
    shutil.rmtree(home, ignore_errors=True)
    save_model(lm, text, home / "model")
    arguments = [
        "--arch", "all", "--model", home / "model", "--layer", scale.layer, "--dataset", text.corpus,
        "--width", 256, "--l0", 8, "--tokens", n_tokens, "--reuse", 2, "--batch-size", scale.batch,
        "--buffer-tokens", n_tokens // 2, "--context-size", scale.context, "--eval-tokens", 300,
        "--checkpoint-every", 5, "--device", scale.device, "--dtype", "float32", "--quiet",
    ]  # fmt: skip
    command = [str(part) for part in arguments]
    runs = {name: home / name for name in ("whole", "again", "stopped")}
    for name in ("whole", "again"):
        bench([*command, "--out", str(runs[name])])
    n_archs = len(weights(runs["whole"]))
    with (
        patch.object(SAETrainer, "step", dying(SAETrainer.step, N_STEPS_BEFORE * n_archs)),
        contextlib.suppress(Killed),
    ):
        bench([*command, "--out", str(runs["stopped"])])
    assert not weights(runs["stopped"]), "it was stopped before its end"
    bench([*command, "--out", str(runs["stopped"])])
    whole = weights(runs["whole"])
    failures = [record.failure for record in RunFolder(runs["whole"]).records() if record.failure]
    rows = [{"compared": "records", "note": "; ".join(map(str, failures)), "ok": not failures}]
    for name in ("again", "stopped"):
        other = weights(runs[name])
        apart = {
            sae: max(float((tensor - other[sae][key]).norm() / tensor.norm().clamp(min=1e-30))
                     for key, tensor in tensors.items())
            for sae, tensors in whole.items()
        }  # fmt: skip
        rows += [{"compared": f"{sae.split('.')[0]}, {name}", "equal": value == 0, "apart": value}
                 for sae, value in apart.items()]  # fmt: skip
    return rows


def save_model(lm: LanguageModel, text: Text, folder: Path) -> None:
    """A folder that loads like a downloaded one."""
    lm.model.save_pretrained(folder)
    text.tokenizer.save_pretrained(folder)


def bench(arguments: list[str]) -> None:
    """Run the command line in this process.

    Raises:
        RuntimeError: it did not end with 0.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the board
            main(arguments)
    except SystemExit as end:
        if end.code not in (0, None):
            raise RuntimeError(f"bench.py ended with {end.code}: {' '.join(arguments)}") from None


def dying(step: Any, after: int) -> Any:
    """The trainer's step, which kills the process after a number of steps of all SAEs."""
    done = iter(range(after))

    def died(self: SAETrainer, *arguments: Any, **how: Any) -> None:
        if next(done, None) is None:
            raise Killed
        step(self, *arguments, **how)

    return died


def weights(run: Path) -> dict[str, dict[str, Tensor]]:
    """Every SAE's tensors."""
    return {file.parent.name: load_file(file) for file in sorted(run.glob("saes/*/sae_weights.safetensors"))}
