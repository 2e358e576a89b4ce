"""A study: what it samples, who sees what, what raters receive, and which answers count."""

import json
import re
from collections import Counter
from itertools import pairwise

import pytest
from command import bench
from studies import answer, settings, undo, write_collected_run, write_study
from synthetic import seal

from sae_bench.errors import UserError
from sae_bench.records.files import read_sealed
from sae_bench.study.answers import RESULTS, add_events
from sae_bench.study.make import make_study
from sae_bench.study.page import rater_page
from sae_bench.study.plan import plan
from sae_bench.study.schema import StudyFolder, answers_of, read_events


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("made"))


def test_every_rater_sees_every_sae_equally_and_every_latent_has_its_raters():
    by_sae = [[f"{sae}.{i}" for i in range(20)] for sae in range(4)]
    orders = plan(by_sae, settings(n_raters=5, overlap=2, repeats=4))
    seen = Counter(item for order in orders for item, showing in order if not showing)
    assert set(seen.values()) == {2}
    assert len(seen) == 80
    together: Counter = Counter()
    for rater, order in enumerate(orders):
        first = [item for item, showing in order if not showing]
        assert Counter(item[0] for item in first) == dict.fromkeys("0123", 8)
        assert all({item[0] for item in first[at : at + 4]} == set("0123") for at in range(0, 32, 4)), "blocks"
        again = [item for item, showing in order if showing]
        assert len(again) == 4
        assert {item[0] for item in again} == set("0123"), "repeats are spread over SAEs"
        for item in again:
            between = order[order.index((item, 0)) + 1 : order.index((item, 1))]
            assert len([one for one in between if not one[1]]) >= 15, "half of the items lie between"
        together.update(
            frozenset((rater, other)) for other in range(rater) for item in first if (item, 0) in orders[other]
        )
    assert len(together) == 10, "any two raters can be compared"
    assert max(together.values()) - min(together.values()) <= 2, "on about as many latents"
    assert orders != plan(by_sae, settings(n_raters=5, overlap=2, repeats=4, seed=8))


@pytest.mark.parametrize("seed", range(8))
def test_where_it_does_not_divide_raters_differ_by_one_at_most(seed):
    """Of every SAE, and in all: who has one more of an SAE is not the same each time."""
    by_sae = [[f"{sae}.{i}" for i in range(7)] for sae in range(3)]
    orders = plan(by_sae, settings(n_raters=4, overlap=3, repeats=0, seed=seed))
    for sae in "012":
        counts = [sum(item[0] == sae for item, _ in order) for order in orders]
        assert sum(counts) == 21
        assert max(counts) - min(counts) == 1
    totals = [len(order) for order in orders]
    assert max(totals) - min(totals) <= 1


def test_items_show_equally_many_excerpts_and_the_truth_is_where_the_latent_fires(made):
    folder, study = made
    shown = {one.item: one for rater in (1, 2, 3) for one in StudyFolder(folder).assignment(rater).showings}
    assert set(shown) == {item.id for item in study.items}
    for item in study.items:
        latent = json.loads(
            (folder.parent / "run" / "latents" / study.saes[item.sae].sae.id / f"{item.latent}.json").read_text()
        )
        one = shown[item.id]
        strongest = max(abs(a) for example in latent["examples"] for a in example["activations"])
        assert len(one.excerpts) == 8
        assert one.excerpts[0].tenth == 10
        assert len(one.mixed) == 10
        assert 4 <= sum(item.truth) <= 6
        for number, fires, excerpt in zip(item.mixed, item.truth, one.mixed, strict=True):
            assert fires == any(latent["examples"][number]["activations"])
            assert (excerpt.tokens, excerpt.shading) == (latent["examples"][number]["tokens"], [])
        for number, excerpt in zip(item.shown, one.excerpts, strict=True):
            activations = latent["examples"][number]["activations"]
            assert excerpt.shading == pytest.approx([abs(a) / strongest for a in activations], abs=5e-4)
            assert max(activations) > 0
        assert not set(item.shown) & set(item.mixed)
        assert item.density == latent["n_fired"] / latent["n_tokens"]
    assert all(earlier.tenth >= later.tenth for one in shown.values() for earlier, later in pairwise(one.excerpts))


