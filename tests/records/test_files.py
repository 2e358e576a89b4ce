"""Sealed files: what is read is what was written, to the last bit, and nothing else is read."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.records.files import Damaged, as_hashed, as_sealed, digest_of, pieces_of, read_sealed, write_sealed

CONTENT = {
    "a": {"z": [1, -0.0, 1e-300, 0.1 + 0.2], "y": {}, "x": []},
    "b": 2.5,
    "said": 'a,\n "b": [1]\\n',
    "seal2": "x",
    "t": 1,
}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(texts, parts, max_size=4),
    max_leaves=20,
)


def bits(content):
    """What tells 1 from 1.0, and 0.0 from -0.0."""
    return json.dumps(content, sort_keys=True)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(texts.filter(lambda key: key != "seal"), values, max_size=5))
def test_what_is_read_is_what_was_written(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("sealed") / "file.json"
    write_sealed(path, content)
    assert bits(read_sealed(path)) == bits(as_sealed(content))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=50, max_size=50))
def test_numbers_are_the_same_to_the_last_bit(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("sealed") / "file.json"
    write_sealed(path, {"numbers": numbers})
    found = read_sealed(path)["numbers"]
    assert [(x, math.copysign(1, x)) for x in found] == [(x, math.copysign(1, x)) for x in numbers]


names = st.text('ab_1é数 :,"\\', max_size=4)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        names, st.lists(numbers | texts, max_size=3) | numbers | st.dictionaries(names, numbers, max_size=2)
    )
)
def test_a_piece_is_hashed_as_its_canonical_text_whether_its_value_is_known_or_not(tmp_path_factory, content):
    """Of numbers under plain names spaces are dropped unseen, and of nothing else."""
    path = tmp_path_factory.mktemp("sealed") / "file.json"
    write_sealed(path, {"sums": content})
    piece = next(one for one in pieces_of(path.read_bytes()) if one.startswith(b"sums"))
    canonical = json.dumps({"sums": content}, sort_keys=True)[2:-1].encode()
    assert as_hashed(piece, content) == as_hashed(piece) == canonical


def test_a_piece_with_a_name_twice_is_hashed_as_it_stands():
    piece = b'sums": {\n  "a": [\n   1,\n   2\n  ],\n  "a": 3\n }'
    assert as_hashed(piece, {"a": 3}) == b'sums": {"a": [1, 2], "a": 3}'


def test_a_file_as_it_was_written_is_held_against_its_seal_without_writing_its_numbers_anew(tmp_path, monkeypatch):
    write_sealed(tmp_path / "file.json", CONTENT)
    with monkeypatch.context() as patched:
        patched.setattr(json, "dumps", None)
        found = read_sealed(tmp_path / "file.json")
    assert bits(found) == bits(CONTENT)


@pytest.mark.parametrize("layout", [{}, {"indent": 4}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_a_file_that_is_laid_out_otherwise_is_read(tmp_path, layout):
    content = as_sealed(CONTENT | {"said": "naïve 数 \U0001f600 \x7f"})
    (tmp_path / "file.json").write_text(json.dumps(content | {"seal": digest_of(content)}, sort_keys=True, **layout))
    assert bits(read_sealed(tmp_path / "file.json")) == bits(content)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"b": 2.5', '"b": 2.6'),
        ('"b": 2.5', '"b": "2.5"'),
        ('"b": 2.5,\n', '"b": 2.5,\n "b": 2.5,\n'),
        ('"b": 2.5,\n', '"b": 1.5,\n "b": 2.5,\n'),
        ('"b": 2.5,\n "said"', '"said"'),
        (' "t": 1\n', ' "t": 1,\n "u": 1\n'),
        ("   1e-300,\n", "   1e-300,\n   1e-300,\n"),
        ("   1,\n   -0.0,\n", "   -0.0,\n   1,\n"),
        ("   -0.0,\n", "   0.0,\n"),
        ('  "x": [],\n  "y": {},\n', '  "y": {},\n  "x": [],\n'),
        ('"seal": "', '"seal": "0'),
        ('"seal": "', '"seal": null, "was": "'),
        (' "seal2"', ' "seal": "' + "0" * 64 + '",\n "seal2"'),
        ("}\n", "}\n}\n"),
        ("{\n", "[{\n"),
    ],
)
def test_whatever_was_changed_is_seen(tmp_path, old, new):
    """Values, their order, keys, their order, what stands there twice, and the seal itself."""
    path = tmp_path / "file.json"
    write_sealed(path, CONTENT)
    before = path.read_text()
    after = before.replace(old, new, 1)
    assert after != before
    path.write_text(after)
    with pytest.raises(Damaged, match=r"file\.json is not .*delete it"):
        read_sealed(path)


@pytest.mark.parametrize("text", ["[]", "{}", '"seal"', "1", '{"seal": null}', '{"a": "\\ud800"}', '{"a": NaN}'])
def test_what_was_never_sealed_is_damaged(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(Damaged):
        read_sealed(tmp_path / "file.json")
