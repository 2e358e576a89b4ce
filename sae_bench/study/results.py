"""What a study found, from its answers alone: shares, differences, agreement, and each rater. Pure functions.

Numbers of SAEs are means over latents with intervals over latents and raters (`crossed`). Those of the architectures
that a study compares are of all their SAEs' latents together; all pairs of them in one metric are one family, whose
intervals cover together (Bonferroni).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import stats

from sae_bench._version import __version__
from sae_bench.records.schema import Metric
from sae_bench.study import agreement, crossed
from sae_bench.study.crossed import Crossed
from sae_bench.study.ratings import CATEGORIES, Given, Ratings

Found = dict[str, Any]
"""Of the results, as JSON has it."""

METRICS = (
    Metric("human_yes", "up", "share", "latents that raters call interpretable, mean over latents of the share of "
           "their raters who say yes", headline=True),
    Metric("human_yes_or_maybe", "up", "share", "latents that raters call interpretable or maybe interpretable, "
           "likewise"),
    Metric("human_rating", "up", "0 to 1", "what raters say of latents: yes 1, maybe 1/2, no 0; mean over latents of "
           "the mean over their raters"),
    Metric("human_detection", "up", "balanced accuracy", "how well raters tell from the excerpts that they were shown "
           "which others activate a latent; chance is .5", headline=True),
)  # fmt: skip
"""Of the task `human`."""

RESULTS = "results.json"
"""In the study's folder."""

MIN_LATENTS = 5
"""With fewer on either side, nothing is said of what one rater makes of one SAE."""


def values_of(ratings: Ratings) -> dict[str, Given]:
    """The answers as numbers, by metric."""
    given = (ratings.yes, ratings.yes_or_maybe, ratings.rating, ratings.detection)
    return dict(zip((metric.name for metric in METRICS), given, strict=True))


def results_of(ratings: Ratings) -> Found:
    """All that a study found, as JSON."""
    groups = groups_of(ratings)
    return {
        "study": ratings.study.id,
        "version": __version__,
        "settings": ratings.study.settings.model_dump(mode="json"),
        "answers": {"asked": ratings.n_asked, "given": ratings.n_answered, "sha256": ratings.digest},
        "metrics": {metric.name: asdict(metric) for metric in METRICS},
        "saes": [_sae(ratings, i) for i in range(len(ratings.study.saes))],
        "architectures": [{"name": name} | _scores(ratings, items) for name, items in groups.items()],
        "differences": _differences(ratings, groups),
        "agreement": _agreement(ratings),
        "retest": _retest(ratings),
        "seconds": _spread(ratings.seconds),
        "raters": [_rater(ratings, r) for r in range(ratings.study.settings.n_raters)],
        "leanings": leanings(ratings),
    }


def groups_of(ratings: Ratings) -> dict[str, list[int]]:
    """The items of each architecture; what else differs between SAEs of a study is in its name."""
    saes = ratings.study.saes
    traits = [(one.sae.label, one.provenance.model, one.sae.site.name, f"width {one.sae.d_sae}") for one in saes]
    differs = [place == 0 or len(set(of)) > 1 for place, of in enumerate(zip(*traits, strict=True))]
    names = [", ".join(part for part, told in zip(of, differs, strict=True) if told) for of in traits]
    return {name: [i for sae, of in enumerate(names) if of == name for i in ratings.of_sae(sae)] for name in names}


def _sae(ratings: Ratings, place: int) -> Found:
    one, items = ratings.study.saes[place], ratings.of_sae(place)
    about = {"sae": one.sae.id, "label": one.sae.label, "target_l0": one.sae.target_l0, "control": one.sae.control}
    rated = int(ratings.answered[items].any(1).sum())
    return about | {"n_latents": len(items), "n_rated": rated} | _scores(ratings, items)


def _scores(ratings: Ratings, items: Sequence[int]) -> Found:
    return {"scores": {name: _share(crossed.mean(given[items])) for name, given in values_of(ratings).items()}}


def _share(found: Crossed | None) -> Found | None:
    """None: nobody answered."""
    if found is None:
        return None
    return _number(found) | {"stderr": found.share_stderr(), "interval": found.share_interval()}


def _number(found: Crossed) -> Found:
    degrees = found.degrees if np.isfinite(found.degrees) else None
    return {"value": found.value, "stderr": found.stderr, "degrees": degrees,
            "n_latents": found.n_latents, "n_raters": found.n_raters}  # fmt: skip


