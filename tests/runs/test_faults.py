"""Faults of every kind in a short version; `python tests/faults.py` has the long one, and writes the table."""

import signal

import attacks
import broken_parts
import faults
import fuzz
import loads
import pytest

SHORT = {
    "kill": lambda lab: faults.killed(lab, signal.SIGKILL, 4),
    "term": lambda lab: faults.killed(lab, signal.SIGTERM, 2),
    "disk": lambda lab: faults.full_disk(lab, 2),
    "bits": lambda lab: faults.flipped_bits(lab, 1),
    "two": lambda lab: faults.two_processes(lab, 1),
    "corpus": lambda lab: broken_parts.broken_corpus(lab, 2),
    "nan": lambda lab: broken_parts.nan_in_the_model(lab, 1),
    "clock": lambda lab: broken_parts.clock(lab, 1),
    "own": lambda lab: attacks.users_files(lab, 1),
    "caches": lambda lab: attacks.damaged_caches(lab, 1, attacks.CACHES[:1]),
    "loads": lambda lab: loads.loads(lab, 0.01),
    **{name: lambda lab, name=name: fuzz.row(name, 4) for name in fuzz.ROWS},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory, at_work):
    return faults.Lab(tmp_path_factory.mktemp("lab"))


@pytest.mark.parametrize("name", SHORT)
def test_a_fault_costs_no_result(lab, name):
    outcome = SHORT[name](lab)
    assert outcome.injected > 0
    assert (outcome.survived, outcome.lost, outcome.wrong) == (outcome.injected, 0, 0), outcome


def test_every_fault_of_the_long_version_has_a_short_one():
    assert set(SHORT) == set(faults.LONG) - {"soak"}
