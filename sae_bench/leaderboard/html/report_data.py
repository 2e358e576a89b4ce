"""What the report's script draws from: the board as small JSON.

A hundred latents of sixteen SAEs are some forty thousand contexts. Tokens are numbers into one list of strings, and of
activations only those that are not zero are kept, with three digits. SAEs are columns, of which `packing` says why.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import numpy as np

from sae_bench.errors import one_line
from sae_bench.leaderboard import order, tables
from sae_bench.leaderboard.board import SAE, Board
from sae_bench.leaderboard.curves import pareto_front
from sae_bench.leaderboard.html.packing import columns
from sae_bench.leaderboard.html.plain_words import explained
from sae_bench.leaderboard.load import metrics_of
from sae_bench.leaderboard.margins import Margins
from sae_bench.leaderboard.setting import Setting
from sae_bench.records.names import true_name

MOST_EXAMPLES = 20
"""Contexts of a latent that are shown, the most telling kinds first."""
KINDS = ("top", "decile", "hard", "silent")
SPACES = {"\n": "↵", "\t": "⇥", "\r": "␍"}
N_LOG_POINTS, FEWEST_LOG_POINTS, LOG_POINTS = 60, 8, 60_000
"""Points of a training curve at most and at least, and of all curves of a board together."""
N_DECILES = 10
TRAINING_SHOWN = ("fve", "l0", "loss")


Words = dict[str, int]
"""Every token string once, with its place."""


@cache
def visible(token: str) -> str:
    """A token with its line breaks shown, and without characters that would turn or hide what stands beside it."""
    return "".join(SPACES.get(c, c if c.isprintable() or c == " " else "\N{REPLACEMENT CHARACTER}") for c in token)


def _place(token: str, words: Words) -> int:
    return words.setdefault(visible(token), len(words))


def board_data(board: Board) -> dict[str, Any]:
    """Everything that the script knows."""
    words: Words = {}
    seen = Counter(sae.id for sae in board.saes)
    metrics = metrics_of(board.records)
    margins = Margins.of_each(board.records, metrics)
    headline = {name for name, metric in metrics.items() if metric.headline and name != "l0"}
    first = order.primary(board.records)
    plotted = sorted(headline, key=lambda name: (name != first, name != "fve", name))
    front, points = order.front(board.records), max(FEWEST_LOG_POINTS, min(N_LOG_POINTS, LOG_POINTS // len(board.saes)))
    saes = [_sae(sae, margins, points, several=seen[sae.id] > 1) for sae in board.saes]
    settings = {setting: place for place, setting in enumerate(board.settings)}
    for sae, about in zip(board.saes, saes, strict=True):
        about["front"] = order.place_of(sae.records[0]) in front
        about["place"] = settings[sae.setting]
    return {
        "looks": {one_line(label): asdict(look) for label, look in board.looks.items()},
        "controls": sorted(map(one_line, board.controls)),
        "metrics": {one_line(name): {"better": metric.better, "unit": one_line(metric.unit),
                                     "description": explained(metric)} for name, metric in metrics.items()},
        "plotted": [one_line(name) for name in plotted],
        "shown": [one_line(name) for name in tables.headline(board.records)],
        "settings": [_shown(setting) for setting in board.settings],
        "fronts": [_fronts(board, setting) for setting in board.settings],
        "saes": columns(saes),
        "latents": [[*sae.latents(partial(_latent, words=words))] for sae in board.saes],
        "words": list(words),
    }  # fmt: skip


def _shown(setting: Setting) -> list[Any]:
    return [one_line(true_name(setting.model)), one_line(setting.site), setting.width]


def _fronts(board: Board, setting: Setting) -> dict[str, list[int]]:
    """For each metric with a better direction, the SAEs that none with fewer active latents beats; no controls."""
    found = {}
    here = [(i, sae) for i, sae in enumerate(board.saes) if sae.setting == setting and not sae.about.control]
    for name, metric in sorted(metrics_of(board.records).items()):
        if metric.better is None or not metric.headline:
            continue
        points = [(i, l0, value) for i, sae in here
                  if (l0 := sae.value("l0")) is not None and (value := sae.value(name)) is not None]  # fmt: skip
        if points:
            places, l0s, values = zip(*points, strict=True)
            found[one_line(name)] = [places[i] for i in pareto_front(l0s, values, up=metric.better == "up")]
    return found


def _sae(sae: SAE, margins: Mapping[str, Margins], n_points: int, *, several: bool) -> dict[str, Any]:
    about, provenance = sae.about, sae.records[0].provenance
    run = provenance.config_hash[:8]
    return {
        "key": f"{sae.id}.{run}" if several else sae.id,
        "id": sae.id,
        "run": run,
        "label": one_line(sae.label),
        "control": about.control,
        "target": sae.target,
        "seed": about.seed,
        "origin": one_line(about.origin.source) if about.origin else None,
        "scores": {
            one_line(name): {"value": _digits(score.value, 6), "stderr": _digits(score.stderr), "n": score.n}
            | {"note": _text(score.note)}
            | _margin(sae, margins.get(name))
            for record in sae.records
            for name, score in record.scores.items()
        },
        "failures": [one_line(text) for text in sorted({record.failure for record in sae.records if record.failure})],
        "frequency": frequency_histogram(sae),
        "training": _training(sae, n_points),
        "provenance": flat({"sae": {k: v for k, v in about.as_json().items() if k not in ("id", "label")},
                            "measured": {k: v for k, v in provenance.as_json().items() if k != "config"},
                            "run": provenance.config}),
    }  # fmt: skip


def _margin(sae: SAE, margins: Margins | None) -> dict[str, Any]:
    """What the value is better by than the best control's, where there is one."""
    margin = margins.get(sae.setting, sae.label, sae.target, sae.seed) if margins else None
    if margin is None:
        return {}
    stderr = margin.estimate.stderr
    known = _digits(float(stderr)) if np.isfinite(stderr) else None
    return {"margin": {"value": _digits(margin.estimate.value, 6), "stderr": known, "over": one_line(margin.over)}}


