"""Records as types: what is read is checked, what was written is read again, and earlier versions are understood."""

import copy
import json
from pathlib import Path

import pytest
from synthetic import record, typed

from sae_bench.errors import UserError
from sae_bench.leaderboard.tables import board_files
from sae_bench.records.files import digest_of, write_sealed
from sae_bench.records.schema import JUDGED_BY, NO_JUDGE, SCHEMA_VERSION, read_record, write_record

RESULTS = Path(__file__).parents[2] / "results"
PUBLISHED = sorted(path.parent for path in RESULTS.glob("*/records"))


@pytest.fixture
def content():
    """A record as version 1 wrote it: without a version."""
    return record("topk", 32.0, 0, "reconstruction")


def stored(folder, content):
    write_sealed(folder / "one.json", content)
    return folder / "one.json"


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, "2", None])
def test_a_version_that_is_not_known_is_refused_by_its_name(tmp_path, content, version):
    path = stored(tmp_path, content | {"schema_version": version})
    with pytest.raises(UserError) as raised:
        read_record(path)
    message = str(raised.value)
    assert f"{path}: schema_version {version!r}: " in message
    assert f"reads 1 to {SCHEMA_VERSION}; update it, or delete the file" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("sae.d_sae", "512", "'512'"),
        ("sae.target_l0", "32", "'32'"),
        ("sae.training.failure", 3, "3"),
        ("scores.fve.value", "0.5", "'0.5'"),
        ("scores.fve.n", 1.5, "1.5"),
        ("metrics.fve.better", "higher", "'higher'"),
        ("by_document.tokens", 7, "7"),
        ("per_latent.count", [1, "2"], "[1, '2']"),
        ("per_latent.count", [True], "[True]"),
        ("provenance.versions", ["2"], "['2']"),
        ("task", None, "None"),
    ],
)
def test_a_field_of_another_type_is_one_line_with_the_file_the_field_and_the_remedy(
    tmp_path, content, field, value, shown
):
    *where, last = field.split(".")
    part = content
    for name in where:
        part = part[name]
    part[last] = value
    path = stored(tmp_path, content)
    with pytest.raises(UserError) as raised:
        read_record(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: {field}: ")
    assert f", got {shown}: " in message
    assert message.endswith("delete it and run the same command again")
    assert "\n" not in message


@pytest.mark.parametrize("field", ["task", "sae", "provenance", "scores"])
def test_a_field_that_is_missing_is_named(tmp_path, content, field):
    del content[field]
    with pytest.raises(UserError, match=rf"one.json: {field}: Field required"):
        read_record(stored(tmp_path, content))


def test_an_sae_that_a_run_trained_has_a_seed_and_a_target(tmp_path, content):
    content["sae"]["seed"] = None
    with pytest.raises(UserError, match="an SAE without an origin has a seed"):
        read_record(stored(tmp_path, content))
    content["sae"]["origin"] = {"source": "elsewhere", "format": "saelens"}
    assert read_record(stored(tmp_path, content)).sae.seed is None


def test_both_sums_of_a_ratio_are_of_as_many_documents(tmp_path, content):
    formula = next(score["formula"] for score in content["scores"].values() if score.get("formula"))
    above, below = formula.removeprefix("1 - ").split(" / ")
    n = len(content["by_document"][below])
    content["by_document"][above] = content["by_document"][above][1:]
    with pytest.raises(UserError, match=rf"by_document: {formula} is of {n - 1} and {n} documents"):
        read_record(stored(tmp_path, content))


def test_what_is_written_is_read_again_and_what_nobody_declared_is_kept(tmp_path, content):
    content["sae"]["training"]["said_by_a_later_trainer"] = {"a": [1, 2.5]}
    content["of_a_plugin"] = "kept"
    (one,) = typed([content])
    write_record(tmp_path / "one.json", one)
    assert read_record(tmp_path / "one.json") == one
    written = json.loads((tmp_path / "one.json").read_text())
    written.pop("seal")
    assert written == json.loads(json.dumps(content)) | {"schema_version": SCHEMA_VERSION}


def test_a_changed_copy_is_written_as_it_is(tmp_path, content):
    (one,) = typed([content])
    write_record(tmp_path / "one.json", one.model_copy(update={"failure": "lost", "scores": {}, "added": 1}))
    again = read_record(tmp_path / "one.json")
    assert (again.failure, again.scores) == ("lost", {})
    assert again.model_extra == one.model_extra | {"added": 1}


def test_what_version_1_hid_in_details_of_judged_latents_is_said_in_general_terms(content):
    judge = {"model": "m", "n_latents": 3}
    details = {"judge": judge, "caption": "Judged by m.", "remarks": ["2 latents instead of 3"]}
    judged = content | {"measured_on": "latents", "details": details}
    (one,) = typed([judged])
    assert one.comparable == {JUDGED_BY: digest_of(judge)}
    assert (one.caption, one.remarks, one.not_measured) == ("Judged by m.", ["2 latents instead of 3"], None)
    (nobody,) = typed([content | {"measured_on": "latents", "details": {"judge": None}}])
    assert (nobody.comparable, nobody.not_measured) == ({}, NO_JUDGE)
    (failed,) = typed([content | {"measured_on": "latents", "details": {}, "failure": "diverged"}])
    assert failed.not_measured is None
    (of_tokens,) = typed([content])
    assert (of_tokens.comparable, of_tokens.not_measured) == ({}, None)


def test_version_2_is_taken_at_its_word(content):
    judged = {"measured_on": "latents", "details": {"judge": {"model": "m"}}, "schema_version": SCHEMA_VERSION}
    (one,) = typed([content | judged])
    assert (one.comparable, one.not_measured, one.caption) == ({}, None, None)


def is_of_version_1(folder):
    return "schema_version" not in json.loads(min(folder.glob("records/*.json")).read_text())


@pytest.mark.parametrize("folder", [path for path in PUBLISHED if is_of_version_1(path)], ids=lambda path: path.name)
def test_published_records_give_their_tables_now_and_once_rewritten(folder, tmp_path):
    """They are of version 1; what is written of them is of today's, and draws the same bytes."""
    paths = sorted(folder.glob("records/*.json"))
    assert not any("schema_version" in json.loads(path.read_text()) for path in paths)
    records = [read_record(path) for path in paths]
    before = copy.deepcopy(records)
    for path, one in zip(paths, records, strict=True):
        write_record(tmp_path / path.name, one)
    again = [read_record(tmp_path / path.name) for path in paths]
    assert again == records == before
    for name, text in board_files(again).items():
        assert (folder / name).read_text(encoding="utf-8") == text
