"""A sweep is cut into cells that fit, every SAE in one of them, and the devices have done about when they can have."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.distributed.planner import Cell, CellPlan, least_makespan, plan_cells
from sae_bench.distributed.sharing import LINK_BYTES, pays, share_captures
from sae_bench.distributed.work import Devices, SAEWork, SharedWork, SiteWork
from sae_bench.errors import UserError

SHARED = SharedWork((5.0,), (3.0,), (10.0,), (9.0,), (100, 0, 0), lm_bytes=60)
"""A cell costs 5 s to start, 3 s for a clean pass, and 10 s a layer, 9 of them to capture; it holds 100 bytes."""


def site(depth: int, kind: str = "resid_post", n_bytes: int = 50, seconds: float = 0.0) -> SiteWork:
    return SiteWork(f"layer_{depth - 1}.{kind}", depth, (seconds,), (n_bytes, 0, 0), stream_bytes=int(LINK_BYTES))


def sae(
    at: SiteWork, name: str, seconds: float = 20.0, n_bytes: int = 30, seed: int = 0, trained: bool = False
) -> SAEWork:
    return SAEWork(
        f"{name}.{at.name}", at, seed, (seconds,), (seconds / 10,), (0 if trained else n_bytes, 0, 0), trained
    )


def fleet(count: int, n_bytes: int = 10_000) -> list[Devices]:
    return [Devices("toy", count, n_bytes)]


def seconds_by_hand(plan: CellPlan, works: list[SAEWork], shared: SharedWork = SHARED) -> list[float]:
    by_id = {work.id: work for work in works}
    found = []
    for cell in plan.cells:
        inside = [by_id[name] for name in cell.saes]
        depth = max(work.site.depth for work in inside)
        sites = {work.site.name: work.site.seconds[0] for work in inside}
        deepest = max((work.site.depth for work in inside if not work.trained), default=0)
        capture, layer = shared.capture_seconds[0], shared.layer_seconds[0]
        lm = shared.pass_seconds[0] + depth * (layer - capture) + deepest * capture + sum(sites.values())
        found.append(shared.start_seconds[0] + lm + sum(work.seconds[0] for work in inside))
    return found


def test_one_device_with_room_has_one_cell_and_one_pass_to_the_deepest_site():
    """By hand: 5 + 3 + 4 x 10 for the model, two SAEs of 20 s; 100 bytes, two buffers of 50, two SAEs of 30."""
    works = [sae(site(2), "a"), sae(site(4), "b")]
    plan = plan_cells(works, SHARED, fleet(1))
    (cell,) = plan.cells
    assert (cell.seconds, cell.n_bytes, cell.depth) == (5 + 3 + 40 + 40, 100 + 100 + 60, 4)
    assert cell.lm_seconds == 3 + 40 + 2 + 2, "a tenth of an SAE's seconds are its replays'"
    assert cell.capture_seconds == 4 * 9
    assert cell.evaluation_seconds == 3 + 2 + 2, "the clean pass, and replays"
    assert plan.lm_share == 47 / 88
    assert plan.makespan == least_makespan(works, SHARED, fleet(1)) == 88


def test_what_is_trained_already_asks_for_no_activations_to_train_on():
    """By hand: the shallow one is left, so of 10 s a layer a cell with both takes 9 twice and 1 four times."""
    works = [sae(site(2), "a"), sae(site(4), "b", trained=True)]
    (cell,) = plan_cells(works, SHARED, fleet(1)).cells
    assert (cell.seconds, cell.depth, cell.capture_seconds) == (5 + 3 + 2 * 9 + 4 * 1 + 40, 4, 2 * 9)
    assert least_makespan(works, SHARED, fleet(1)) == cell.seconds
    (cell,) = plan_cells(works[1:], SHARED, fleet(1)).cells
    assert (cell.seconds, cell.capture_seconds) == (5 + 3 + 4 * 1 + 20, 0)
    one = plan_cells(works, SHARED, fleet(2))
    assert sorted(one.busy) == [5 + 3 + 4 * 1 + 20, 5 + 3 + 2 * 10 + 20]


def test_sites_of_one_depth_share_a_cell_and_deep_ones_do_not_drag_shallow_ones_down():
    """Two cells of four SAEs: depths (1, 1, 9, 9) are cut between 1 and 9, not across."""
    works = [sae(site(depth, kind), kind) for depth in (9, 1) for kind in ("attn_out", "mlp_out")]
    room = 100 + 2 * 50 + 2 * 30
    plan = plan_cells(works, SHARED, fleet(2, room))
    assert sorted(cell.depth for cell in plan.cells) == [1, 9]
    assert all(len(cell.saes) == 2 for cell in plan.cells)
    assert sorted(plan.busy) == [5 + 3 + 10 + 40, 5 + 3 + 90 + 40]


def test_saes_of_one_site_share_its_buffer():
    """Room for two SAEs and one buffer: three sites of two SAEs are three cells, whatever order they come in."""
    works = [sae(site(3, kind), name) for name in "ab" for kind in ("attn_out", "mlp_out", "resid_post")]
    plan = plan_cells(works, SHARED, fleet(3, 100 + 50 + 60))
    assert sorted(len(cell.sites) for cell in plan.cells) == [1, 1, 1]


def test_a_site_costs_a_cell_once():
    works = [sae(site(2, seconds=7.0), name) for name in "ab"]
    (cell,) = plan_cells(works, SHARED, fleet(1)).cells
    assert cell.seconds == 5 + 3 + 20 + 7 + 40


def test_two_devices_halve_what_one_does_if_the_language_model_is_cheap():
    cheap = replace(SHARED, start_seconds=(0.0,), pass_seconds=(0.0,), layer_seconds=(0.1,))
    works = [sae(site(1), f"s{i}") for i in range(10)]
    assert plan_cells(works, cheap, fleet(2)).makespan == pytest.approx(100.1)


def test_a_cell_goes_to_the_kind_of_device_that_has_done_with_it_earliest():
    """A kind three times as fast gets three cells of four, alike."""
    at = SiteWork("layer_0.resid_post", 1, (0.0, 0.0), (0, 0, 0), 1)
    works = [SAEWork(f"s{i}", at, 0, (30.0, 10.0), (0.0, 0.0), (1, 0, 0)) for i in range(4)]
    free = SharedWork((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0, 0, 0), 0)
    plan = plan_cells(works, free, [Devices("slow", 1, 1), Devices("fast", 1, 1)])
    assert [plan.device_of.count(device) for device in (0, 1)] == [1, 3]
    assert plan.makespan == 30


def test_the_smallest_device_decides_what_fits_for_a_cell_may_go_on_anywhere():
    at = SiteWork("layer_0.resid_post", 1, (0.0, 0.0), (50, 0, 0), 1)
    works = [SAEWork(f"s{i}", at, 0, (20.0, 20.0), (2.0, 2.0), (30, 0, 0)) for i in range(6)]
    shared = SharedWork((5.0, 5.0), (3.0, 3.0), (10.0, 10.0), (9.0, 9.0), (100, 0, 0), 0)
    large, small = Devices("large", 1, 10_000), Devices("small", 1, 100 + 50 + 60)
    assert max(cell.n_bytes for cell in plan_cells(works, shared, [large]).cells) == 100 + 50 + 6 * 30
    assert max(cell.n_bytes for cell in plan_cells(works, shared, [large, small]).cells) <= 100 + 50 + 60


def test_an_sae_that_fits_nowhere_is_named():
    with pytest.raises(UserError, match=r"b\.layer_0\.resid_post alone needs 0\.0 GB, and one toy has 0\.0 GB"):
        plan_cells([sae(site(1), "a"), sae(site(1), "b", n_bytes=900)], SHARED, fleet(2, 1000))


def test_a_cell_is_called_the_same_wherever_it_is_planned():
    works = [sae(site(depth), name) for depth in (1, 2) for name in "ab"]
    one, again = plan_cells(works, SHARED, fleet(1)), plan_cells(works, SHARED, fleet(1, 1000))
    (cell,) = one.cells
    assert again.cells == one.cells
    parts = plan_cells(works, SHARED, fleet(4)).cells
    assert len({part.id for part in parts} - {cell.id}) == len(parts) > 1


kinds = st.sampled_from(["attn_out", "mlp_out", "resid_post"])
sweep = st.tuples(st.integers(1, 12), kinds, st.floats(0.1, 500), st.integers(1, 80), st.integers(0, 2), st.booleans())


def works_of(described: list[tuple[int, str, float, int, int, bool]]) -> list[SAEWork]:
    return [
        sae(site(depth, kind), f"s{i}", seconds, n_bytes, seed, trained)
        for i, (depth, kind, seconds, n_bytes, seed, trained) in enumerate(described)
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(sweep, min_size=1, max_size=40), st.integers(1, 9), st.integers(230, 900))
def test_every_sae_is_in_one_cell_none_is_too_large_and_no_plan_beats_the_bound(described, n_devices, room):
    works = works_of(described)
    plan = plan_cells(works, SHARED, fleet(n_devices, room))
    assert sorted(name for cell in plan.cells for name in cell.saes) == sorted(work.id for work in works)
    by_id = {work.id: work for work in works}
    for cell in plan.cells:
        inside = [by_id[name] for name in cell.saes]
        buffers = sum({work.site.name: work.site.n_bytes[0] for work in inside if not work.trained}.values())
        assert cell.n_bytes == 100 + buffers + sum(work.n_bytes[0] for work in inside) <= room
    assert [cell.seconds for cell in plan.cells] == pytest.approx(seconds_by_hand(plan, works))
    assert all(0 <= device < n_devices for device in plan.device_of)
    bound = least_makespan(works, SHARED, fleet(n_devices, room))
    assert plan.makespan >= bound * (1 - 1e-9)
    longest = max(cell.seconds for cell in plan.cells)
    mean = plan.seconds / n_devices
    assert plan.makespan <= (mean + longest * (1 - 1 / n_devices)) * (1 + 1e-9), "no device idles while a cell waits"


def partitions(works: list[SAEWork]) -> Iterator[list[list[SAEWork]]]:
    """All ways to put some SAEs into cells."""
    if not works:
        yield []
        return
    for rest in partitions(works[1:]):
        yield [works[:1], *rest]
        for i in range(len(rest)):
            yield [*rest[:i], [works[0], *rest[i]], *rest[i + 1 :]]


def best_of_all(works: list[SAEWork], n_devices: int, room: int) -> float:
    """The least makespan, by trying every partition into cells that fit and every way to give them to devices."""
    found = math.inf
    for cells in partitions(works):
        buffers = [
            sum({work.site.name: work.site.n_bytes[0] for work in cell if not work.trained}.values()) for cell in cells
        ]
        holds = [100 + n + sum(work.n_bytes[0] for work in cell) for n, cell in zip(buffers, cells, strict=True)]
        if max(holds) > room:
            continue
        ids = [Cell("", tuple(work.id for work in cell), 0, 0, 0) for cell in cells]
        seconds = seconds_by_hand(CellPlan(tuple(ids), (0,) * len(ids), ()), works)
        for devices in product(range(n_devices), repeat=len(cells)):
            busy = [sum(s for s, at in zip(seconds, devices, strict=True) if at == n) for n in range(n_devices)]
            found = min(found, max(busy))
    return found


@settings(max_examples=80, deadline=None)
@given(st.lists(sweep, min_size=1, max_size=4), st.integers(1, 2), st.integers(230, 500))
def test_the_bound_is_below_the_best_of_all_plans(described, n_devices, room):
    works = works_of(described)
    best = best_of_all(works, n_devices, room)
    assert least_makespan(works, SHARED, fleet(n_devices, room)) <= best * (1 + 1e-9)
    assert plan_cells(works, SHARED, fleet(n_devices, room)).makespan >= best * (1 - 1e-9)


def test_what_is_trained_already_drags_no_cell_along_that_trains():
    """By hand: two sites at depth 10, of each one SAE trained and one to train, two of the latter fit into a cell.

    Apart, 5 + 3 + 100 + 40 s to train and 5 + 3 + 10 + 40 s to evaluate; site by site two cells would capture.
    """
    works = [
        sae(site(10, kind), f"s{seed}", seed=seed, trained=seed == 0, n_bytes=30)
        for kind in ("attn_out", "mlp_out")
        for seed in (0, 1)
    ]
    shared = replace(SHARED, n_bytes=(100, 100, 0))
    works = [replace(work, n_bytes=(work.n_bytes[0], 80, 0)) for work in works]
    plan = plan_cells(works, shared, fleet(1, 100 + 2 * 80))
    assert sorted(cell.seconds for cell in plan.cells) == [5 + 3 + 10 + 40, 5 + 3 + 100 + 40]
    assert plan.makespan == least_makespan(works, shared, fleet(1, 100 + 2 * 80))


def test_shared_captures_pay_where_the_language_model_is_the_work_and_not_where_it_is_not():
    """By hand, one host of 8, seven SAEs of one stream at depth 10: capture takes 90 s, a trainer 5 + 3 + 10 + 20 s.

    So each of 7 trainers has one, and the wave lasts as long as the capture; each trainer's batches are a second's work
    of the link. Steps of 5,000 s are another matter: then the eighth device had better train.
    """
    works = [sae(site(10), f"s{i}", n_bytes=100) for i in range(7)]
    room = 100 + 50 + 100
    shared = share_captures(works, SHARED, fleet(8, room))
    assert shared is not None
    assert (shared.n_trainers, shared.makespan) == (7, 90)
    assert shared.n_bytes == 7 * int(LINK_BYTES)
    assert shared.lm_seconds == pytest.approx(90 + 7 * (3 + 10 + 2))
    assert plan_cells(works, SHARED, fleet(8, room)).makespan == 5 + 3 + 100 + 20
    long = [replace(work, seconds=(5000.0,)) for work in [*works, sae(site(10), "s7", n_bytes=100)]]
    own = plan_cells(long, SHARED, fleet(8, room))
    assert own.makespan == 5 + 3 + 100 + 5000
    assert not pays(own, share_captures(long, SHARED, fleet(8, room)))
    assert share_captures(works, SHARED, fleet(1)) is None
    assert share_captures([replace(work, trained=True) for work in works], SHARED, fleet(8, room)) is None


def test_a_shared_capture_goes_as_deep_as_what_is_left_to_train_and_moves_no_other_batches():
    """By hand: one SAE at depth 2 is left, six at depth 10 are evaluated: 9 s a layer, the batches of one stream."""
    works = [sae(site(2), "a", n_bytes=100), *(sae(site(10), f"s{i}", n_bytes=100, trained=True) for i in range(6))]
    shared = share_captures(works, SHARED, fleet(8, 100 + 50 + 100))
    assert shared is not None
    assert shared.n_bytes == int(LINK_BYTES)
    assert shared.lm_seconds == pytest.approx(2 * 9 + 7 * (3 + 2) + 2 * 1 + 6 * 10 * 1)
    assert shared.makespan == 5 + 3 + 10 * 1 + 20