def frequency_histogram(sae: SAE) -> dict[str, Any] | None:
    """Counts of latents by log10 of their frequency, and the dead ones."""
    if (found := sae.counts) is None:
        return None
    counts, n_tokens = np.array(found[0]), found[1]
    alive = counts[counts > 0] / n_tokens
    edges = np.arange(np.floor(-np.log10(n_tokens)), 0.1, 0.25)
    return {
        "edges": edges.tolist(), "counts": np.histogram(np.log10(alive), bins=edges)[0].tolist(),
        "dead": int((counts == 0).sum()), "n": len(counts), "n_tokens": n_tokens,
    }  # fmt: skip


def _training(sae: SAE, n_points: int) -> dict[str, list[float | None]]:
    log = sae.training_log()
    log = log[:: max(1, len(log) // n_points)]
    if not log:
        return {}
    return {"tokens": [row["tokens"] for row in log]} | {
        name: [_digits(row.get(name)) for row in log] for name in TRAINING_SHOWN
    }


def flat(content: Any, name: str = "") -> dict[str, str]:
    """Nested settings by name; those of one part in their names' order."""
    if isinstance(content, Mapping):
        found: dict[str, str] = {}
        for key, value in sorted(content.items()) if name else content.items():
            found |= flat(value, f"{name}.{key}" if name else str(key))
        return found
    if isinstance(content, list | tuple):
        return {one_line(name): one_line(", ".join(map(str, content)))}
    return {one_line(name): one_line(str(content))}


def _latent(latent: Mapping[str, Any], words: Words) -> dict[str, Any]:
    examples = sorted(latent["examples"], key=lambda example: KINDS.index(example["kind"]))[:MOST_EXAMPLES]
    return {
        "n": latent["latent"],
        "fired": latent["n_fired"],
        "of": latent["n_tokens"],
        "max": _digits(latent["max"]),
        "histogram": {"edges": [_digits(edge) for edge in latent["histogram"]["edges"]],
                      "counts": latent["histogram"]["counts"]},
        "logits": {side: [[_place(token, words), _digits(value)] for token, value in pairs]
                   for side, pairs in latent["logits"].items()} if latent["logits"] else None,
        "examples": [_example(example, words) for example in examples],
        "explanation": _text(latent["explanation"]),
        "explainer": _text(latent["explainer"]),
        "scores": {one_line(name): _score(score) for name, score in latent["scores"].items()},
        "answers": _answers(latent["answers"]),
    }  # fmt: skip


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in (score.get("counts") or {}).items())
    return {
        "value": _digits(score["value"]),
        "n": score["n"],
        "counts": one_line(counts),
        "note": _text(score["note"]),
    }


def _answers(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many answers each scorer got, and how many of them could not be used."""
    asked = Counter(answer["scorer"] for answer in answers)
    failed = Counter(answer["scorer"] for answer in answers if answer["failure"])
    return [one_line(f"{name}: {n} answers, {failed[name]} unusable") for name, n in sorted(asked.items())]


def _example(example: Mapping[str, Any], words: Words) -> list[Any]:
    kind = example["kind"] + ("" if example["decile"] is None else f" {example['decile']} of {N_DECILES}")
    active = [[i, _digits(value)] for i, value in enumerate(example["activations"]) if value != 0]
    return [one_line(kind), example["use"], [_place(token, words) for token in example["tokens"]], active]


def _digits(value: float | None, n: int = 3) -> float | None:
    return None if value is None else float(f"{value:.{n}g}")


def _text(value: str | None) -> str | None:
    return None if value is None else one_line(str(value))
