"""A fleet at work, simulated from the planner's costs: 64 H100s on every layer and site of Gemma 2 9B, and what losing
a host of 8 costs.

    python benchmarks/fleet.py

18,900 SAEs: ten architectures (the four with other learning rates where there are no more), five L0s and three seeds at
126 sites, 100M tokens each. All seconds are computed (rooflines), none is measured on a GPU. Cells are begun in the
plan's order, each on the first device that is free; each takes what the plan says times a lognormal factor that the
plan does not know. A lost host takes its cells with it, back to their last checkpoint, and comes back; a cell
that goes on loads the model again and captures its buffer again.
"""

import heapq
import json
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from sae_bench.distributed.describe import shape_of
from sae_bench.distributed.fleet import fleet_of, parse_devices
from sae_bench.distributed.planner import CellPlan, least_makespan, plan_cells
from sae_bench.distributed.sweep import sweep_work
from sae_bench.runs.config import RunConfig

RESULTS = Path(__file__).parent / "results"
ARCHS = ["relu", "gated", "topk", "jumprelu", *(f"{a}:lr=1e-4" for a in ("relu", "gated", "topk", "jumprelu")),
         "topk:lr=2e-4", "jumprelu:lr=2e-4"]  # fmt: skip
HOST, CHECKPOINT, BACK_AFTER = 8, 600.0, 900.0
"""Devices of a host, seconds between checkpoints, and until a lost host is replaced."""
SPREAD = 0.1
"""Standard deviation of the logarithm of what a cell takes over what the plan says."""
REPEATS = 20
CASES = (
    ("as planned", 0.0, 0.0),
    ("cells take other than planned", 0.0, SPREAD),
    ("and one host is lost an hour", 1.0, SPREAD),
    ("and four hosts are lost an hour", 4.0, SPREAD),
)


@dataclass(frozen=True)
class Outcome:
    """One simulated sweep. `tail` is from when the first device found nothing to do, in seconds."""

    makespan: float
    tail: float
    useful: float
    lost: float
    n_losses: int


