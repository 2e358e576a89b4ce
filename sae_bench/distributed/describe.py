"""`--dry-run --devices 64xH100`: a sweep's cells, and what they take, found without loading a weight."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite

from tabulate import tabulate
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_bench.distributed.fleet import CPU, device_of, fleet_of, parse_devices
from sae_bench.distributed.planner import Cell, CellPlan, least_makespan, plan_cells
from sae_bench.distributed.sharing import LINK_BYTES, SharedPlan, pays, share_captures
from sae_bench.distributed.sweep import Speed, sweep_work
from sae_bench.distributed.work import Devices
from sae_bench.errors import UserError
from sae_bench.evaluation.task import read_texts
from sae_bench.lm.activations import ActivationModel
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.checks import check
from sae_bench.runs.config import RunConfig
from sae_bench.runs.growing import grown
from sae_bench.runs.left import Left, uncounted, what_is_left
from sae_bench.runs.plan import SAEPlan, plan_saes, tasks_of
from sae_bench.runs.sources import model_shape

CHECKPOINTS = 3
"""On disk at the height, of each SAE in training: with weights and two moments each."""

LISTED = 20
"""Cells that are listed one by one; of more, the longest and the shortest."""


def describe_sweep(
    config: RunConfig,
    folder: RunFolder,
    devices: str | None,
    dollars_per_hour: float | None,
    *,
    dry_run: bool = True,
    overwrite: bool = False,
) -> str:
    """The plan of a run on many devices, as text; with `overwrite`, once the run that is there is deleted.

    Raises:
        UserError: a flag is out of range or has no meaning without another, or one SAE is too much for a device.
    """
    if devices is None:
        raise UserError("--dollars-per-hour is what a device costs: name the devices with --devices, as 64xH100")
    if not dry_run:
        raise UserError("--devices plans a run and starts none: add --dry-run")
    if dollars_per_hour is not None and not (isfinite(dollars_per_hour) and dollars_per_hour > 0):
        raise UserError(f"--dollars-per-hour {dollars_per_hour:g}: write a price above 0, as 2.50")
    if config.saes or not config.archs:
        raise UserError("--devices plans SAEs that are trained: leave out --sae, or leave out --devices")
    fleet = fleet_of(parse_devices(devices))
    if overwrite:
        folder.check_clear()
    else:
        config = grown(config, folder, Progress())
    check(config, tasks_of(config))
    texts = read_texts(tasks_of(config), config)
    lm, plans = shape_of(config, fleet)
    left = what_is_left(config, folder, plans, texts, overwrite=overwrite)
    sweep = _sweep(config, plans, left)
    plans = [plan for plan in plans if left[plan.id] not in (Left.NOTHING, Left.SEEDS)]
    if not plans:
        return f"sweep      {sweep}: nothing is left for cells"
    to_train = [plan for plan in plans if left[plan.id] is Left.TRAINING]
    trained = {plan.id for plan in plans} - {plan.id for plan in to_train}
    works, shared = sweep_work(config, lm, plans, fleet, trained)
    plan = plan_cells(works, shared, fleet)
    bound, sharing = least_makespan(works, shared, fleet), share_captures(works, shared, fleet)
    how = "partly measured here" if Speed(config, lm, fleet[0].kind).measured else "computed"
    besides = uncounted(config, texts, left.values())
    unit = "core-hours" if fleet[0].kind == CPU else "GPU-hours"
    names = " + ".join(f"{devices.count} {devices.kind}" for devices in fleet)
    smallest = min(fleet, key=lambda devices: devices.n_bytes)
    fewest, most = (f(len(cell.saes) for cell in plan.cells) for f in (min, max))
    size = f"{fewest} to {most}" if fewest < most else f"{most}"
    lines = [
        _table(plan),
        "",
        f"devices    {names}; a cell may take {smallest.n_bytes / 1e9:.1f} GB",
        f"model      {lm.name} ({lm.n_bytes / 1e9:.2f} GB in {str(lm.dtype).removeprefix('torch.')})",
        f"sweep      {sweep}",
        f"cells      {len(plan.cells):,} of {size} SAEs that share one stream on one device;"
        f" {max(cell.n_bytes for cell in plan.cells) / 1e9:.1f} GB at most (computed)",
        f"work       {_hours(plan.seconds)} {unit} ({how}), {plan.lm_share:.0%} of it the language model's{besides}",
        f"wall time  {_hours(plan.makespan)} hours; no plan takes less than {_hours(bound)};"
        f" devices work {plan.utilisation:.1%} of it",
        *_dollars(plan, dollars_per_hour),
        f"disk       about {disk_bytes(plan, to_train) / 1e9:,.2f} GB in {folder.path} (computed)",
        *_sharing(plan, sharing, unit),
    ]
    return "\n".join(lines)


def _sweep(config: RunConfig, plans: Sequence[SAEPlan], left: Mapping[str, Left]) -> str:
    """The SAEs of a run, and what is left to do for how many of them."""
    n_sites, n_steps = len({plan.site for plan in plans}), config.tokens * config.reuse // config.batch_size
    text = f"{len(plans):,} SAEs at {n_sites} sites, {n_steps:,} steps of {config.batch_size:,} each"
    counts = Counter(left.values())
    if counts[Left.TRAINING] < len(plans):
        text += f" ({'; '.join(f'{counts[what]:,} {what}' for what in Left if counts[what])})"
    imported = sum(len(part.get("saes", ())) for part in config.earlier)
    return f"{text}; imported ones are in no plan" if imported else text


def shape_of(config: RunConfig, fleet: Sequence[Devices]) -> tuple[ActivationModel, list[SAEPlan]]:
    """The language model without weights, as on the fleet's devices, and every SAE of the run."""
    device, dtype = device_of(fleet[0].kind, config.dtype)
    with FakeTensorMode():
        lm = model_shape(config, dtype)
        plans = plan_saes(config, lm)
    lm.device = device
    return lm, plans


