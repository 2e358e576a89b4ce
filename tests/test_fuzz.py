"""Whatever a suite, a command line or a record says: an answer or one clear line, never a traceback."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from command import bench
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sae_bench.errors import UserError
from sae_bench.parsing import parse_count
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.runs.config import RunConfig, parse_interval
from sae_bench.runs.suite import load_suite

FEW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = st.sampled_from(["archs", "model", "tokens", "seeds", "l0s", "sites", "layers", "preset", "kernels", "limit"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=6,
)


def answer(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call returns, or the one line that it refuses with; any other exception is a failure."""
    try:
        return call(), None
    except ValueError as error:  # a UserError is one
        return None, str(error)


@FEW
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b'archs = ["topk"]\nmodel = "../../etc"\n')
@example(b"seeds = " + b"[" * 10_000)
def test_any_bytes_as_a_suite(tmp_path, content):
    path = tmp_path / "suite.toml"
    path.write_bytes(content)
    suite, complaint = answer(lambda: load_suite(str(path)))
    assert isinstance(suite, dict) if complaint is None else str(path) in complaint


@FEW
@given(st.dictionaries(WORDS | st.text(max_size=8), VALUES, max_size=5))
@example({"\n": None})
@example({"seeds": [2**70]})
@example({"archs": ["topk:k=[1,", ":", "a:b"]})
def test_any_settings_as_a_configuration(given_settings):
    base = {"archs": ["topk"], "model": "m", "sites": ["resid_post"], "seeds": [0]}
    config, complaint = answer(lambda: RunConfig.build(base, given_settings))
    if complaint is not None:
        assert "\n" not in complaint
        return
    assert config.tokens > 0
    assert json.loads(json.dumps(config.identity)) == config.identity
    assert RunConfig(**config.identity).hash == config.hash


@FEW
@given(st.text(max_size=20))
@example(".K")
@example("1_.5")
def test_any_text_as_a_count_or_an_interval(text):
    for parse in (parse_count, lambda text: next(iter(parse_interval(text).values()))):
        count, complaint = answer(partial(parse, text))
        assert count >= 0 if complaint is None else repr(text) in complaint


FLAGS = st.sampled_from(
    ["--arch", "--tokens", "--width", "--l0", "--sparsity", "--seed", "--layer", "--site", "--preset", "--config",
     "--plugin", "--checkpoint-every", "--kernels", "--batch-size", "--context-size", "--eval-tokens", "--nonsense"]
)  # fmt: skip


@settings(FEW, max_examples=60)
@given(st.lists(st.tuples(FLAGS, st.text(max_size=10).filter(lambda text: "\0" not in text)), max_size=3))
def test_any_command_line(at_work, capfd, arguments):
    code = bench("--model", "no/such-model-anywhere", "--dry-run", *(part for pair in arguments for part in pair))
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert code in (0, 2)
    if code == 2:
        assert err.startswith("error: ")


@FEW
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_in_a_sealed_file_never_passes_for_what_was_written(tmp_path, content, place, bit):
    path = tmp_path / "record.json"
    try:
        write_sealed(path, content)
    except ValueError:  # NaN, which no file may hold
        return
    written = read_sealed(path)
    broken = bytearray(path.read_bytes())
    broken[place % len(broken)] ^= 1 << bit
    path.write_bytes(broken)
    found, complaint = answer(lambda: read_sealed(path))
    # Equal: a bit of white space, or of an escape that means the same.
    assert found == written if complaint is None else str(path) in complaint


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "3", '"x"', "{}", '{"seal": 1}', "\ufeff{}", '{"a": NaN}', "[" * 10**5, '{"seal": ' * 10**5],
    ids=lambda content: content[:12],
)
def test_json_that_is_no_record_is_damaged(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"record\.json"):
        read_sealed(path)
