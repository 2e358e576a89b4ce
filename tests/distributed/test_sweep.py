"""A run's SAEs as the planner has them, on devices as people write them: what a sweep takes, before it is begun."""

import os
import re
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import pytest
from command import bench
from warm import CONTEXT

from sae_bench.distributed.describe import shape_of
from sae_bench.distributed.fleet import fleet_of, parse_devices
from sae_bench.distributed.planner import least_makespan, plan_cells
from sae_bench.distributed.sharing import share_captures
from sae_bench.distributed.sweep import paying_trainers, plan_sweep, sweep_work
from sae_bench.errors import UserError
from sae_bench.registry import known_architectures
from sae_bench.runs.config import RunConfig
from sae_bench.runs.costs import evaluation_seconds, peaks_of, training_seconds
from sae_bench.runs.dry_run import memory_bytes

# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("64xH100", [(64, "H100")]),
        ("8xh100, 4 x A100", [(8, "H100"), (4, "A100")]),
        ("H200", [(1, "H200")]),
        ("2xH100PCIe,2xh100-pcie", [(4, "H100 PCIe")]),
        ("2xcpu", [(2, "cpu")]),
    ],
)  # fmt: skip
def test_devices_are_read_as_people_write_them(text, found):
    assert parse_devices(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a number and a kind"),
        ("64", "is not a number and a kind"),
        ("0xH100", "is not a number and a kind"),
        ("-1xH100", "is not a number and a kind"),
        ("8xH1000", 'unknown kind "H1000" (did you mean "h100"?'),
        ("8xH100,2xcpu", "plan for one or the other"),
        ("1000001xH100", "is not a number and a kind"),
    ],
)  # fmt: skip
def test_devices_that_are_none_are_named(text, said):
    with pytest.raises(UserError) as error:
        parse_devices(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# --- a run's SAEs ----------------------------------------------------------------------------------------------------


def configured(**settings: object) -> RunConfig:
    return RunConfig.build(
        {
            "archs": ["topk", "jumprelu"], "model": "gemma-2-2b", "layers": (3, 12), "widths": ("16k",),
            "seeds": (0, 1), "sites": ("resid_post", "attn_out"), "l0s": (32,), "preset": "paper",
            "tokens": 1_000_000, "reuse": 1, "eval_tokens": 20_000, "buffer_tokens": 100_000, "n_latents": 50,
            **settings,
        }
    )  # fmt: skip


def test_a_cell_takes_what_the_dry_run_says_of_the_same_saes():
    """Seconds to the digit, starting apart; bytes no fewer, and no more than a batch of evaluation more."""
    config, devices = configured(), fleet_of([(1, "H100")])
    lm, plans = shape_of(config, devices)
    works, shared = sweep_work(config, lm, plans, devices)
    (cell,) = plan_cells(works, shared, devices).cells
    (peaks,) = (one for one in peaks_of(lm.device, lm.dtype, here=False) if one.name == "H100")
    computed = training_seconds(lm, config, plans, peaks) + evaluation_seconds(lm, config, plans, peaks)
    assert cell.seconds - shared.start_seconds[0] == pytest.approx(computed)
    dry = memory_bytes(config, plans, [*plans], lm)
    assert dry <= cell.n_bytes <= dry + 2e9


def test_saes_that_are_trained_already_take_their_evaluation_alone():
    """So a run that goes on gives no device all that is left to train, and another what is done with soon."""
    config, devices = configured(), fleet_of([(1, "H100")])
    lm, plans = shape_of(config, devices)
    left = [plan for plan in plans if plan.config.seed == 0]
    trained = {plan.id for plan in plans if plan.config.seed == 1}
    (cell,) = plan_sweep(config, lm, plans, devices, trained).cells
    (peaks,) = (one for one in peaks_of(lm.device, lm.dtype, here=False) if one.name == "H100")
    computed = training_seconds(lm, config, left, peaks) + evaluation_seconds(lm, config, plans, peaks)
    assert cell.seconds - sweep_work(config, lm, plans, devices)[1].start_seconds[0] == pytest.approx(computed)

    first = min(plan.site.layer for plan in plans)
    trained = {plan.id for plan in plans if plan.site.layer == first}
    by_id = {plan.id: plan for plan in plans}
    cells = plan_sweep(config, lm, plans, fleet_of([(2, "H100")]), trained).cells
    n_left = [sum(by_id[name].site.layer != first for name in cell.saes) for cell in cells]
    assert len(cells) == 2
    assert max(n_left) < sum(n_left), "both train"


def test_saes_that_are_trained_already_hold_nothing_while_others_train():
    """So a dictionary is evaluated on a device that could not train it, and crowds none out of a cell."""
    config, devices = (
        configured(archs=["topk"], layers=(12,), sites=("resid_post",), widths=("2M",)),
        fleet_of([(1, "H100")]),
    )
    lm, plans = shape_of(config, devices)
    with pytest.raises(UserError, match=r"alone needs .* GB, and one H100 has"):
        plan_sweep(config, lm, plans, devices)
    (cell, *_) = plan_sweep(config, lm, plans, devices, {plan.id for plan in plans}).cells
    assert memory_bytes(config, [], [plans[0]], lm) <= cell.n_bytes <= devices[0].n_bytes
    works, _ = sweep_work(config, lm, plans, devices, {plans[0].id})
    assert [work.n_bytes[0] > 0 for work in works] == [False, *(True for _ in plans[1:])]


def plan_gemma_2_9b(found: Connection) -> None:
    """Plan 126 sites x 10 architectures x 5 L0s x 3 seeds, and say what became of it and what the planning took."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    archs = [f"{arch}:lr={lr}" for arch in ("relu", "gated", "topk", "jumprelu") for lr in ("1e-4", "2e-4", "3e-4")]
    config = configured(
        archs=archs[:10], model="gemma-2-9b", layers=tuple(range(42)), seeds=(0, 1, 2), tokens=100_000_000,
        sites=("resid_post", "mlp_out", "attn_out"), l0s=(16, 32, 64, 128, 256),
    )  # fmt: skip
    devices = fleet_of([(64, "H100")])
    lm, plans = shape_of(config, devices)
    works, shared = sweep_work(config, lm, plans, devices)
    plan = plan_cells(works, shared, devices)
    highest = 1024 * getrusage(RUSAGE_SELF).ru_maxrss
    least = least_makespan(works, shared, devices)
    found.send((len(plans), plan, highest - before, least))


@pytest.mark.slow
def test_all_of_gemma_2_9b_is_planned_in_little_memory():
    """18,900 SAEs, in a process of its own, whose memory grows by all that is made of them, the plan and more."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=plan_gemma_2_9b, args=(sender,))
    process.start()
    sender.close()
    n_saes, plan, n_bytes, least = receiver.recv()
    process.join()
    (devices,) = plan.fleet
    assert n_saes == 126 * 10 * 5 * 3 == sum(len(cell.saes) for cell in plan.cells)
    assert 1e6 < n_bytes < 200e6, f"{n_bytes / 1e6:.0f} MB"
    assert max(cell.n_bytes for cell in plan.cells) <= devices.n_bytes
    assert plan.utilisation > 0.95
    assert plan.makespan < 1.1 * least


# --- the command line ------------------------------------------------------------------------------------------------


def planned(capsys, *arguments: object) -> tuple[int, str, str]:
    code = bench(*arguments)
    text = capsys.readouterr()
    return code, text.out, text.err


@pytest.mark.slow
def test_a_sweep_is_planned_for_devices_that_are_not_here(capsys, at_work):
    code, text, _ = planned(
        capsys, "--config", "gemma-2-2b-all", "--dry-run", "--devices", "8xH100,4xA100", "--dollars-per-hour", 2.5
    )
    assert code == 0
    assert "devices    8 H100 + 4 A100; a cell may take 72.0 GB" in text
    assert f"sweep      {26 * 3 * len(known_architectures(controls=False)) * 3:,} SAEs at 78 sites" in text
    hours = float(re.search(r"wall time  ([\d.,]+) hours", text)[1])
    dollars = float(re.search(r"dollars    ([\d.,]+), at 2.50", text)[1].replace(",", ""))
    assert dollars == pytest.approx(2.5 * 12 * hours, rel=0.01)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--devices", "64xH100"], "add --dry-run"),
        (["--dry-run", "--dollars-per-hour", "2.5"], "name the devices with --devices"),
        (["--dry-run", "--devices", "64xB9000"], 'unknown kind "B9000"'),
        (["--dry-run", "--devices", "2xcpu", "--dollars-per-hour", "-1"], "write a price above 0"),
        (["--dry-run", "--devices", "2xcpu", "--dollars-per-hour", "nan"], "write a price above 0"),
        (["--dry-run", "--extend-tokens"], "--dry-run plans no --extend-tokens"),
    ],
)  # fmt: skip
def test_flags_without_meaning_are_refused_in_one_line(capsys, at_work, flags, said):
    code, _, err = planned(capsys, "--arch", "topk", *flags)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_a_capture_is_shared_for_all_that_is_left_evaluations_too():
    """One SAE to train has its batches sooner from a second device, but it is the 17 to evaluate that are the work."""
    config = configured(
        archs=["topk", "jumprelu", "batchtopk"],
        sites=("resid_post",),
        layers=(12,),
        l0s=(16, 32, 64),
        eval_tokens=1_000_000,
    )
    devices = fleet_of([(2, "H100")])
    lm, plans = shape_of(config, devices)
    trained = [plan.id for plan in plans[1:]]
    assert paying_trainers(config, lm, plans[:1], devices) == 1
    assert paying_trainers(config, lm, plans, devices, trained) == 0
    works, shared = sweep_work(config, lm, plans, devices, trained)
    sharing = share_captures(works, shared, devices)
    assert sharing is not None
    assert plan_cells(works, shared, devices).makespan < 0.7 * sharing.makespan
