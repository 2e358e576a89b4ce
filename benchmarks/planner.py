"""What the planner predicts for cells against what they take, one after the other on one core.

    python benchmarks/planner.py

A first cell shows how fast the parts of the work go here. From that the planner predicts eight others, at other layers
of the demo model and so of other depth, and they are run: training and evaluation, language model loaded before.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import RESULTS, application, scratch, write_result
from tabulate import tabulate

from sae_bench.distributed.fleet import fleet_of
from sae_bench.distributed.planner import plan_cells
from sae_bench.distributed.sweep import sweep_work
from sae_bench.evaluation.task import default_tasks
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs import rates
from sae_bench.runs.cell import work_on
from sae_bench.runs.config import RunConfig
from sae_bench.runs.plan import SAEPlan
from sae_bench.runs.train import Order
from sae_bench.runs.workbench import Workbench

FIRST, LAYERS = 8, (0, 2, 4, 6, 10, 12, 14, 16)

app = application(__doc__)


def measured(bench: Workbench, order: Order, plans: Sequence[SAEPlan], folder: RunFolder) -> float:
    """Seconds that a cell takes."""
    began = time.perf_counter()
    work_on(bench, order, [plan.id for plan in plans], folder, Progress(quiet=True), lambda sae, row: None)
    return time.perf_counter() - began


@app.default
def main(out: Path = RESULTS) -> None:
    torch.set_num_threads(1)
    kept = scratch() / "planner"
    kept.mkdir(exist_ok=True)
    rates.cache_folder = lambda: kept  # type: ignore[attr-defined]
    (kept / "rates.json").unlink(missing_ok=True)
    config = RunConfig.build(
        {
            "archs": ["topk", "jumprelu"], "model": "demo", "layers": (FIRST, *LAYERS), "widths": (256,),
            "tokens": 4096, "l0s": (16,), "reuse": 4, "eval_tokens": 254, "batch_size": 512, "buffer_tokens": 4096,
        }
    )  # fmt: skip
    bench = Workbench(config, Progress(quiet=True))
    order = Order(config, default_tasks(features_known=False), (), bench.outline().kernels)
    bench.read_held_out()
    lm, fleet = bench.lm, fleet_of([(1, "cpu")])
    plans = [plan for plan in bench.plans.values() if isinstance(plan, SAEPlan)]
    rows, predicted_all, measured_all = [], 0.0, 0.0
    with TemporaryDirectory() as temporary:
        for layer in (FIRST, *LAYERS):
            of_layer = [plan for plan in plans if plan.site.layer == layer]
            (cell,) = plan_cells(*sweep_work(config, lm, of_layer, fleet), fleet).cells
            seconds = measured(bench, order, of_layer, RunFolder(Path(temporary) / str(layer)))
            print(layer, f"{cell.seconds:.1f} predicted, {seconds:.1f} measured", flush=True)
            if layer == FIRST:
                first = f"{cell.seconds:.1f} s predicted from rooflines alone, {seconds:.1f} s measured"
                kept_rates = (kept / "rates.json").read_bytes()
                continue
            (kept / "rates.json").write_bytes(kept_rates)  # nothing is learned from those that are predicted
            rows.append([layer, f"{cell.seconds:.1f}", f"{seconds:.1f}", f"{cell.seconds / seconds:.2f}"])
            predicted_all, measured_all = predicted_all + cell.seconds, measured_all + seconds
    rows.append(["all", f"{predicted_all:.1f}", f"{measured_all:.1f}", f"{predicted_all / measured_all:.2f}"])
    drawn = tabulate(rows, ["layer", "predicted, s", "measured, s", "ratio"], tablefmt="pipe", disable_numparse=True)
    about = (
        f"Each cell has two SAEs (topk and jumprelu, width 256) at one layer of the demo model. "
        f"The first, at layer {FIRST}: {first}."
    )
    write_result(out, "Planner", [about, drawn], {}, 1)


if __name__ == "__main__":
    app()
