"""A cell that ends before it has done all leaves each number that it had, and a reason where there is none.

The crew here works as one process does, and counts what stops it as a cluster counts a cell that is given up.
"""

import shutil
from pathlib import Path

import pytest
from command import bench, flags
from fake_judge import fake_judge, nay_sayer
from test_end_to_end import records_of

from sae_bench.runs import cell, pipeline

REASON = "the cell was given up"


class GivesUp(pipeline.LocalCrew):
    """A crew whose one cell fails at a stage, if it comes to that."""

    stage: str | None = None

    def work(self, order, saes, begun):
        with pytest.MonkeyPatch.context() as patch:
            if self.stage:
                patch.setattr(cell, self.stage, fails)
            try:
                return super().work(order, saes, begun)
            except RuntimeError as error:
                return {sae.id: str(error) for sae in saes}


def fails(*arguments, **options):
    raise RuntimeError(REASON)


@pytest.fixture(autouse=True)
def crew(monkeypatch):
    monkeypatch.setattr(pipeline, "LocalCrew", GivesUp)


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    return {
        "--arch": "topk", "--seed": (0, 1), "--l0": 6, "--model": gemma2_folder, "--layer": 1, "--dataset": corpus,
        "--width": 48, "--tokens": 1200, "--reuse": 2, "--batch-size": 120, "--eval-tokens": 300, "--context-size": 32,
        "--interp-tokens": 300, "--tasks": ("reconstruction", "stability", "autointerp"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(settings, at_work) -> Path:
    assert bench(*flags(settings | {"--latents": 3, "--out": at_work / "whole"}), "--chance", "--quiet") == 0
    return at_work / "whole"


def failures_of(run: Path) -> dict[str, set[str | None]]:
    """By task, the reasons in its records: None where there are numbers."""
    found: dict[str, set[str | None]] = {}
    for record in records_of(run).values():
        found.setdefault(record["task"], set()).add(record["failure"])
    return found


ALL = {"reconstruction": {None}, "stability": {None}, "autointerp": {None}}
LATENTS = ALL | {"autointerp": {REASON}}


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("TrainStage", {key: {REASON} for key in ALL}),
        ("evaluate_saes", LATENTS | {"reconstruction": {REASON}}),  # seeds are compared once all cells have ended
        ("collect_latents", LATENTS),
    ],
)
def test_a_cell_that_fails_leaves_what_it_had_done_and_says_why_there_is_no_more(
    settings, finished, tmp_path, monkeypatch, stage, left
):
    command = [*flags(settings | {"--latents": 3, "--out": tmp_path / "run"}), "--chance", "--quiet"]
    monkeypatch.setattr(GivesUp, "stage", stage)
    assert bench(*command) == 1
    assert failures_of(tmp_path / "run") == left
    assert records_of(tmp_path / "run").keys() == records_of(finished).keys(), "no row is missing"
    monkeypatch.setattr(GivesUp, "stage", None)
    assert bench(*command) == 0, "the same command tries it again"
    assert failures_of(tmp_path / "run") == ALL


@pytest.mark.parametrize("with_judge", [False, True])
def test_latents_of_other_settings_count_as_none_where_the_cell_fails_before_it_collects_anew(
    settings, finished, tmp_path, monkeypatch, with_judge
):
    out = shutil.copytree(finished, tmp_path / "run")
    with fake_judge(nay_sayer) as judge:
        asked = {"--judge-model": "toy", "--judge-base-url": judge.base_url} if with_judge else {}
        command = [*flags(settings | asked | {"--latents": 4, "--out": out}), "--chance", "--quiet"]
        monkeypatch.setattr(GivesUp, "stage", "collect_latents")
        assert bench(*command) == 1
        assert failures_of(out) == LATENTS
        monkeypatch.setattr(GivesUp, "stage", None)
        assert bench(*command) == 0
    assert failures_of(out) == ALL