def test_a_seed_makes_the_same_study_again_and_another_one_samples_other_latents(made, tmp_path):
    folder, study = made
    again, _ = make_study([folder.parent / "run"], [], settings(), tmp_path / "again")
    assert again.items == study.items
    raters = [(at / "raters" / "rater-02.json").read_bytes() for at in (folder, tmp_path / "again")]
    assert raters[0] == raters[1]
    other, _ = make_study([folder.parent / "run"], [], settings(seed=8), tmp_path / "other")
    assert {item.id for item in other.items}.isdisjoint(item.id for item in study.items)
    assert [item.latent for item in other.items] != [item.latent for item in study.items]


def test_nothing_that_a_rater_receives_tells_sae_architecture_l0_or_density(made):
    folder, study = made
    secrets = {
        "jumprelu",
        "topk",
        "random",
        "control",
        "layer_9",
        "resid_post",
        "density",
        "latents/",
        str(folder),
        "demo",
    }
    secrets |= {one.sae.id for one in study.saes} | {one.sae.weights_sha256 for one in study.saes}
    secrets |= {str(item.density) for item in study.items} | {item.collected_sha256 for item in study.items}
    for rater in (1, 2, 3):
        of = StudyFolder(folder)
        path, assignment = of.assignment_path(rater), of.assignment(rater)
        received = [path.read_text(), *(rater_page(assignment, served=served) for served in (True, False))]
        received += [path.name, of.page_path(rater).name, of.answers_path(rater).name]
        for text in received:
            data = re.sub(r"<style>.*?</style>|crypto\.getRandomValues|, at random", "", text, flags=re.S)
            assert [secret for secret in secrets if secret in data] == []
        content = json.loads(path.read_text())
        assert set(content) == {"format", "study", "rater", "n_raters", "showings", "seal"}
        assert all(set(one) == {"item", "showing", "excerpts", "mixed"} for one in content["showings"])
        assert len({(len(one["excerpts"]), len(one["mixed"])) for one in content["showings"]}) == 1


def test_ids_and_order_are_no_function_of_the_sae(made):
    """Sorted by id, or as they come, SAEs are mixed: no run of one SAE is longer than chance makes it."""
    folder, study = made
    sae = {item.id: item.sae for item in study.items}
    by_id = [sae[item] for item in sorted(sae)]
    assert by_id != sorted(by_id)
    assert by_id != sorted(by_id, reverse=True)
    orders = [[sae[one.item] for one in StudyFolder(folder).assignment(rater).showings] for rater in (1, 2, 3)]
    assert len({tuple(order[:3]) for order in orders}) > 1, "raters begin with different SAEs"


def test_the_last_answer_counts_unless_it_was_taken_back_and_one_that_came_twice_is_one(made):
    one, two, *_ = StudyFolder(made[0]).assignment(1).showings
    first, second = answer(one, 1), answer(one, 2, interpretable="no")
    key = one.item, one.showing
    assert answers_of([first, first]) == {key: first}
    assert answers_of([first, second]) == {key: second}
    assert answers_of([first, undo(one, 3)]) == {}
    assert answers_of([first, undo(one, 3), first]) == {}, "a late double of what was taken back"
    assert answers_of([first, undo(one, 3), second, undo(one, 3)]) == {key: second}
    assert list(answers_of([first, answer(two, 4), second]).values())[-1] == second


def test_answers_are_appended_once_and_a_line_that_a_kill_cut_off_is_removed(tmp_path):
    path, _ = write_study(tmp_path)
    folder = StudyFolder(path)
    assignment = folder.assignment(1)
    first, second, third = (answer(assignment.showings[i], i) for i in range(3))
    add_events(folder, assignment, [first, second])
    before = folder.answers_path(1).read_bytes()
    with open(folder.answers_path(1), "ab") as file:
        file.write(b'{"event": "answer", "id": "torn')
    assert read_events(folder.answers_path(1)) == [first, second]
    assert add_events(folder, assignment, [second, third]) == [first, second, third]
    after = folder.answers_path(1).read_bytes()
    assert after.startswith(before)
    assert (after.count(b"\n"), b"torn" in after) == (3, False)
    with pytest.raises(UserError, match="was not shown it"):
        add_events(folder, assignment, [answer(assignment.showings[3], 9, item="somebodyelses")])
    with pytest.raises(UserError, match="is another one"):
        add_events(folder, assignment, [answer(assignment.showings[0], 0, meaning="changed")])
    assert folder.answers_path(1).read_bytes() == after
    folder.answers_path(1).write_bytes(after.replace(b'"yes"', b'"perhaps"', 1))
    with pytest.raises(UserError, match=r"rater-01.jsonl, line 1: .*perhaps"):
        folder.answers(1)