def disk_bytes(plan: CellPlan, to_train: Sequence[SAEPlan]) -> int:
    """The weights of those SAEs that are to be trained, and the checkpoints of the cells that run at a time."""
    weights = {sae.id: 4 * sae.n_parameters for sae in to_train}
    of_cells = sorted((sum(weights.get(sae, 0) for sae in cell.saes) for cell in plan.cells), reverse=True)
    return sum(weights.values()) + CHECKPOINTS * 3 * sum(of_cells[: plan.n_devices])


def _table(plan: CellPlan) -> str:
    cells = list(zip(plan.cells, plan.device_of, strict=True))
    left_out = max(0, len(cells) - LISTED)
    shown = cells if not left_out else [*cells[: LISTED // 2], *cells[-LISTED // 2 :]]
    rows = [_row(cell, device) for cell, device in shown]
    if left_out:
        rows.insert(LISTED // 2, [f"... {left_out:,} more ..."])
    headers = ["cell", "SAEs", "sites", "layers", "GB", "hours", "language model", "device"]
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True)


def _row(cell: Cell, device: int) -> list[object]:
    share, room = cell.lm_seconds / cell.seconds, cell.n_bytes / 1e9
    hours = _hours(cell.seconds)
    return [cell.id, len(cell.saes), len(cell.sites), cell.depth, f"{room:.1f}", hours, f"{share:.0%}", device]


def _dollars(plan: CellPlan, price: float | None) -> list[str]:
    if price is None:
        return []
    total = price * plan.n_devices * plan.makespan / 3600
    return [f"dollars    {total:,.2f}, at {price:.2f} an hour for each device until the last has done"]


def _sharing(plan: CellPlan, sharing: SharedPlan | None, unit: str) -> list[str]:
    if sharing is None:
        return []
    others = f"{sharing.n_trainers} device{'s' * (sharing.n_trainers > 1)}"
    return [
        f"sharing    with one capture for {others}: {_hours(sharing.makespan)} hours,"
        f" {_hours(sharing.seconds)} {unit}, {sharing.lm_seconds / sharing.seconds:.0%} the language model's;"
        f" {sharing.n_bytes / 1e12:,.2f} TB moved, at {LINK_BYTES / 1e9:g} GB/s a capture (assumed)"
        f" the limit of {sharing.waits_for_link:.0%} of it: {'it pays' if pays(plan, sharing) else 'it does not pay'}"
    ]


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
