"""What the report's script draws from: the board as small JSON.

A hundred latents of sixteen SAEs are some forty thousand contexts. Tokens are numbers into one list of strings, and of
activations only those that are not zero are kept, with three digits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sae_bench.errors import one_line
from sae_bench.leaderboard.board import SAE, Board
from sae_bench.leaderboard.compare import Setting
from sae_bench.leaderboard.curves import pareto_front
from sae_bench.leaderboard.load import metrics_of
from sae_bench.leaderboard.margins import Margins

MOST_EXAMPLES = 20
"""Contexts of a latent that are shown, the most telling kinds first."""
KINDS = ("top", "decile", "hard", "silent")
SPACES = {"\n": "↵", "\t": "⇥", "\r": "␍"}
N_LOG_POINTS = 60
TRAINING_SHOWN = ("fve", "l0", "loss")


Words = dict[str, int]
"""Every token string once, with its place."""


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
    margins = {name: Margins.of(board.records, name) for name in metrics} if board.controls else {}
    headline = {one_line(name) for name, metric in metrics.items() if metric.headline}
    return {
        "looks": {one_line(label): asdict(look) for label, look in board.looks.items()},
        "controls": sorted(map(one_line, board.controls)),
        "metrics": {one_line(name): {"better": metric.better, "unit": metric.unit,
                                     "description": one_line(metric.description)} for name, metric in metrics.items()},
        "plotted": sorted(headline - {"l0"}, key=lambda name: (name != "delta_lm_loss", name != "fve", name)),
        "settings": [_shown(setting) for setting in board.settings],
        "fronts": [_fronts(board, setting) for setting in board.settings],
        "saes": [_sae(sae, words, margins, several=seen[sae.id] > 1) for sae in board.saes],
        "words": list(words),
    }  # fmt: skip


def _shown(setting: Setting) -> list[Any]:
    return [one_line(setting.model), one_line(setting.site), setting.width]


def _fronts(board: Board, setting: Setting) -> dict[str, list[int]]:
    """For each metric with a better direction, the SAEs that none with fewer active latents beats; no controls."""
    found = {}
    for name, metric in sorted(metrics_of(board.records).items()):
        places = [
            i
            for i, sae in enumerate(board.saes)
            if sae.setting == setting
            and not sae.about.control
            and sae.value(name) is not None
            and sae.value("l0") is not None
        ]
        if metric.better is not None and places:
            l0, value = ([board.saes[i].value(of) or 0.0 for i in places] for of in ("l0", name))
            found[one_line(name)] = [places[i] for i in pareto_front(l0, value, up=metric.better == "up")]
    return found


def _sae(sae: SAE, words: Words, margins: Mapping[str, Margins], *, several: bool) -> dict[str, Any]:
    about, provenance = sae.about, sae.records[0].provenance
    run = provenance.config_hash[:8]
    return {
        "key": f"{sae.id}.{run}" if several else sae.id,
        "id": sae.id,
        "label": one_line(sae.label),
        "look": one_line(sae.label),
        "place": _shown(sae.setting),
        "target": sae.target,
        "seed": about.seed,
        "scores": {
            one_line(name): {"value": score.value, "stderr": score.stderr, "n": score.n}
            | {"note": _text(score.note)}
            | _margin(sae, margins.get(name))
            for record in sae.records
            for name, score in record.scores.items()
        },
        "failures": [one_line(text) for text in sorted({record.failure for record in sae.records if record.failure})],
        "frequency": frequency_histogram(sae),
        "training": _training(sae),
        "provenance": flat({"sae": {k: v for k, v in about.as_json().items() if k not in ("id", "label")},
                            "measured": {k: v for k, v in provenance.as_json().items() if k != "config"},
                            "run": provenance.config}),
        "latents": [_latent(latent, words) for latent in sae.latents()],
    }  # fmt: skip


def _margin(sae: SAE, margins: Margins | None) -> dict[str, Any]:
    """What the value is better by than the best control's, where there is one."""
    margin = margins.get(sae.setting, sae.label, sae.target, sae.seed) if margins else None
    if margin is None:
        return {}
    stderr = margin.estimate.stderr
    known = float(stderr) if np.isfinite(stderr) else None
    return {"margin": {"value": margin.estimate.value, "stderr": known, "over": one_line(margin.over)}}


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


def _training(sae: SAE) -> dict[str, list[float | None]]:
    log = sae.training_log()
    log = log[:: max(1, len(log) // N_LOG_POINTS)]
    if not log:
        return {}
    return {"tokens": [row["tokens"] for row in log]} | {
        name: [_digits(row.get(name)) for row in log] for name in TRAINING_SHOWN
    }


def flat(content: Any, name: str = "") -> list[list[str]]:
    """Nested settings as name and value; those of one part by their names."""
    if isinstance(content, Mapping):
        items = sorted(content.items()) if name else content.items()
        return [row for key, value in items for row in flat(value, f"{name}.{key}" if name else str(key))]
    if isinstance(content, list | tuple):
        return [[one_line(name), one_line(", ".join(map(str, content)))]]
    return [[one_line(name), one_line(str(content))]]


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
    kind = example["kind"] + ("" if example["decile"] is None else f" {example['decile'] + 1}")
    active = [[i, _digits(value)] for i, value in enumerate(example["activations"]) if value != 0]
    return [one_line(kind), example["use"], [_place(token, words) for token in example["tokens"]], active]


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _text(value: str | None) -> str | None:
    return None if value is None else one_line(str(value))
