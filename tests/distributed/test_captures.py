"""Which cells share a capture: by the plan, by the wish, and never more at a time than there are devices."""

from types import SimpleNamespace

import pytest

from sae_bench.distributed import crew, remote
from sae_bench.distributed.captures import rounds, trainers_of
from sae_bench.distributed.planner import Cell
from sae_bench.errors import UserError

CELLS = [Cell(f"cell-{i}", (f"sae-{i}",), 1.0, 0, 0.0) for i in range(7)]


@pytest.mark.parametrize(
    ("mode", "paying", "n_devices", "expected"),
    [
        ("own", 3, 8, 0),  # whatever the plan says
        ("auto", 3, 8, 3),  # as the plan says
        ("auto", 0, 8, 0),  # it does not pay
        ("shared", 3, 8, 3),  # the plan knows best in which groups
        ("shared", 0, 8, 7),  # it does not pay, and is wanted: one captures for all others
    ],
)
def test_who_shares(mode, paying, n_devices, expected):
    assert trainers_of(mode, paying, n_devices) == expected


def test_whether_it_pays_is_asked_of_all_that_is_left_and_of_what_is_trained_by_name(monkeypatch):
    asked = []
    driver = SimpleNamespace(
        _mode="auto", _slots=SimpleNamespace(n=2, n_bytes=9), _begin=lambda *about: (asked.append(about), 1)[1]
    )
    monkeypatch.setattr(crew, "value_of", lambda task: task)
    assert crew.ClusterCrew._n_trainers(driver, ["new", "old"], {"new": None}) == 1
    assert asked == [(remote.paying, "plan", ["new", "old"], ["old"], 2, 9)]
    assert crew.ClusterCrew._n_trainers(driver, ["old"], {}) == 0
    assert len(asked) == 1, "nothing is left to train"


def test_one_device_cannot_share():
    with pytest.raises(UserError, match="--capture shared: the cluster works on one cell at a time"):
        trainers_of("shared", 0, 1)
    assert trainers_of("auto", 0, 1) == 0


@pytest.mark.parametrize(("n_trainers", "n_devices"), [(1, 2), (3, 4), (3, 8), (3, 9), (7, 8), (2, 3)])
def test_a_round_takes_no_more_devices_than_there_are_and_every_cell_has_its_turn(n_trainers, n_devices):
    """With fewer, cells would wait for a capture that waits for their devices."""
    found = rounds(CELLS, n_trainers, n_devices)
    assert [cell for groups in found for group in groups for cell in group] == CELLS
    for groups in found:
        assert sum(1 + len(group) for group in groups) <= n_devices
        assert all(len(group) <= n_trainers for group in groups)
    busiest = max(sum(map(len, groups)) for groups in found)
    assert busiest == min(len(CELLS), n_devices // (1 + n_trainers) * n_trainers), "none is idle that need not be"
