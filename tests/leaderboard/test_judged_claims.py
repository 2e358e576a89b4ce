"""Claims about judged latents: what is planted is found, and a judge at chance makes nobody equal."""

import numpy as np
import pytest
from scipy import stats
from simulated import rarely, simulated
from synthetic import at, typed

from sae_bench.leaderboard.compare import check_metrics, comparisons
from sae_bench.leaderboard.frequency_claim import falls_with_frequency, within_saes
from sae_bench.leaderboard.verdicts import about_equal, where_it_tells


def scored(records, score_of, n_latents=40, seed=None, frequency=lambda one, f: f):
    """The records, and for each SAE those of a judge: a latent's score comes from its frequency and a deviate."""
    added = []
    for one in records:
        draw = np.random.default_rng(len(added) if seed is None else [len(added), seed])
        counts = draw.permutation(np.arange(1, n_latents + 1))
        scores = [
            score_of(one, count / n_latents, deviate)
            for count, deviate in zip(counts, draw.normal(size=n_latents), strict=True)
        ]
        fired = [1000 * frequency(one, count / 1000) for count in counts]
        found = [score for score in scores if score is not None]
        of_judge = {
            "value": float(np.mean(found)),
            "stderr": float(stats.sem(found)),
            "n": len(found),
            "formula": None,
            "note": None,
        }
        shared = one | {"by_document": {}, "scores": {}, "metrics": {}}
        added.append(shared | {"task": "d", "per_latent": {"count": fired}, "details": {"n_tokens": 1000}})
        added.append(
            shared
            | {
                "task": "j",
                "measured_on": "latents",
                "metrics": {"detection": {"better": "up", "headline": True}},
                "scores": {"detection": of_judge},
                "details": {
                    "latents": list(range(n_latents)),
                    "values": {"detection": scores},
                    "judge": {"model": "m"},
                },
            }
        )
    return records + added


@pytest.mark.parametrize(("slope", "verdict"), [(-0.2, "holds"), (0.2, "does not hold"), (0.0, "cannot tell")])
def test_frequent_latents_are_less_interpretable_or_not_as_planted(slope, verdict):
    alike = simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=2)
    records = scored(alike, lambda one, f, deviate: None if f > 0.9 else 0.7 + slope * f + 0.05 * deviate)
    (comparison,) = comparisons(typed(records), ["loss", "detection"])
    finding = falls_with_frequency(("detection", "fuzzing"), "claim")(comparison, ())
    assert finding.verdict == verdict
    found = [number.partition("within SAEs, ")[2].partition(" = ")[0] for number in finding.numbers[1:]]
    assert found == ["216 latents of 6 SAEs"] * 2, "36 of each"


def test_saes_that_differ_in_score_and_frequency_make_no_correlation():
    """200 null experiments: within an SAE neither has to do with the other, but the denser SAEs score lower."""
    alike = simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=2)
    n, check, found, pooled = 200, falls_with_frequency(("detection",), "claim"), [], 0
    for seed in range(n):
        records = scored(
            alike, lambda one, f, deviate: 0.9 - 0.004 * one["sae"]["target_l0"] + 0.05 * deviate, n_latents=20,
            seed=seed, frequency=lambda one, f: f * one["sae"]["target_l0"] / 64,
        )  # fmt: skip
        (comparison,) = comparisons(typed(records), ["loss"])
        found.append(check(comparison, ()).verdict)
        pooled += all(pooled_p(comparison, label) < 0.025 for label in ("a", "b"))
    assert found.count("holds") / n <= 0.05
    assert found.count("does not hold") / n <= 0.05
    assert pooled / n > 0.8, "which is what makes it a test"


def pooled_p(comparison, label):
    """Of a negative correlation over the latents of all SAEs together."""
    frequency = {r.sae.id: np.array(r.per_latent["count"]) / 1000 for r in comparison.records if r.task == "d"}
    mine = [r for r in comparison.records if r.task == "j" and r.sae.label == label]
    of = np.concatenate([frequency[r.sae.id] for r in mine])
    return stats.spearmanr(of, np.concatenate([r.details["values"]["detection"] for r in mine]),
                           alternative="less").pvalue  # fmt: skip


def test_with_no_correlation_in_several_saes_with_ties_the_interval_misses_zero_one_time_in_twenty():
    """Scores of five answers, as a judge's have them."""
    draw, n, missed = np.random.default_rng(0), 2000, 0
    for _ in range(n):
        saes = [np.stack([draw.normal(size=size), draw.integers(0, 6, size)], axis=1) for size in (10, 20, 40)]
        low, high = within_saes(saes).interval(0.95)
        missed += not low <= 0 <= high
    assert missed / n <= rarely(n, 0.05)
    assert missed / n > 0.03


def test_the_correlation_within_saes_is_the_weighted_mean_of_theirs():
    """A perfect one of 11 latents and a perfectly opposite one of 31: (10 - 30) / 40."""
    up, down = np.arange(11.0), np.arange(31.0)
    saes = [np.stack([up, up + 100], axis=1), np.stack([down, -down], axis=1)]
    found = within_saes(saes)
    assert (found.value, found.degrees) == (pytest.approx(-0.5), 8 + 28)