def test_a_result_file_is_taken_in_once_and_nothing_of_one_that_is_wrong(tmp_path, capsys):
    path, study = write_study(tmp_path)
    folder = StudyFolder(path)
    showings = folder.assignment(2).showings
    content = {"kind": RESULTS, "format": 1, "study": study.id, "rater": 2}
    events = [answer(showings[i], i, detection=[True] * 10).model_dump(mode="json") for i in range(3)]
    file = tmp_path / "rater-02.answers.json"
    for n in (2, 2, 3):
        file.write_text(json.dumps(content | {"events": events[:n]}))
        assert bench("study", "import", path, file) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("; ")[1] for line in said] == ["2 events are new", "0 events are new", "1 events are new"]
    assert len(folder.answers(2)) == 3
    before = folder.answers_path(2).read_bytes()
    wrong = [
        (content | {"study": "elsewhere123"}, "is of study elsewhere123"),
        (content | {"rater": 9}, "has no rater 9, but 1 to 3"),
        (content | {"events": [events[0] | {"id": "new00000", "item": "nobodys00000"}]}, "was not shown it"),
        (content | {"events": [events[0] | {"interpretable": "<b>"}]}, "interpretable"),
        ({"kind": "other"}, "no result file"),
    ]  # fmt: skip
    for changed, reason in wrong:
        file.write_text(json.dumps({"events": []} | changed))
        assert bench("study", "import", path, file) == 2
        assert reason in capsys.readouterr().err
    assert folder.answers_path(2).read_bytes() == before


def test_what_cannot_be_is_said_with_its_remedy(tmp_path, capsys):
    run, out = write_collected_run(tmp_path / "run"), tmp_path / "study"

    def said(*arguments, code=2):
        assert bench("study", *arguments) == code
        return "".join(capsys.readouterr())

    assert "12 latents can be shown, not 40" in said("make", run, "--latents", 40, "--out", out)
    assert "--overlap 9 is more than the 3 raters" in said(
        "make", run, "--latents", 6, "--raters", 3, "--overlap", 9, "--out", out
    )
    assert "give at most 6" in said("make", run, "--latents", 6, "--raters", 3, "--repeats", 9, "--out", out)
    assert "no SAE of these runs (known: jumprelu" in said("make", run, "--sae", "topkk", "--out", out)
    assert "holds no raters' files" in said("rate", out, "--rater", 1)
    assert not out.exists()
    two = said("make", run, "--latents", 6, "--raters", 3, "--sae", "topk*", "jumprelu*", "--out", out, code=0)
    assert "no control is among the SAEs" in two
    assert "12 latents of 2 SAEs" in two
    assert "holds a study" in said("make", run, "--latents", 6, "--raters", 3, "--out", out)
    assert "has no rater 4, but 1 to 3" in said("rate", out, "--rater", 4)
    (out / "study.json").unlink()
    assert "rater-03.html" in said("export-pages", out, code=0), "the key may be kept elsewhere"
    other = write_collected_run(tmp_path / "other")
    for path in (other / "collections").glob("*"):
        seal(path, read_sealed(path) | {"fingerprint": "other"})
    assert "different text" in said("make", run, other, "--out", tmp_path / "b")
    (run / "collections" / f"{next(p.stem for p in (run / 'collections').glob('topk*'))}.json").unlink()
    assert re.search(
        r"no latents of topk\S* were collected; collect them with: python bench.py .*--latents 100",
        said("make", run, "--out", out / "x"),
    )
