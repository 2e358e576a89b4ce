"""`verify` on latents that raters saw: a study's record is of these weights, latents and answers."""

import pytest
from studies import answer, write_study

from sae_bench.cli.main import main
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.records.lineage import collected_hash
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.verify_latents import verify_latents
from sae_bench.study.answers import add_events
from sae_bench.study.schema import StudyFolder


@pytest.fixture
def rated(tmp_path):
    """A run whose latents three raters saw: its folder, and the record that they left of one SAE."""
    path, study = write_study(tmp_path)
    folder = StudyFolder(path)
    for rater in (1, 2, 3):
        assignment = folder.assignment(rater)
        said = [answer(showing, 100 * rater + n) for n, showing in enumerate(assignment.showings)]
        add_events(folder, assignment, said)
    with pytest.raises(SystemExit) as stop:
        main(["study", "results", str(path)])
    assert stop.value.code == 0
    run = RunFolder(tmp_path / "run")
    for file in [*run.path.glob("latents/*/*.json"), *run.path.glob("collections/*.json")]:
        write_sealed(file, read_sealed(file))  # as a run writes it, to the byte
    return run, study.saes[0].sae.id


def found(run, sae):
    return {what.removeprefix("latents of "): problem for what, problem in verify_latents(run, run.records())}[sae]


def changed(path, change):
    content = read_sealed(path)
    change(content)
    write_sealed(path, content)


def test_what_raters_saw_and_said_is_what_their_record_was_made_from(rated):
    run, _ = rated
    assert len([one for one in run.records() if one.task == "human"]) == 3
    assert {problem for _, problem in verify_latents(run, run.records())} == {None}


def test_an_answer_that_was_changed_in_the_record_is_found(rated):
    run, sae = rated
    changed(run.record_path(sae, "human"), lambda of: of["details"]["answers"][0].update(answer="no"))
    assert found(run, sae) == "human was made from other ratings: run `study results`, or make a new study"


def test_latents_that_were_collected_again_are_found(rated):
    """One of those that raters saw; whatever they did not see may change."""
    run, sae = rated
    shown = run.record(sae, "human").details["latents"]
    for number, told in ((next(n for n in range(12) if n not in shown), None), (shown[0], "human was made from other")):
        file = run.latents_path(sae) / f"{number}.json"
        changed(file, lambda of: of.update(n_fired=of["n_fired"] + 1))
        digest = collected_hash(read_sealed(file))
        changed(run.collection_path(sae), lambda of, n=str(number), to=digest: of["sha256"].update({n: to}))
        problem = found(run, sae)
        assert problem is None if told is None else problem.startswith(f"{told} latents: run `study results`")


def test_weights_that_latents_were_not_collected_from_are_found(rated):
    run, sae = rated
    changed(run.collection_path(sae), lambda of: of["settings"].update(weights_sha256="f" * 64))
    assert found(run, sae) == "they were collected from other weights than the records are of"


def test_a_record_of_raters_whose_latents_are_gone_is_looked_at_too(rated):
    run, sae = rated
    run.drop_latents(sae)
    assert "cannot read" in found(run, sae)
