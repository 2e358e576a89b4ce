"""Records of a folder, read together, are those that are read one by one; what is wrong with one is said of it."""

import json

import pytest
from synthetic import records, seal, typed

from sae_bench.errors import UserError
from sae_bench.records.files import Damaged, read_sealed
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import read_record, write_record

LABEL = "naïve 数 \U0001f600: \"a\": 1,\n 'b'"


@pytest.fixture
def folder(tmp_path):
    of = typed(records(("topk", LABEL), (16.0,)))
    saes = {record.sae.id: record.sae for record in of}
    for i, record in enumerate(of):
        write_record(tmp_path / "records" / f"{i:02}.json", record.model_copy(update={"sae": saes[record.sae.id]}))
    return RunFolder(tmp_path)


def paths(folder):
    return sorted((folder.path / "records").iterdir())


def test_they_are_those_that_are_read_one_by_one(folder):
    alone = [read_record(path) for path in paths(folder)]
    together = folder.records()
    assert together == alone
    assert [record.as_json() for record in together] == [record.as_json() for record in alone]
    assert {record.sae.label for record in together} == {"topk", LABEL}


def test_what_records_repeat_is_read_once(folder):
    """Records of 2 labels and 2 seeds, 3 each, of one run: thousands of them are read in a second by it."""
    found = folder.records()
    assert len(found) == 12
    assert len({id(record.provenance) for record in found}) == 1
    assert len({id(record.sae) for record in found}) == 4


def test_one_that_is_laid_out_otherwise_is_read(folder):
    alone = [read_record(path) for path in paths(folder)]
    seal(paths(folder)[0], {key: value for key, value in read_sealed(paths(folder)[0]).items() if key != "siblings"})
    assert folder.records() == alone


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('  "d_sae": 512,\n', '  "d_sae": 513,\n'),
        ('  "d_sae": 512,\n', '  "d_sae": 512,\n  "d_sae": 512,\n'),
        ('  "arch": "topk",\n  "arch_version": "1",\n', '  "arch_version": "1",\n  "arch": "topk",\n'),
        (' "failure": null,\n', ' "failure": null,\n "failure": null,\n'),
        (' "failure": null,\n', ""),
        (' "failure": null,\n', ' "fail\n ure": null,\n'),
        (' "task"', ' "ta\nsk"'),
        ("{\n", "\n"),
        (' "seal": "', ' "seal": "0'),
        (' "seal": "', ' "seal": "0",\n "seal": "'),
        ('"\n}\n', '"\n'),
    ],
)
def test_whatever_was_changed_in_one_is_seen(folder, old, new):
    path = paths(folder)[1]
    before = path.read_text()
    after = before.replace(old, new, 1)
    assert after != before
    path.write_text(after)
    with pytest.raises(Damaged, match=r"01\.json is not"):
        folder.records()


def test_one_that_is_ill_typed_or_of_a_later_version_is_named(folder):
    path = paths(folder)[1]
    content = read_sealed(path)
    for layout in (None, 1):
        for wrong, message in (
            ({"sae": content["sae"] | {"d_sae": "wide"}}, r"01\.json: sae\.d_sae: .*got 'wide'"),
            ({"scores": {"l0": {"value": "5"}}}, r"01\.json: scores\.l0\.value"),
            ({"schema_version": 99}, r"01\.json: schema_version 99: this version of sae-arch-bench reads"),
        ):
            seal(path, content | wrong)
            path.write_text(json.dumps(json.loads(path.read_text()), indent=layout, sort_keys=True) + "\n")
            with pytest.raises(UserError, match=message):
                folder.records()
