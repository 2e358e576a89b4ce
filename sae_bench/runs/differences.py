"""What differs between a record and the same measured again, beyond what rounding may do on another machine.

Sums over tokens hardly move. What is made of a text does: a probe, which chooses latents and its penalty, may choose
others, and then the numbers of one set of texts, or of one letter, are far from what they were; their mean is not, for
rounding favours nobody (docs/probing.md has how much it was seen to do). So of texts the mean is bounded, and what
all sets have in common is found by Student's t.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from sae_bench.evaluation.stderr import mean_stderr
from sae_bench.evaluation.task import Result
from sae_bench.records.schema import Record, Score

TOLERANCE = 1e-3
"""Of a document's sum, relative to the largest: what other batch sizes and other machines' rounding may change."""

SCORE_TOLERANCE = 1e-2
"""Of a score: latents that rounding brings across a threshold count in shares of few latents."""

TEXT_TOLERANCE = 0.05
"""Of a score on a task's own text, and of its standard error; a tenth of what is larger than .5."""

ROUNDING_P = 1e-4
"""How improbable it has to be that units of a text - sets, letters - differ by chance as far to one side as they do."""

FEWEST_UNITS = 5
"""For that; few may agree by chance."""

MOST_OTHERS = 2
"""Units that only one of the two has: a letter whose probe is hardly good enough may be scored on one machine alone."""

MOST_WAYS = 10_000
"""To leave such units out, of which the best is looked for: of 113 sets, which SAE-Probes has, two."""


def difference_on_tokens(result: Result, record: Record, complete: Sequence[int], *, whole: bool) -> str | None:
    """What differs on held-out tokens; of documents, those numbers that were measured completely are held against it.

    `whole`: whether these are all tokens of the record, so that its scores have to be the same, too.
    """
    if all(score.value is None for scores in (record.scores, result.scores) for score in scores.values()):
        return None  # there was nothing to measure, as of other seeds where there is one
    if not result.by_document and not result.per_latent:
        if all(score.value is None for score in record.scores.values()):
            return None  # it says nothing
        return "it keeps neither sums per document nor values per latent: nothing to compare"
    for name, counts in result.per_latent.items():
        now, then = np.array(counts), np.array(record.per_latent.get(name, []))
        if now.shape != then.shape:
            return f"{name} has {len(then)} latents, the SAE has {len(now)}"
        slack = 0.01 * np.abs(then) + 2  # what rounding may bring across a threshold
        if np.any(now > then + slack) or (whole and np.any(now < then - slack)):
            return f"{name} of some latents differs"
    for name, sums in result.by_document.items():
        if not complete:
            return "the sample holds no whole document: raise --contexts"
        of_record = record.by_document.get(name, [])
        if len(of_record) <= complete[-1]:
            return f"{name} has {len(of_record)} documents"
        now, then = np.array(sums)[complete], np.array(of_record)[complete]
        if np.abs(now - then).max() > TOLERANCE * max(np.abs(then).max(), 1.0):
            at = int(np.abs(now - then).argmax())
            return f"{name} of document {complete[at]} is {now[at]:.6g}, the record has {then[at]:.6g}"
    if (of_formulas := _difference_of_formulas(result.scores, record.scores)) is not None:
        return of_formulas
    return _difference_of_scores(result.scores, record.scores, SCORE_TOLERANCE, 1.0) if whole else None


def _difference_of_formulas(now: Mapping[str, Score], then: Mapping[str, Score]) -> str | None:
    """A score that is made of other sums than its task makes it of, or of none, where both sides have a value."""
    for name in sorted(now.keys() & then.keys()):
        measured, of_record = now[name], then[name]
        if None not in (measured.value, of_record.value) and of_record.formula != measured.formula:
            return f"{name} is {measured.formula}, the record has {of_record.formula}"
    return None


