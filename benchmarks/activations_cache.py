"""Time a training whose activations are read from a cache against the same with a live language model.

    python benchmarks/activations_cache.py

One SAE on the demo model, its middle layer, the settings of the short preset but for the number of tokens. Both train
in turn within every round, with the same bits in the end. The shards are held against their checksums every time; they
lie in memory, where the system keeps files that were just written, so no disk is measured.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, application, interleave, ratio, table, write_result

from sae_bench.activations_cache.sizes import bytes_in
from sae_bench.cli.main import quieten_libraries
from sae_bench.lm.activations import ActivationModel
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.config import RunConfig
from sae_bench.runs.kernels import measured_kernels
from sae_bench.runs.plan import plan_saes
from sae_bench.runs.provenance import environment
from sae_bench.runs.sources import load_model
from sae_bench.runs.train import Order, TrainStage
from sae_bench.training.buffer import ActivationBuffer

app = application(__doc__)
QUIET = Progress(quiet=True)


@app.default
def main(*, tokens: int = 8192, reuse: int = 8, rounds: int = 3, threads: int = 2, out: Path = RESULTS) -> None:
    """Time it and write `activations_cache.md`.

    Args:
        tokens: activations to train on.
        reuse: times that each is trained on.
        rounds: interleaved rounds.
        threads: of torch.
        out: folder of the result.
    """
    torch.set_num_threads(threads)
    quieten_libraries()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        settings = {"archs": ("topk",), "tokens": tokens, "reuse": reuse, "tasks": ("reconstruction",)}
        plain = RunConfig.build(settings)
        cached = RunConfig.build(settings, {"activations_cache": str(folder / "cache")})
        live, loading = timed(plain)
        plans = plan_saes(plain, live)
        kernels = measured_kernels(plain, plans, live.device, QUIET)
        capture: dict[str, list[float]] = {"live": [], "read": []}

        def train(kind: str, config: RunConfig, lm: ActivationModel) -> float:
            out = RunFolder(folder / f"{kind}{len(list(folder.iterdir()))}")
            start = time.perf_counter()
            stage = TrainStage(lm, Order(config, ("reconstruction",), kernels=kernels), plans, out, QUIET)
            stage.run(lambda sae, row: None)
            seconds = time.perf_counter() - start
            assert isinstance(stage.source, ActivationBuffer)
            capture.setdefault(kind, []).append(stage.source.capture_seconds)
            return seconds

        first, _ = timed(cached)
        filling = train("first", cached, first)
        first.store.flush()  # type: ignore[attr-defined]
        opening: list[float] = []

        def read() -> float:
            lm, seconds = timed(cached)
            opening.append(seconds)
            return train("read", cached, lm)

        turns = {"live": lambda: train("live", plain, live), "read": read}
        seconds = interleave(turns, rounds, 0)
        weights = {(path.read_bytes()) for path in folder.glob("*/saes/*/sae_weights.safetensors")}
        assert len(weights) == 1, "the SAEs are the same, bit for bit"
        n_bytes = bytes_in(folder / "cache")
    median = statistics.median
    rows = [
        ["live model", f"{median(seconds['live']):.1f}", "1", f"{median(capture['live']):.1f}", f"{loading:.1f}"],
        ["first run with a cache", f"{filling:.1f}", "", f"{capture['first'][0]:.1f}", ""],
        [
            "read from the cache",
            f"{median(seconds['read']):.1f}",
            ratio(seconds["live"], seconds["read"]),
            f"{median(capture['read']):.2f}",
            f"{median(opening):.1f}",
        ],
    ]
    headers = ["", "training, s", "live / read", "of it activations, s", "loading or opening, s"]
    write_result(
        out,
        "Activations from a cache",
        [
            f"One topk SAE ({plans[0].config.d_in} x {plans[0].config.d_sae}) on {tokens:,} activations of the demo "
            f"model, {plans[0].site.name}, each used {reuse} times. Medians of {rounds} interleaved rounds; ratio: "
            "median (quartiles) within a round. The weights were the same in all of them, bit for bit.",
            table(rows, headers),
            f"The cache took {n_bytes / 1e6:.1f} MB, {n_bytes / tokens:,.0f} bytes a token.",
        ],
        environment(torch.device("cpu"))["versions"],
        threads,
    )


def timed(config: RunConfig) -> tuple[ActivationModel, float]:
    """The run's model, and the seconds that it took to have it."""
    start = time.perf_counter()
    return load_model(config, QUIET), time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(app())
