"""A synthetic world: what its samples are by its settings, and that a sample depends on nothing but its number."""

import math

import pytest
import torch
from torch.distributions import Normal

from sae_bench.errors import UserError
from sae_bench.lm.activations import ActivationModel, ContextStream, KnownFeatures
from sae_bench.synthetic.dictionary import pushed_apart
from sae_bench.synthetic.hierarchy import applied, compensated, levels_of
from sae_bench.synthetic.samples import DOCUMENT, HELD_OUT, SampleStream
from sae_bench.synthetic.settings import BLOCK, SIZES, WorldSettings, world_settings
from sae_bench.synthetic.world import World

CPU = torch.device("cpu")
FLAT = WorldSettings(n_features=40, d_in=12, n_roots=0, orthogonal_steps=3)
TREE = WorldSettings(n_features=60, d_in=12, n_roots=4, n_children=3, depth=2, orthogonal_steps=3)


def drawn(settings, n_blocks=200):
    world = World(settings, "toy", CPU)
    return world, torch.cat([world.block(BLOCK * i) for i in range(n_blocks)])


def stream(split="train", n_tokens=3000, context_size=2 * BLOCK + 1, skip=()):
    return SampleStream("toy", split=split, context_size=context_size, n_tokens=n_tokens, skip_tokens=skip)


def test_it_stands_in_the_places_of_a_language_model_and_of_its_text():
    world = World(FLAT, "toy", CPU)
    assert isinstance(world, ActivationModel)
    assert isinstance(world, KnownFeatures)
    assert isinstance(stream(), ContextStream)


def test_frequencies_run_from_the_largest_to_the_least_as_a_power_of_the_rank():
    p = World(WorldSettings(n_features=4, d_in=3, n_roots=0), "toy", CPU).frequencies
    share = (3**-0.5 - 0.5) / 0.5  # of rank 3, on the way from rank 4 to rank 1
    assert p.tolist() == pytest.approx([0.4, 0.0005 + 0.3995 * (2**-0.5 - 0.5) / 0.5, 0.0005 + 0.3995 * share, 0.0005])