def _differences(ratings: Ratings, groups: Mapping[str, list[int]]) -> list[Found]:
    """All pairs in every metric, one family a metric."""
    found: list[Found] = []
    for metric, given in values_of(ratings).items():
        pairs = [(one, other, crossed.difference(given[groups[one]], given[groups[other]]))
                 for one, other in combinations(groups, 2)]  # fmt: skip
        known = [(one, other, of) for one, other, of in pairs if of is not None]
        for one, other, of in known:
            p = of.p_value()
            found.append(
                {"metric": metric, "of": one, "minus": other, **_number(of)}
                | {"interval": of.interval(1 - (1 - crossed.LEVEL) / len(known))}
                | {"p": None if p is None else min(1.0, p * len(known)), "family": len(known)}
            )
    return found


def _agreement(ratings: Ratings, without: int | None = None) -> Found:
    """Krippendorff's alpha over all latents, of three answers and in their order; `without` one rater."""
    given = ratings.category if without is None else np.delete(ratings.category, without, axis=1)
    counts = agreement.as_counts(given, len(CATEGORIES))
    return {kind: asdict(agreement.alpha(counts, kind)) for kind in ("nominal", "ordinal")}


def _retest(ratings: Ratings) -> Found:
    """Whether raters say the same of a latent that they see again."""
    twice = np.isfinite(ratings.category) & np.isfinite(ratings.again)
    same = np.where(twice, ratings.category == ratings.again, np.nan)
    pairs = np.stack([ratings.category[twice], ratings.again[twice]], axis=1)
    alpha = agreement.alpha(agreement.as_counts(pairs, len(CATEGORIES)), "ordinal")
    return {"asked": int(ratings.asked_again.sum()), "n": int(twice.sum()),
            "same": _share(crossed.mean(same)), "ordinal": asdict(alpha)}  # fmt: skip


def _spread(seconds: Float[ndarray, "..."]) -> Found | None:
    """Median and quartiles of the time for a latent; None where nobody answered."""
    there = seconds[np.isfinite(seconds)]
    if not len(there):
        return None
    low, median, high = np.quantile(there, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "quartiles": [low, high], "n": len(there)}


def _rater(ratings: Ratings, r: int) -> Found:
    """One rater's line; of one who answered nothing it says so."""
    said = ratings.category[:, r]
    counts = {name: int((said == place).sum()) for place, name in enumerate(CATEGORIES)}
    asked = int(ratings.asked[:, r].sum())
    detection = ratings.detection[:, r][np.isfinite(ratings.detection[:, r])]
    return {
        "rater": r + 1,
        "asked": asked,
        "answered": sum(counts.values()),
        **counts,
        "detection": float(detection.mean()) if len(detection) else None,
        "repeats": int((np.isfinite(said) & np.isfinite(ratings.again[:, r])).sum()),
        "repeats_same": int((said == ratings.again[:, r]).sum()),
        "seconds": _spread(ratings.seconds[:, r]),
        "alpha_of_the_others": _agreement(ratings, r)["ordinal"]["value"],
    }


def leanings(ratings: Ratings) -> list[Found]:
    """Raters who stand apart from the others on one architecture more than elsewhere, as one who is not blind might.

    What a rater says of a latent less what the others say of it in the mean, on an architecture against elsewhere, by
    Mann and Whitney's test (1947), with p corrected for all raters and architectures (Bonferroni). One who
    is milder with all latents is none of them.
    """
    rating, groups = ratings.rating, groups_of(ratings)
    tested: list[Found] = []
    for r in range(rating.shape[1]):
        others = np.delete(rating, r, axis=1)
        n = np.isfinite(others).sum(1)
        usable = np.isfinite(rating[:, r]) & (n > 0)
        apart = rating[:, r] - np.nansum(others, axis=1) / np.maximum(n, 1)
        for name, items in groups.items():
            inside: Bool[ndarray, " I"] = np.isin(np.arange(len(rating)), items)
            here, elsewhere = apart[usable & inside], apart[usable & ~inside]
            if min(len(here), len(elsewhere)) >= MIN_LATENTS and np.ptp([*here, *elsewhere]) > 0:
                p = float(stats.mannwhitneyu(here, elsewhere, method="asymptotic").pvalue)
                by = float(here.mean() - elsewhere.mean())
                tested.append({"rater": r + 1, "architecture": name, "by": by, "p": p})
    corrected = [one | {"p": min(1.0, one["p"] * len(tested))} for one in tested]
    return [one for one in corrected if one["p"] <= 1 - crossed.LEVEL]
