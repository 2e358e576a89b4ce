"""The training log, shown elsewhere while it is written: TensorBoard or Weights & Biases, if asked for with --log-to.

Each is a package that is imported here and only when its name is given. metrics.jsonl is written in any case.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError

RowWriter = Callable[[Mapping[str, float | int]], None]
LogSink = Callable[[str, Mapping[str, float | int]], None]
"""Takes the name of an SAE and a row of its training log."""


@contextmanager
def log_sink(kind: str | None, folder: Path) -> Iterator[LogSink]:
    """Open a sink of some kind, "tensorboard" or "wandb", for a run's folder; None throws every row away.

    Raises:
        UserError: the package is not installed.
    """
    if kind is None:
        yield lambda sae_id, row: None
        return
    try:
        package = importlib.import_module("torch.utils.tensorboard" if kind == "tensorboard" else kind)
    except ImportError:
        raise UserError(f"--log-to {kind}: not installed; pip install 'sae-arch-bench[{kind}]'") from None
    with ExitStack() as stack:
        opened = _open_tensorboard if kind == "tensorboard" else _open_wandb
        write_for = cache(lambda sae_id: opened(package, folder, sae_id, stack))
        yield lambda sae_id, row: write_for(sae_id)(row)


def _open_tensorboard(package: Any, folder: Path, sae_id: str, stack: ExitStack) -> RowWriter:
    writer = package.SummaryWriter(log_dir=str(folder / "tensorboard" / sae_id))
    stack.callback(writer.close)

    def write(row: Mapping[str, float | int]) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, global_step=int(row["step"]))

    return write


def _open_wandb(package: Any, folder: Path, sae_id: str, stack: ExitStack) -> RowWriter:
    run = package.init(project="sae-arch-bench", group=folder.name, name=sae_id, dir=str(folder), reinit="create_new")
    stack.callback(run.finish)
    return lambda row: run.log(dict(row), step=int(row["step"]))
