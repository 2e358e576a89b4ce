"""A study's results for the terminal: what raters said of each SAE, who can be told apart, and how far to trust it."""

from collections.abc import Iterator, Sequence
from typing import Any

from tabulate import tabulate

from sae_bench.errors import one_line
from sae_bench.study.results import Found

SHOWN = {"human_yes": "yes", "human_yes_or_maybe": "yes or maybe", "human_detection": "detection"}
"""Metrics with a column, and what stands above it."""


def written(results: Found) -> str:
    """All of it; first what is missing."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Found) -> Iterator[str]:
    answers, settings = results["answers"], results["settings"]
    raters = results["raters"]
    partial = answers["given"] < answers["asked"]
    yield (
        f"{'PARTIAL: ' if partial else ''}{answers['given']} of {answers['asked']} answers, by "
        f"{sum(one['answered'] > 0 for one in raters)} of {len(raters)} raters, about {settings['n_latents']} latents "
        "of each SAE"
    )
    yield "Intervals are 95%, over latents and raters."
    shown = [name for name in SHOWN if any(one["scores"][name] for one in results["saes"])]
    yield from _table("SAE", [(one["sae"], one) for one in results["saes"]], shown)
    if len(results["architectures"]) < len(results["saes"]):
        yield from _table("architecture", [(one["name"], one) for one in results["architectures"]], shown)
        yield from _unmatched(results)
    yield from _differences(results, shown)
    yield from _agreement(results)
    yield from _raters(raters)
    for one in results["leanings"]:
        side = "better" if one["by"] > 0 else "worse"
        yield one_line(
            f"rater {one['rater']} finds {one['architecture']} {side} than the other raters, by {abs(one['by']):.2f} "
            f"more than elsewhere (p {_p(one['p'])}): is this rater blind to the SAE?"
        )


def _table(what: str, rows: Sequence[tuple[str, Found]], shown: Sequence[str]) -> Iterator[str]:
    with_counts = any("n_rated" in one for _, one in rows)
    header = [what, *(["latents rated"] if with_counts else []), *(SHOWN[name] for name in shown)]
    body = [
        [one_line(name), *([f"{one['n_rated']} of {one['n_latents']}"] if with_counts else [])]
        + [_value(one["scores"][metric]) for metric in shown]
        for name, one in rows
    ]
    yield ""
    yield tabulate(body, header, "simple", disable_numparse=True)


def _unmatched(results: Found) -> Iterator[str]:
    targets: dict[str, set[Any]] = {}
    for one in results["saes"]:
        if not one["control"]:
            targets.setdefault(one["label"], set()).add(one["target_l0"])
    if len({frozenset(of) for of in targets.values()}) > 1:
        yield "The architectures were not asked about at the same wanted L0s: part of a difference may be that of L0."


def _differences(results: Found, shown: Sequence[str]) -> Iterator[str]:
    found = [one for one in results["differences"] if one["metric"] in shown]
    if not found:
        return
    body = [
        [SHOWN[one["metric"]], one_line(f"{one['of']} - {one['minus']}"), _value(one, signed=True), _p(one["p"])]
        for one in found
    ]
    yield ""
    yield tabulate(body, ["of", "difference", "value", "p"], "simple", disable_numparse=True)
    if (family := found[0]["family"]) > 1:
        yield f"The {family} differences of a metric are judged together: their intervals cover together."


def _agreement(results: Found) -> Iterator[str]:
    yield ""
    for kind in ("ordinal", "nominal"):
        yield f"Krippendorff's alpha, {kind}: {_alpha(results['agreement'][kind])}"
    retest = results["retest"]
    same = "" if retest["same"] is None else f", the same answer in {_value(retest['same'])}"
    yield f"test-retest: {retest['n']} of {retest['asked']} repeats answered{same}"
    for one in results.get("judge", ()):
        about = f"{one['n_latents']} latents of {one['n_saes']} SAEs"
        said = one["note"] if one["spearman"] is None else f"{_number(one['spearman'], one['interval'])} ({about})"
        yield one_line(f"rank correlation with the judge's {one['scorer']}, within SAEs: {said}")
    if (seconds := results["seconds"]) is not None:
        low, high = seconds["quartiles"]
        yield f"time for a latent: median {seconds['median']:.0f} s, quartiles {low:.0f} and {high:.0f} s"


def _raters(raters: Sequence[Found]) -> Iterator[str]:
    header = [
        "rater",
        "answered",
        "yes",
        "maybe",
        "no",
        "detection",
        "repeats alike",
        "seconds",
        "others' alpha",
    ]
    body = [
        [
            one["rater"],
            f"{one['answered']} of {one['asked']}" if one["answered"] else "nothing",
            *(one[name] for name in ("yes", "maybe", "no")),
            "-" if one["detection"] is None else f"{one['detection']:.2f}",
            f"{one['repeats_same']} of {one['repeats']}",
            "-" if one["seconds"] is None else f"{one['seconds']['median']:.0f}",
            "-" if one["alpha_of_the_others"] is None else f"{one['alpha_of_the_others']:.2f}",
        ]
        for one in raters
    ]
    yield ""
    yield tabulate(body, header, "simple", disable_numparse=True)


def _value(found: Found | None, *, signed: bool = False) -> str:
    return "no answer" if found is None else _number(found["value"], found["interval"], signed=signed)


def _number(value: float, interval: Sequence[float] | None, *, signed: bool = False) -> str:
    """To two places; with unknown uncertainty it says so."""
    form = "+.2f" if signed else ".2f"
    ends = "[unknown]" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"
    return f"{value:{form}} {ends}"


def _alpha(found: Found) -> str:
    if found["value"] is None:
        return str(found["note"])
    return f"{_number(found['value'], found['interval'])} ({found['n_units']} latents seen by two raters or more)"


def _p(p: float | None) -> str:
    if p is None:
        return "unknown"
    return "< .001" if p < 0.001 else f"{p:.3f}"