def test_scores_that_are_all_alike_have_no_rank_correlation_and_are_said_to_have_none():
    records = scored(simulated(0, {"a": 0.0}, n_seeds=1, targets=(16,)), lambda one, f, deviate: 0.5)
    (comparison,) = comparisons(typed(records), ["loss"])
    finding = falls_with_frequency(("detection",), "claim")(comparison, ())
    assert finding.verdict == "cannot tell"
    reason = "a: detection of 1 SAEs left out: fewer than 10 judged latents, or all alike"
    assert finding.numbers == (reason,)
    (comparison,) = comparisons(typed(simulated(0, {"a": 0.0}, n_seeds=1)), ["loss"])
    assert falls_with_frequency(("detection",), "claim")(comparison, ()).numbers == ("no latent was judged",)


def test_the_rank_correlation_and_its_interval_are_the_textbooks():
    """The halves of 40 ranks change places, each by 20: rho = 1 - 6 sum(d^2) / (n (n^2 - 1)) = -.501."""
    records = scored(
        simulated(0, {"a": 0.0}, n_seeds=1, targets=(16,)), lambda one, f, deviate: float((round(f * 40) + 19) % 40)
    )
    (comparison,) = comparisons(typed(records), ["loss"])
    _, number = falls_with_frequency(("detection",), "claim")(comparison, ()).numbers
    rho = 1 - 6 * 40 * 20**2 / (40 * (40**2 - 1))
    half = 1.959964 * ((1 + rho**2 / 2) / 37) ** 0.5
    low, high = np.tanh(np.arctanh(rho) - half), np.tanh(np.arctanh(rho) + half)
    assert f"40 latents of 1 SAEs = {rho:.4g}, 95% [{low:.4g}, {high:.4g}]" in number


@pytest.mark.parametrize(
    ("less", "noise", "verdict"), [(0.0, 0.02, "holds"), (0.2, 0.02, "does not hold"), (0.0, 0.2, "cannot tell")]
)
def test_architectures_are_about_equally_interpretable_or_not_as_planted(less, noise, verdict):
    alike = simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=3)
    records = scored(alike, lambda one, f, deviate: 0.7 - less * (one["sae"]["label"] == "b") + noise * deviate)
    (comparison,) = comparisons(typed(records), ["loss", "detection"])
    finding = about_equal(("detection", "fuzzing"), ("a", "b"), 0.05, "claim")(comparison, (20.0, 50.0))
    assert finding.verdict == verdict
    assert [number.partition(" = ")[0] for number in finding.numbers[1:]] == [
        "L0 20: detection of a - b", "L0 50: detection of a - b",
    ]  # fmt: skip
    assert about_equal(("fuzzing",), ("a", "b"), 0.05, "claim")(comparison, (20.0,)).verdict == "cannot tell", (
        "nobody judged"
    )


@pytest.mark.parametrize(
    ("level", "less", "verdict"),
    [(0.5, 0.0, "cannot tell"), (0.54, 0.0, "cannot tell"), (0.7, 0.0, "holds"), (0.7, 0.2, "does not hold")],
)
def test_a_judge_that_judges_by_chance_makes_nobody_equal(level, less, verdict):
    alike = simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=3)
    records = scored(alike, lambda one, f, deviate: level - less * (one["sae"]["label"] == "b") + 0.02 * deviate)
    (comparison,) = comparisons(typed(records), ["loss", "detection"])
    check = where_it_tells(
        {"detection": 0.5, "fuzzing": 0.5}, ("a", "b"), 0.05,
        lambda metrics: about_equal(metrics, ("a", "b"), 0.05, "claim"),
    )  # fmt: skip
    finding = check(comparison, (20.0, 50.0))
    assert finding.verdict == verdict
    if level < 0.6:
        assert finding.numbers == (
            "no score of a, b is told to be above chance by more than 0.05 (detection, fuzzing)",
        )
        assert about_equal(("detection",), ("a", "b"), 0.05, "claim")(comparison, (20.0, 50.0)).verdict == "holds"
    (nobody,) = comparisons(typed(simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=3)), ["loss"])
    assert check(nobody, (20.0,)).numbers[0].startswith("detection is in no record")


def test_a_judges_metrics_are_compared_once_somebody_scored():
    records = scored(simulated(0, {"a": 0.0, "b": 0.0}, n_seeds=2), lambda one, f, deviate: 0.7 + 0.1 * deviate)
    for one in records[:12]:
        one["metrics"] |= {"loss": {"better": "down", "headline": True}, "l0": {"better": None, "headline": True}}
    assert check_metrics(typed(records), None) == ["loss", "detection"]
    undefined = {"value": None, "stderr": None, "n": 0, "formula": None, "note": "undefined"}
    lost = [one | {"scores": dict.fromkeys(one["scores"], undefined)} for one in records]
    assert check_metrics(typed(lost), None) == ["loss", "detection"], "what nobody has a value of is said to be missing"
    nobody = [one | {"details": {}} if one["task"] == "j" else one for one in lost]
    assert check_metrics(typed(nobody), None) == ["loss"]
    (comparison,) = comparisons(typed(records), ["loss", "detection"])
    (difference,) = at(comparison, "detection", (30.0,))[1]
    of_one = records[-1]["scores"]["detection"]["stderr"]
    assert difference.estimate.stderr > of_one, "the judge's noise is in it, twice and unpaired"
