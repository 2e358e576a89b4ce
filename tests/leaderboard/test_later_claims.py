"""Later claims: planted truths are found, controls are pooled with nobody, and what is answered is counted."""

import re

import numpy as np
import pytest
from command import bench
from simulated import N_DOCUMENTS, exactly, rarely
from synthetic import HOSTILE, records, typed, write_run

from sae_bench.leaderboard import claim_sections
from sae_bench.leaderboard.claims import JUDGED
from sae_bench.leaderboard.compare import comparisons
from sae_bench.leaderboard.later_claims import CLOSE, LATER_CLAIMS, METRICS, MOST_PAIRS, judged_orders
from sae_bench.leaderboard.verdicts import contrast

AT = (20.0, 50.0)


def simulated(seed, levels, *, controls=(), n_seeds=5, seed_sd=0.01):
    """Records of metrics that are `levels[label][metric]`, and what a document and a seed add, at L0 16, 32 and 64."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(50, 150, N_DOCUMENTS).astype(float)
    found = []
    for label, of in levels.items():
        for run in range(n_seeds):
            for target in (16.0, 32.0, 64.0):
                sums = {"tokens": tokens.tolist(), "active": (target * tokens).tolist()}
                for name, level in of.items():
                    values = level + draw.normal(0, 0.3 * seed_sd) + draw.normal(0, 0.02, N_DOCUMENTS)
                    sums[name] = (values * tokens).tolist()
                scores = {
                    name: {"value": sum(sums[of_sum]) / tokens.sum(), "stderr": 0.01, "n": 1,
                           "formula": f"{of_sum} / tokens", "note": None}
                    for name, of_sum in [("l0", "active"), *((name, name) for name in of)]
                }  # fmt: skip
                found.append({
                    "failure": None, "task": "t", "task_version": "1", "scores": scores, "by_document": sums,
                    "metrics": {name: {"better": None if name == "l0" else "up"} for name in scores},
                    "sae": {"id": f"{label}.{target}.{run}", "arch": label, "label": label, "seed": run,
                            "target_l0": target, "d_sae": 8, "site": {"name": "s"}, "control": label in controls},
                    "provenance": {"model": "m"},
                })  # fmt: skip
    return typed(found)


def verdict_of(of, claim):
    (comparison,) = comparisons(of, METRICS, controls=True)
    (found,) = [judged for check in LATER_CLAIMS if claim in (judged := check(comparison, AT)).claim]
    return found


@pytest.mark.parametrize(
    ("f1", "verdict"),
    [((0.5, 0.6, 0.7), "does not hold"), ((0.7, 0.6, 0.5), "holds"), ((0.5, 0.6, 0.6), "cannot tell")],
)
def test_reconstruction_and_recovery_disagree_where_a_pair_is_told_apart_both_ways(f1, verdict):
    """The last two of the third are alike in f1: in the same order in truth for one pair alone in a hundred."""
    fve = {"a": 0.7, "b": 0.75, "c": 0.8}
    levels = {label: {"fve": of, "f1": f1[i]} for i, (label, of) in enumerate(fve.items())}
    found = verdict_of(simulated(1, levels), "disagree")
    assert found.verdict == verdict
    opposite = {"does not hold": 0, "holds": 6, "cannot tell": 0}[verdict]
    assert found.numbers[1].startswith(f"{opposite} of 6 pairs are told apart in opposite orders")
    assert sum(" - " in number for number in found.numbers) == 2 * min(opposite, MOST_PAIRS)


def test_with_every_pair_at_the_limit_little_is_said():
    """Six pairs that differ in fve and in nothing else, 2,000 experiments: one of forty says that f1 disagrees."""
    draw, said = np.random.default_rng(0), []
    for values in draw.normal(size=(2000, 6)):
        pairs = [(f"L0 20: {i}", (exactly(50.0), exactly(value))) for i, value in enumerate(values)]
        said.append(judged_orders(pairs)[0])
    assert 0.002 < said.count("holds") / len(said) <= rarely(len(said))
    assert said.count("does not hold") / len(said) <= rarely(len(said))


ABSORPTION = {"absorption_fraction_centred": 0.02, "split_latents_f1": 0.3}
MORE_ABSORPTION = {"absorption_fraction_centred": 0.06, "split_latents_f1": 0.3}
PROBED, SCORED = dict.fromkeys(("auc_k1", "auc_k16"), 0.8), dict.fromkeys(JUDGED, 0.8)
SIDES = {
    "matryoshka absorbs at most what batchtopk does": ("matryoshka", "batchtopk", ABSORPTION, MORE_ABSORPTION),
    "matryoshka absorbs at most what topk does": ("matryoshka", "topk", ABSORPTION, MORE_ABSORPTION),
    "batchtopk explains at least topk's variance": ("batchtopk", "topk", {"fve": 0.8}, {"fve": 0.7}),
    "batchtopk's delta LM loss is at most": ("batchtopk", "topk", {"delta_lm_loss": 0.3}, {"delta_lm_loss": 0.4}),
    "frozen_decoder comes close to topk at sparse": ("frozen_decoder", "topk", PROBED, {"auc_k1": 0.8, "auc_k16": 0.7}),
    "frozen_encoder comes close to topk at sparse": ("frozen_encoder", "topk", PROBED, {"auc_k1": 0.7, "auc_k16": 0.8}),
    **{
        f"{control} comes close to topk in judged": (control, "topk", SCORED, SCORED | {JUDGED[-1]: 0.7})
        for control in ("frozen_decoder", "frozen_encoder")
    },
    "reconstruction and recovery of known features disagree": (
        "matching_pursuit", "gated", {"fve": 0.8, "f1": 0.5}, {"fve": 0.7, "f1": 0.6},
    ),
}  # fmt: skip
"""Of each claim, who it is of, against whom, and what either measures on a board where it holds and where not."""


@pytest.mark.parametrize("claim", SIDES)
def test_every_later_claim_holds_on_one_board_and_not_on_another(claim):
    """On the second board both have changed places; where the claim is symmetric, what is best is so in both."""
    of, than, better, worse = SIDES[claim]
    controls = [of] if of.startswith("frozen") else []
    here = verdict_of(simulated(7, {of: better, than: worse}, controls=controls), claim)
    if "disagree" in claim:
        worse = {name: value - 0.05 for name, value in better.items()}
    there = verdict_of(simulated(7, {of: worse, than: better}, controls=controls), claim)
    assert (here.verdict, there.verdict) == ("holds", "does not hold")


def test_there_is_a_board_for_every_later_claim():
    (comparison,) = comparisons(simulated(8, {"topk": {"fve": 0.7}}, n_seeds=1), METRICS, controls=True)
    claims = [check(comparison, AT).claim for check in LATER_CLAIMS]
    assert [sum(name in claim for name in SIDES) for claim in claims] == [1] * len(claims)
    assert len(claims) == len(SIDES)


@pytest.mark.parametrize(("lost", "verdict"), [(0.0, "holds"), (2 * CLOSE, "does not hold"), (CLOSE, "cannot tell")])
def test_a_frozen_control_comes_close_or_not_as_planted(lost, verdict):
    levels = {"topk": {"auc_k1": 0.7, "auc_k16": 0.8}, "frozen_decoder": {"auc_k1": 0.7 - lost, "auc_k16": 0.8}}
    of = simulated(3, levels, controls=["frozen_decoder"])
    found = verdict_of(of, "frozen_decoder comes close to topk at sparse probing")
    assert found.verdict == verdict
    assert "at most 0.05" in found.claim
    assert verdict_of(of, "frozen_encoder comes close to topk at").numbers == (
        "no frozen_encoder among topk, frozen_decoder",
    )


def test_matryoshka_absorbs_less_and_the_letters_that_it_finds_stand_beside():
    levels = {
        "matryoshka": {"absorption_fraction_centred": 0.02, "split_latents_f1": 0.3},
        "topk": {"absorption_fraction_centred": 0.06, "split_latents_f1": 0.2},
    }
    found = verdict_of(simulated(4, levels), "what topk does")
    assert found.verdict == "holds"
    beside = [number for number in found.numbers if number.startswith("beside it, L0 ")]
    assert [float(re.search(r"topk = (\S+),", number)[1]) for number in beside] == pytest.approx([0.1, 0.1], abs=0.01)
    levels["matryoshka"], levels["topk"] = levels["topk"], levels["matryoshka"]
    assert verdict_of(simulated(4, levels), "what topk does").verdict == "does not hold"


def test_a_control_that_is_not_compared_lends_no_variance_to_the_others():
    levels = {label: {"fve": 0.7} for label in ("a", "b", "pca")}
    of = simulated(5, levels, controls=["pca"])
    with_control, without = (comparisons(of, ["fve"], controls=controls)[0] for controls in (True, False))
    one, other = (contrast(comparison, "fve", 20.0, {"a": 1.0, "b": -1.0}) for comparison in (with_control, without))
    assert one.interval(0.95) == pytest.approx(other.interval(0.95), rel=1e-9)
    own = contrast(with_control, "fve", 20.0, {"a": 1.0, "pca": -1.0})
    assert own.sources[1][1] == 3 * 4, "three architectures of five seeds: the control's are its own"


def test_a_metric_s_noise_floor_and_smallest_difference_stand_with_what_is_judged_by_it():
    found = claim_sections.sections(simulated(6, {"batchtopk": {"fve": 0.7}, "topk": {"fve": 0.8}}), AT)[1].found
    explains, adds = (judged.numbers for _, judged in found if judged.claim.startswith("batchtopk"))
    assert re.fullmatch(r"fve tells a difference of 0\.0\d+ \(.*\); noise floor 0\.00\d+", explains[-1])
    assert len(explains) == 1 + 2 + 1
    assert "delta_lm_loss is in no record" in adds[0]
    assert len(adds) == 1


FAR_APART = (
    "L0 20 and 50: read off curves between SAEs whose L0s are up to 4.1 times apart; others between them would move "
    "these values."
)


def test_a_verdict_is_the_same_beside_another_setting_and_a_claim_is_answered_in_either():
    """One setting at small L0s and one at the usual ones, each with an architecture that the other lacks."""
    small = typed(records(labels=("jumprelu", "topk"), targets=(3.0, 5.0, 8.0), sites=("layer_1.resid_post",)))
    usual = typed(records(labels=("gated", "topk"), targets=(16.0, 64.0), sites=("layer_2.resid_post",)))
    alone = {name: claim_sections.sections(of) for name, of in (("small", small), ("usual", usual))}
    together = claim_sections.sections([*small, *usual])
    for i, section in enumerate(together):
        apart = [one for of in alone.values() for one in of[i].found]
        assert {judged for _, judged in section.found} == {judged for _, judged in apart}
    answered = {
        judged.claim
        for of in alone.values()
        for section in of
        for _, judged in section.found
        if judged.verdict != "cannot tell"
    }
    assert answered
    n_claims = 16 + len(LATER_CLAIMS)
    assert claim_sections.total(together).endswith(
        f" In one setting at least, {len(answered)} of {n_claims} different ones are answered. {FAR_APART}"
    )
    assert "apart" not in claim_sections.total(alone["small"])


def test_runs_that_cannot_be_compared_are_judged_each_by_itself(tmp_path, capsys):
    """Of two boards of one setting, on other tokens; what either answers is counted once."""
    runs = []
    for labels in (("jumprelu", "topk"), ("gated", "topk")):
        of = records(labels=labels, targets=(16.0, 64.0))
        for record in of:
            record["provenance"]["eval_fingerprint"] = str(len(runs)) * 64
        runs.append(write_run(tmp_path / f"run{len(runs)} <img src=x>", of))
    assert bench("claims", *runs) == 2, "they are no board together"
    capsys.readouterr()
    alone = []
    for run in runs:
        assert bench("claims", run) == 0
        alone.append(capsys.readouterr().out)
    answered = {
        line.partition(": ")[2]
        for text in alone
        for line in text.splitlines()
        if re.match("(holds|does not hold): ", line)
    }
    assert bench("claims", *runs, "--each") == 0
    said = capsys.readouterr().out
    assert f"In one run at least, {len(answered)} of {16 + len(LATER_CLAIMS)} different ones are answered." in said
    assert all(f"{run}: {text}" in said for run, text in zip(runs, alone, strict=True))
    assert bench("claims", *runs, "--each", "--format", "md") == 0
    assert "<img" not in capsys.readouterr().out
    assert bench("claims", *runs, "--each", "--format", "csv") == 2
    assert "--each --format csv: of several runs there is text or md" in capsys.readouterr().err


def test_what_is_answered_is_counted_in_every_form():
    """A section's claims are counted by their verdicts, and text from records is harmless in each form."""
    of = typed(records(labels=("jumprelu", "gated", "topk", f"relu:{HOSTILE}"), targets=(16.0, 64.0)))
    found = claim_sections.sections(of, AT)
    verdicts = [judged.verdict for section in found for _, judged in section.found]
    hold, not_held = verdicts.count("holds"), verdicts.count("does not hold")
    total = claim_sections.total(found)
    assert hold + not_held >= 3
    assert len(verdicts) == 16 + len(LATER_CLAIMS)
    assert total.startswith(f"{hold + not_held} of {len(verdicts)} claims are answered: {hold} hold")
    assert total.endswith(f" {verdicts.count('cannot tell')} cannot be told. {FAR_APART}")
    for form in ("text", "md", "tex"):
        text = claim_sections.written(form, found)
        assert total in text
        assert form == "tex" or all(section.summary in text for section in found)
        assert form == "text" or "<img" not in text
    assert claim_sections.written("csv", found).count("cannot tell") >= verdicts.count("cannot tell")