def test_features_fire_as_often_as_they_should_and_as_large():
    world, a = drawn(FLAT)
    p, n, fires = world.frequencies, len(a), a > 0
    assert ((fires.float().mean(0) - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()
    mean, deviation = world.magnitudes
    assert mean[[0, -1]].tolist() == [5, 4]
    for j in (0, 1, 2):
        found = a[:, j][fires[:, j]]
        assert abs(found.mean() - mean[j]) < 5 * deviation[j] / math.sqrt(len(found)) + 1e-4
        assert found.std() == pytest.approx(deviation[j].item(), rel=0.1)


def test_firing_is_correlated_as_the_factor_says():
    """Two Gaussians above thresholds: P(both) = p^2 + (the density)^2 rho + ..., for small rho to first order."""
    settings = FLAT.model_copy(update={"correlation_scale": 0.15, "min_probability": 0.2, "max_probability": 0.4})
    world, a = drawn(settings, 800)
    fires, p, n = (a > 0).double(), world.frequencies.double(), len(a)
    both = fires.T @ fires / n - p[:, None] * p
    height = Normal(0.0, 1.0).log_prob(torch.special.ndtri(p)).exp()
    rho = (world.factor @ world.factor.T).double()
    second = torch.special.ndtri(p) * height
    expected = height[:, None] * height * rho + second[:, None] * second * rho.square() / 2
    pairs = ~torch.eye(40, dtype=torch.bool)
    error = (both - expected)[pairs].abs()
    assert (error < 5 * 0.25 / math.sqrt(n) + 0.02 * rho[pairs].abs() ** 3).all()
    assert expected[pairs].std() > 3 * error.mean()  # so that a factor left out would show


def test_a_child_never_fires_without_its_parent_and_of_siblings_one_at_most():
    _, a = drawn(TREE)
    fires = a > 0
    levels = levels_of(TREE)
    assert [(level.first, level.end) for level in levels] == [(4, 16), (16, 52)]
    for level in levels:
        children = fires[:, level.first : level.end]
        assert not (children & ~fires[:, level.parent]).any()
        assert children.view(len(a), -1, 3).sum(2).max() == 1
    assert fires[:, 52:].any()  # outside of the trees


def test_the_last_group_takes_what_features_are_left():
    settings = WorldSettings(n_features=9, d_in=4, n_roots=2, n_children=3, depth=3)
    first, second = levels_of(settings)
    assert (first.first, first.end, first.parent.tolist()) == (2, 8, [0, 0, 0, 1, 1, 1])
    assert (second.first, second.end, second.parent.tolist()) == (8, 9, [2])
    a = applied(torch.ones(5, 9), [first, second], torch.ones(9), torch.rand(5, 9), exclusive=True, scaled=True)
    assert (a[:, 2:5].sum(1) == 1).all()
    assert torch.equal(a[:, 8], a[:, 2])


def test_probabilities_are_compensated_by_hand():
    """Two roots of .4 and .2; the children of the first at .1 and .05, that of the second at .04."""
    settings = WorldSettings(n_features=5, d_in=4, n_roots=2, n_children=2, depth=1)
    p = torch.tensor([0.4, 0.2, 0.1, 0.05, 0.04], dtype=torch.float64)
    levels = levels_of(settings)
    with_siblings = compensated(p, levels, exclusive=True)
    assert with_siblings.tolist() == pytest.approx([0.4, 0.2, 0.25 * (1 + 0.05 / 0.4), 0.125 * (1 + 0.1 / 0.4), 0.2])
    assert compensated(p, levels, exclusive=False).tolist() == pytest.approx([0.4, 0.2, 0.25, 0.125, 0.2])
    assert compensated(torch.tensor([0.1, 0.2, 0.3, 0.05, 0.04]), levels, exclusive=False)[2] == 1


def test_a_child_is_scaled_by_its_parent_over_the_parents_mean():
    settings = WorldSettings(n_features=3, d_in=4, n_roots=1, n_children=1, depth=2)
    a, mean = torch.tensor([[6.0, 2.0, 3.0], [0.0, 2.0, 3.0]]), torch.tensor([4.0, 8.0, 1.0])
    found = applied(a.clone(), levels_of(settings), mean, a, exclusive=False, scaled=True)
    assert found.tolist() == [[6.0, 3.0, 3.0 * 3 / 8], [0.0, 0.0, 0.0]]
    gated = applied(a.clone(), levels_of(settings), mean, a, exclusive=False, scaled=False)
    assert gated.tolist() == [[6.0, 2.0, 3.0], [0.0, 0.0, 0.0]]


def test_directions_are_unit_vectors_pushed_apart():
    rows = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    before, after = pushed_apart(rows, 0, 1e-2), pushed_apart(rows, 100, 1e-2)
    off = ~torch.eye(24, dtype=torch.bool)
    assert torch.allclose(after.norm(dim=1), torch.ones(24))
    least = 24 / 8 - 1  # the Welch bound of the mean square times 23
    squares = [(of @ of.T)[off].square().sum() / 24 for of in (before, after)]
    assert squares[1] < 0.97 * squares[0]
    assert squares[1] >= least - 1e-4


def test_a_sample_is_made_of_its_features_and_the_bias():
    world = World(TREE, "toy", CPU)
    (batch,) = stream(n_tokens=2 * BLOCK).batches(4)
    (site,) = world.find_sites(("synthetic",), ())
    x, truth = world.capture(batch.tokens, [site])[site], world.truth(batch.tokens)
    assert not x[:, 0].any()
    assert torch.allclose(x[0, 1:], truth @ world.features + world.bias, atol=1e-5)
    assert world.bias.norm() == pytest.approx(0.5)


def test_a_sample_is_the_same_wherever_a_capture_begins_and_however_contexts_are_cut():
    world = World(TREE, "toy", CPU)
    (site,) = world.find_sites(("synthetic",), ())

    def captured(batches):
        return torch.cat([world.capture(batch.tokens, [site])[site][:, 1:].flatten(0, 1) for batch in batches])

    whole = captured(stream().batches(6))
    assert torch.equal(captured(stream().batches(1, start_context=2)), whole[4 * BLOCK :])
    assert torch.equal(captured(stream(context_size=BLOCK + 1, n_tokens=12 * BLOCK).batches(5)), whole)
    assert torch.equal(captured(stream(n_tokens=4 * BLOCK, skip=(1,)).batches(2)), whole[2 * BLOCK : 6 * BLOCK])


def test_training_and_held_out_samples_are_disjoint():
    train, held_out = (next(stream(split).batches(3)).tokens[:, 1:] for split in ("train", "eval"))
    assert train.max() < HELD_OUT <= held_out.min()
    world = World(TREE, "toy", CPU)
    assert not torch.equal(world.block(0), world.block(HELD_OUT))


def test_a_stream_counts_what_it_delivers_and_what_a_resumed_one_passes_over():
    one, other = stream("eval"), stream("eval")
    documents = torch.cat([batch.document[:, 1:].flatten() for batch in one.batches(2)])
    assert (one.n_contexts, one.n_delivered) == (6, 6 * 2 * BLOCK)
    assert one.n_documents == one.fewest_documents == one.n_delivered // DOCUMENT
    assert one.sizes == dict.fromkeys(range(one.n_documents), DOCUMENT)
    assert torch.equal(documents.bincount(), torch.full((one.n_documents,), DOCUMENT))
    for _ in other.batches(1, start_context=4):
        pass
    assert other.fingerprint == one.fingerprint
    assert stream("eval", n_tokens=2000).fingerprint != one.fingerprint  # nothing was delivered yet
    other.read()
    assert (other.fingerprint, other.n_delivered) == (one.fingerprint, one.n_delivered)


def test_two_worlds_are_one_by_their_settings_alone():
    hashes = [World(of, "toy", CPU).weight_hash() for of in (TREE, TREE, TREE.model_copy(update={"seed": 1}), FLAT)]
    assert hashes[0] == hashes[1]
    assert len({*hashes}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("n_features = 8\nd_in = 4", "n_roots: Field required"),
        ("like = 'small'\nn_feature = 8", 'Did you mean "n_features"'),
        ("like = 'small'\nmax_probability = 1.5", "max_probability: Input should be less than or equal to 1"),
        ("like = 'large'", 'unknown size "large"'),
        ("like = ['small']", "unknown size"),
        ("like = 'small'\nfirst_magnitude = 0", "first_magnitude: Input should be greater than 0"),
        ("like = 'small'\ndeviation_spread = 1e300", "deviation_spread: Input should be less than"),
        ("like = 'small'\nbias_norm = inf", "bias_norm: Input should be less than"),
        ("like = 'small'\nmin_probability = 0.9", "min_probability 0.9 is above max_probability"),
        ("like = 'small'\nn_roots = 1025", "n_roots 1025 are more than the 1024 features"),
        ("like =", "not valid TOML"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_name(tmp_path, settings, message):
    path = tmp_path / "own.toml"
    path.write_text(settings)
    with pytest.raises(UserError, match="--model synthetic:") as error:
        world_settings(f"synthetic:{path}")
    assert message.lower() in str(error.value).lower()


def test_a_file_sets_every_field_and_may_start_from_a_size(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('like = "small"\nseed = 3\nn_roots = 0')
    name, settings = world_settings(f"synthetic:{path}")
    assert (name, settings) == ("synthetic:own", SIZES["small"].model_copy(update={"seed": 3, "n_roots": 0}))
    with pytest.raises(UserError, match=r'unknown size "smal".*did you mean "small"'):
        world_settings("synthetic:smal")


def test_another_site_or_layer_and_contexts_of_part_of_a_block_are_refused():
    world = World(TREE, "toy", CPU)
    with pytest.raises(UserError, match="--layer 3: toy has no layers"):
        world.find_sites(("synthetic",), (3,))
    with pytest.raises(UserError, match="--site mlp_out: toy has one site"):
        world.find_sites(("mlp_out",), ())
    with pytest.raises(UserError, match=f"--context-size 128: .* use {BLOCK + 1}"):
        stream(context_size=128)
