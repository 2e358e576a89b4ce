"""A record about latents says what it was made from: whatever of that is another now is named, and nothing else."""

import pytest
from synthetic import records, typed

from sae_bench.records import lineage

COLLECTION = {"settings": {"weights_sha256": "w" * 64}}
LATENT = {"latent": 3, "examples": ["an excerpt"], "explanation": "cats", "scores": {"detection": 0.7}, "judge": {}}


def record(**more):
    made_from = lineage.hashes(COLLECTION, [LATENT])
    details = {"judge": {"n_latents": 1}, "made_from": made_from} | more
    return typed([records(("topk",), (16.0,))[0] | {"details": details}])[0]


def changed(collection=COLLECTION, latent=LATENT, of=None):
    return lineage.changed_since(of or record(), lineage.hashes(collection, [latent]), [latent])


def test_nothing_is_named_where_nothing_changed():
    assert changed() == []


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"collection": {"settings": {"weights_sha256": "v" * 64}}}, ["weights"]),
        ({"latent": LATENT | {"examples": ["another"]}}, ["latents"]),
        ({"latent": LATENT | {"latent": 4}}, ["latents", "answers"]),
        *(({"latent": LATENT | {key: "another"}}, ["answers"]) for key in lineage.JUDGED),
    ],
    ids=str,
)
def test_what_changed_is_named(given, names):
    assert changed(**given) == names


def test_what_nobody_judged_was_made_from_no_answers_and_an_older_record_is_held_against_the_judge():
    other = LATENT | {"judge": None}
    assert changed(latent=other, of=record(judge=None)) == []
    assert changed(latent=other, of=record(made_from=None)) == ["answers"]
    assert changed(of=record(made_from=None)) == []
