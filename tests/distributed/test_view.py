"""What is said of a run on a cluster: counts, rate and time left follow from the reports alone."""

import pytest

from sae_bench.distributed import view as view_module
from sae_bench.distributed.desk import Report
from sae_bench.distributed.returned import Faults
from sae_bench.distributed.view import CellView, View
from sae_bench.progress import Progress

TRAINING = Report("train", 50, 100)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(view_module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def view(clock):
    """Four cells; the first takes as long as the others together."""
    cells = {"a": CellView(30.0, 3), "b": CellView(10.0, 2), "c": CellView(10.0, 1), "d": CellView(10.0, 1)}
    return View(Progress(), cells, 1000)


def test_cells_are_counted_and_tokens_of_every_sae(view, clock):
    view.show({"b": Report("train", 0, 100)}, ["b"])
    clock[0] += 20
    view.finished("c", failed=True)
    view.show({"b": TRAINING}, ["b"])
    # 50 steps of 1000 tokens of 2 SAEs in 20 s; of 60 planned seconds, 5 of b and 10 of c are done.
    assert view.line({"b": TRAINING}, ["b"]) == "1 running, 2 waiting, 1 failed, 5,000 SAE-tokens/s, eta 0:01:00"


def test_what_comes_after_the_training_is_still_to_do(clock):
    """A cell's 40 planned seconds are 30 of training and 10 of evaluation."""
    view = View(Progress(), {"a": CellView(40.0, 1, 0.25)}, 1)
    clock[0] += 500  # it loads
    assert view.seconds_left({"a": Report("load")}) is None
    assert view.seconds_left({"a": Report("train", 0, 100)}) is None
    clock[0] += 60
    assert view.seconds_left({"a": Report("train", 50, 100)}) == pytest.approx(60 * 25 / 15)
    assert view.seconds_left({"a": Report("train", 100, 100)}) == pytest.approx(60 * 10 / 30)
    assert view.seconds_left({"a": Report("site means", 3, 4)}) == pytest.approx(60 * 10 / 30)
    assert view.seconds_left({"a": Report("evaluate", 4, 8)}) == pytest.approx(60 * 5 / 35)
    assert view.seconds_left({"a": Report("collect", 1, 8)}) == 0


def test_what_earlier_commands_did_took_no_time_of_this_one(view, clock):
    view.finished("a", failed=False)
    reports = {"b": Report("train", 0, 100)}
    assert view.seconds_left(reports) is None
    clock[0] += 20
    assert view.seconds_left(reports | {"b": TRAINING}) == pytest.approx(20 * 25 / 5)


def test_a_cell_that_begins_again_takes_nothing_back(view, clock):
    view.show({"b": TRAINING}, ["b"])
    clock[0] += 10
    view.show({"b": Report("train", 10, 60)}, ["b"])
    assert view.tokens_per_second == 0
    clock[0] += 10
    view.show({"b": Report("train", 20, 60)}, ["b"])
    assert view.tokens_per_second == 10 * 1000 * 2 / 20


def test_the_rate_is_the_last_minutes(view, clock):
    for done in range(0, 100, 10):
        view.show({"a": Report("train", done, 100)}, ["a"])
        clock[0] += 10
    clock[0] += 100
    view.show({"a": Report("train", 90, 100)}, ["a"])
    assert view.tokens_per_second == 0


def test_plain_lines_come_from_time_to_time_and_none_if_quiet(view, clock, capsys):
    view.show({"a": Report("train", 0, 9)}, ["a"])
    clock[0] += view_module.LINE_EVERY_S + 1
    view.show({"a": Report("evaluate", 1, 9)}, ["a"])
    assert capsys.readouterr().err == "cells: 0 of 4 done, 1 running, 3 waiting, 0 failed, eta 0:00:11\n"
    quiet = View(Progress(quiet=True), {"a": CellView(1.0, 1)}, 1)
    clock[0] += 100
    with quiet:
        quiet.show({}, [])
    assert capsys.readouterr().err == ""


def test_faults_count_from_one_checkpoint():
    faults = Faults()
    faults.note(Report("train", 30, 100))
    faults.note(Report("load"))  # it did not come to training
    assert faults.n == 2
    faults.note(Report("train", 5, 80))  # from a later checkpoint
    assert faults.n == 1
    faults.note(Report("evaluate", 5, 80))
    faults.note(Report("evaluate", 5, 80))
    assert faults.n == 3
