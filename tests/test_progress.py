"""Progress without a terminal: lines within an item that takes long, and the time left of the whole run."""

import pytest

from sae_bench import progress
from sae_bench.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """Time passes when a test says so."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_lines_come_within_an_item_and_count_its_share(clock, capsys):
    shown = Progress()
    for _ in shown.track("evaluate", [16, 16], 32, lambda n: n):
        for share in (0.25, 0.5, 0.75, 1.0):
            clock.now += 15
            shown.within(share)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["evaluate: 4/32, 15 s, eta 105 s", "evaluate: 8/32, 30 s, eta 90 s"]
    assert lines[-1] == "evaluate: 32 in 120 s"
    shown.within(0.5)
    assert not capsys.readouterr().err, "no item is under way"


def test_the_time_left_is_that_of_the_whole_run(clock, capsys):
    """40 s of 80 are left of training, and 600 come after it; of the evaluation nothing comes after."""
    shown = Progress()
    shown.expect({"train": 70.0, "evaluate": 600.0})
    for _ in shown.track("train", range(4), 4):
        clock.now += 20
    assert "train: 2/4, 40 s, eta 40 s, run 10.7 min" in capsys.readouterr().err
    for _ in shown.track("site means", range(2), 2):
        clock.now += 20
    assert "site means: 1/2, 20 s, eta 20 s, run 10.3 min" in capsys.readouterr().err
    for _ in shown.track("evaluate", range(2), 2):
        clock.now += 20
    assert "evaluate: 1/2, 20 s, eta 20 s\n" in capsys.readouterr().err


def test_bars_take_shares_too(clock, monkeypatch):
    shown = Progress()
    shown.bars = True
    shown.expect({"train": 1.0, "evaluate": 60.0})
    for _ in shown.track("train", [10], 10, lambda n: n):
        clock.now += 5
        shown.within(0.5)


def test_durations_are_said_in_a_unit_that_fits():
    assert [duration(seconds) for seconds in (12, 120, 9000)] == ["12.0 s", "2.0 min", "2.5 h"]