def difference_on_texts(result: Result, record: Record, *, chosen_units: bool) -> str | None:
    """What differs on a task's own text: how far all units of it moved, and what scores and errors they give.

    `chosen_units`: as `TextTask` has it; then rounding may choose a few others.
    """
    if strange := sorted(record.by_document.keys() ^ result.by_document.keys()):
        return f"{strange[0]} is {'not' if strange[0] in result.by_document else 'only'} in the record"
    shared = _shared(result.by_document, record.by_document, MOST_OTHERS if chosen_units else 0)
    if shared is None:
        units = [", ".join(map(str, sorted({*map(len, of.by_document.values())}))) for of in (record, result)]
        return f"the record has {units[0]} units of the text, {units[1]} are measured"
    for name, units_now in result.by_document.items():
        now, then = np.array(units_now), np.array(record.by_document[name])
        if (p := _p_of_rounding(now[shared[0]] - then[shared[1]])) < ROUNDING_P:
            return f"{name} is {now.mean():.6g}, the record has {then.mean():.6g}, which is no rounding (p = {p:.1g})"
        of_now, of_then = (scores[name].stderr if name in scores else None for scores in (result.scores, record.scores))
        if _same(of_now, mean_stderr(now)) and not _same(of_then, gives := mean_stderr(then)):
            return f"the error of {name} is {of_then}, what the record has of its units gives {gives}"
    return _difference_of_formulas(result.scores, record.scores) or _difference_of_scores(
        result.scores, record.scores, TEXT_TOLERANCE, 0.5
    )


def _shared(
    now: Mapping[str, Sequence[float]], then: Mapping[str, Sequence[float]], most_others: int
) -> list[list[int]] | None:
    """The units that both sides have, by their numbers on either: all but those without which the sides agree best.

    None where that leaves out more than `most_others`, or names have units of different numbers. Both have the units in
    one order.
    """
    lengths = [{len(units) for units in of.values()} for of in (now, then)]
    if lengths == [set(), set()]:
        return [[], []]
    if max(map(len, lengths)) > 1:
        return None
    sides = [np.array([of[name] for name in now]) for of in (now, then)]
    n = [side.shape[1] for side in sides]
    if abs(n[0] - n[1]) > most_others or math.comb(max(n), min(n)) > MOST_WAYS:
        return None
    longer, shorter = sides if n[0] > n[1] else sides[::-1]
    ways = map(list, combinations(range(max(n)), min(n)))
    best = min(ways, key=lambda some: float(np.abs(longer[:, some] - shorter).sum()))
    whole = list(range(min(n)))
    return [best, whole] if n[0] > n[1] else [whole, best]


def _p_of_rounding(moved: Float[ndarray, " n"]) -> float:
    """How probable it is that values move as far in the mean if none moves to one side rather than to the other."""
    if len(moved) < FEWEST_UNITS or abs(moved.mean()) <= TOLERANCE:
        return 1.0
    stderr = moved.std(ddof=1) / len(moved) ** 0.5
    return 2 * float(stats.t.sf(abs(moved.mean()) / stderr, len(moved) - 1)) if stderr else 0.0


def _same(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and math.isclose(one, other, rel_tol=1e-6))


def _difference_of_scores(
    now: Mapping[str, Score], then: Mapping[str, Score], tolerance: float, unit: float
) -> str | None:
    """What differs between scores of the same text; of some, records keep no sums to compare.

    Values may differ by `tolerance`, and by so many times that as they are `unit`s, if these are more than one.
    """
    if strange := sorted(then.keys() - now.keys()):
        return f"{strange[0]} is in the record, and is not measured"
    for name, score in now.items():
        of_record = then.get(name)
        if of_record is None:
            return f"{name} is not in the record"
        for what, is_now, was in (
            ("", score.value, of_record.value),
            ("the error of ", score.stderr, of_record.stderr),
        ):
            if (is_now is None) != (was is None):
                return f"{what}{name} is {is_now}, the record has {was}"
            if is_now is None or was is None:
                continue
            if not abs(is_now - was) <= tolerance * max(abs(was) / unit, 1.0):
                return f"{what}{name} is {is_now:.6g}, the record has {was:.6g}"
    return None
