"""The check on a real GPU, rehearsed: every part runs to its end with toy sizes on the CPU and finds no fault."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu_check")
    command = [sys.executable, ROOT / "benchmarks" / "gpu_check.py", "--toy", "--out", out, "--minutes", "60"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture
def parts(rehearsal):
    return json.loads((rehearsal / "gpu_check.json").read_text())["parts"]


def test_every_part_runs_to_its_end_without_an_error(parts):
    assert set(parts) == set("abcde")
    assert {part: found["errors"] for part, found in parts.items()} == {part: {} for part in parts}


def test_no_check_fails_and_none_is_left_out(parts):
    for part, found in parts.items():
        for title, rows in found["tables"].items():
            assert rows, (part, title)
            for row in rows:
                assert row.get("ok") is not False, (part, title, row)
                assert not row.get("note"), (part, title, row)


def test_a_resumed_run_and_a_repeated_one_have_the_bits_of_the_first(parts):
    found = parts["a"]["tables"]
    assert all(row["equal"] for row in found["command line"] if "equal" in row)
    assert all(row["equal, auto"] and row["equal, dense"] for row in found["repeatability"])


def test_every_architecture_is_timed_with_every_trainer_at_every_width(parts):
    steps = {row["what"] for row in parts["b"]["tables"]["steps"]}
    n = len({name.partition(",")[0] for name in steps})
    assert n >= 9, "every architecture but controls"
    assert len(steps) == 2 * (2 * n + 2 * 6), "two widths; ours screened and not; six dense twins in two precisions"
    timed = {row["what"] for row in parts["b"]["tables"]["parts"] if row["part"] == "optimiser" and row["ms"] > 0}
    assert len(timed) == 2 * n


def test_a_screen_in_lower_precision_stays_within_its_bound(parts):
    for row in parts["b"]["tables"]["float8 screen"]:
        assert row["missed"] == 0
        assert 0 < row["largest error / bound"] <= 1


def test_the_results_are_written_as_tables_too(rehearsal):
    text = (rehearsal / "gpu_check.md").read_text()
    assert "Checks that failed: none." in text
    assert text.count("## (") == 5