def simulate(plan: CellPlan, restart: float, *, losses_an_hour: float, spread: float, seed: int) -> Outcome:
    """Run the plan's cells once. Device-seconds with a result are `useful`; those done twice, or to go on, are lost.

    Events are when a device becomes free, when a cell ends and when a host is lost; a lost cell goes to the front.
    """
    rng = random.Random(seed)
    waiting = [
        (i, cell.seconds * rng.lognormvariate(-spread * spread / 2, spread), 0.0) for i, cell in enumerate(plan.cells)
    ]
    useful, lost, n_losses, tail_from = sum(seconds for _, seconds, _ in waiting), 0.0, 0, None
    heapq.heapify(waiting)  # number in the plan, seconds left, what going on costs
    events: list[tuple[float, int, str, int, int]] = [(0.0, i, "free", i, 0) for i in range(plan.n_devices)]
    losses = _losses(rng, losses_an_hour, plan.n_devices // HOST)
    n_events, running, epoch = plan.n_devices, {}, [0] * plan.n_devices
    if losses_an_hour:
        at, host = next(losses)
        events.append((at, n_events, "loss", host, 0))
    heapq.heapify(events)
    idle: set[int] = set()
    now = end = 0.0

    def begin(device: int) -> None:
        nonlocal n_events, tail_from
        if not waiting:
            idle.add(device)
            tail_from = now if tail_from is None else tail_from
            return
        cell, seconds, overhead = heapq.heappop(waiting)
        running[device] = cell, now, seconds, overhead
        n_events += 1
        heapq.heappush(events, (now + overhead + seconds, n_events, "end", device, epoch[device]))

    while events and (running or waiting):
        now, _, kind, which, of_epoch = heapq.heappop(events)
        if kind == "loss":
            n_losses += 1
            for device in range(which * HOST, (which + 1) * HOST):
                epoch[device] += 1
                idle.discard(device)
                if device in running:
                    cell, began, seconds, overhead = running.pop(device)
                    done = max(0.0, now - began - overhead) // CHECKPOINT * CHECKPOINT
                    lost += now - began - done
                    heapq.heappush(waiting, (cell, seconds - done, restart))
                n_events += 1
                heapq.heappush(events, (now + BACK_AFTER, n_events, "free", device, epoch[device]))
            for device in sorted(idle):
                idle.discard(device)
                begin(device)
            at, host = next(losses)
            n_events += 1
            heapq.heappush(events, (at, n_events, "loss", host, 0))
        elif of_epoch == epoch[which]:
            if kind == "end":
                lost += running.pop(which)[3]
                end = now
            begin(which)
    return Outcome(end, end - (tail_from if tail_from is not None else end), useful, lost, n_losses)


def _losses(rng: random.Random, an_hour: float, n_hosts: int) -> Iterator[tuple[float, int]]:
    """When which host is lost: a Poisson process."""
    at = 0.0
    while True:
        at += rng.expovariate(an_hour / 3600)
        yield at, rng.randrange(n_hosts)


def sweep() -> RunConfig:
    """The settings of the 18,900 SAEs."""
    return RunConfig.build(
        {
            "archs": ARCHS, "model": "gemma-2-9b", "layers": tuple(range(42)), "widths": ("16k",), "seeds": (0, 1, 2),
            "sites": ("resid_post", "mlp_out", "attn_out"), "l0s": (16, 32, 64, 128, 256), "preset": "paper",
            "tokens": 100_000_000, "reuse": 1, "eval_tokens": 200_000, "buffer_tokens": 500_000,
        }
    )  # fmt: skip


def mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


def row(what: str, runs: Sequence[Outcome], n_devices: int) -> list[str]:
    """What the simulations of one kind came to."""
    return [
        what,
        f"{mean(run.makespan for run in runs) / 3600:.2f}",
        f"{mean(run.useful / run.makespan for run in runs) / n_devices:.1%}",
        f"{mean(run.tail for run in runs) / 3600:.2f}",
        f"{mean(run.n_losses for run in runs):.0f}",
        f"{mean(run.lost for run in runs) / 3600:.1f}",
    ]


def main() -> None:
    config, fleet = sweep(), fleet_of(parse_devices("64xH100"))
    lm, plans = shape_of(config, fleet)
    works, shared = sweep_work(config, lm, plans, fleet)
    began = time.perf_counter()
    plan = plan_cells(works, shared, fleet)
    planning, bound = time.perf_counter() - began, least_makespan(works, shared, fleet)
    # A cell that goes on captures its buffer again, down to its deepest site.
    refill = config.buffer_tokens / config.tokens * max(cell.capture_seconds for cell in plan.cells)
    restart = shared.start_seconds[0] + refill
    rows, raw = [], []
    for what, losses, spread in CASES:
        seeds = range(REPEATS if spread else 1)
        runs = [simulate(plan, restart, losses_an_hour=losses, spread=spread, seed=seed) for seed in seeds]
        raw.append({"what": what, "runs": [vars(run) for run in runs]})
        rows.append(row(what, runs, plan.n_devices))
    headers = ["what happens", "hours", "useful work", "tail, hours", "hosts lost", "device-hours done twice"]
    about = f"""{len(plans):,} SAEs of Gemma 2 9B in {len(plan.cells)} cells on 64 H100s: {plan.seconds / 3600:,.0f} \
GPU-hours, {plan.lm_share:.0%} of them the
language model's; {plan.makespan / 3600:.2f} hours planned, and no plan takes less than {bound / 3600:.2f}. All of \
it is computed from rooflines and
simulated; nothing here ran on a GPU. The cells were planned in {planning:.1f} s.

A host is {HOST} devices; checkpoints every {CHECKPOINT / 60:.0f} minutes; a lost host is back after \
{BACK_AFTER / 60:.0f} minutes; to go on costs a cell {restart:.0f} s. What a cell
takes differs from the plan by a factor with a standard deviation of {SPREAD:.0%}. Useful work: the share of \
devices' time that led to
a result. Tail: from when the first device found nothing more to do. Means of {REPEATS} simulations."""
    drawn = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
    text = f"# A fleet at work, simulated\n\n    python benchmarks/fleet.py\n\n{about}\n\n{drawn}\n"
    (RESULTS / "fleet.md").write_text(text)
    (RESULTS / "fleet.json").write_text(json.dumps({"about": about, "simulations": raw}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
