"""Which latents a study takes, and which excerpts of each: what is shown, what is asked, and who is passed over."""

from random import Random

import pytest
from studies import settings, write_collected_run
from synthetic import seal
from toy_latents import toy_latent

from sae_bench.records.files import read_sealed
from sae_bench.records.lineage import collected_hash
from sae_bench.study.sample import Chosen, choose, sources
from sae_bench.study.schema import N_MIXED


@pytest.fixture
def run(tmp_path):
    return write_collected_run(tmp_path / "run", n_latents=16, labels=("topk",))


def source_of(run):
    (source,), _ = sources([run], [], 4)
    return source


def test_a_latent_that_is_active_on_both_sides_is_shaded_by_size():
    """The strongest is -4: 2 of it is half as dark, and -1 a quarter, whatever their signs."""
    examples = [{"tokens": ["a", "b", "c"], "activations": of} for of in ([-4.0, 0.0, 2.0], [0.0, -1.0, 0.0])]
    first, second = Chosen({"examples": examples}, shown=[0, 1], mixed=[], truth=[]).excerpts()
    assert (first.shading, first.tenth) == ([1.0, 0.0, 0.5], 10)
    assert (second.shading, second.tenth) == ([0.0, 0.25, 0.0], 3)


def test_of_the_mixed_excerpts_four_to_six_are_active_in_no_order(run):
    """If it were always five, or the active ones stood first, one would know the last answers without looking."""
    found, _ = choose(source_of(run), settings(n_latents=16))
    truths = [one.truth for one in found]
    assert {sum(truth) for truth in truths} == {4, 5, 6}
    assert all(len(truth) == N_MIXED for truth in truths)
    assert all(sorted(truth, reverse=True) != truth for truth in truths), "by chance of one in seventeen hundred"
    firsts = sum(truth[0] for truth in truths)
    assert 3 <= firsts <= 13, "half of them"


def test_latents_with_too_few_excerpts_are_passed_over_and_counted(run):
    """Of 16 every other one has few: 4 are found, and the count is of those that came before the fourth."""
    source = source_of(run)
    sae = source.record.sae.id
    path = run / "collections" / f"{sae}.json"
    collection = read_sealed(path)
    for number in range(0, 16, 2):
        few = toy_latent(number, n_firing=2) | {"sae": sae, "n_fired": 30}
        seal(run / "latents" / sae / f"{number}.json", few)
        collection["sha256"][str(number)] = collected_hash(few)
    seal(path, collection)
    source = source_of(run)
    found, n_passed_over = choose(source, settings(n_latents=4))
    order = order_of(source, [one.latent["latent"] for one in found])
    assert [number % 2 for number in order].count(0) == n_passed_over > 0
    assert len(order) == 4 + n_passed_over


def order_of(source, found):
    """The latents in the order in which they are looked at, up to the last that was found."""
    numbers = source.collection["latents"]
    draw = Random(f"7 latents {source.record.sae.weights_sha256} {source.record.sae.id}")
    order = draw.sample(numbers, len(numbers))
    return order[: max(map(order.index, found)) + 1]


def test_a_run_that_is_named_twice_or_was_copied_is_asked_about_once(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    (one,), said = sources([run, run.parent / "." / "run", tmp_path / "link"], [], 4)
    assert said == []
    copy = write_collected_run(tmp_path / "copy", n_latents=16, labels=("topk",))
    found, said = sources([run, copy], [], 4)
    assert [source.run for source in found] == [run] == [one.run]
    assert said == [f"{one.record.sae.id} of {copy} is that of {run}: it is asked about once"]
