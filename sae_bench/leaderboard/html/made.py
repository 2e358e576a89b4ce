"""How the numbers of a board were made, for people: what, when, with what versions, on which text, and how again."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae_bench.errors import one_line
from sae_bench.leaderboard import captions
from sae_bench.leaderboard.board import SAE, Board
from sae_bench.records.names import natural_order, true_name
from sae_bench.records.schema import Record, SAEDescription

Facts = list[tuple[str, str]]
"""Terms and what is said to them."""

SHOWN = 12
"""Digits of a hash that people compare."""


def made(board: Board) -> list[dict[str, Any]]:
    """One entry for each run: its facts, and the settings of each command that makes it again."""
    runs: dict[str, list[SAE]] = {}
    for sae in board.saes:
        runs.setdefault(sae.records[0].provenance.config_hash, []).append(sae)
    return [{"run": digest[:8], "facts": _facts(saes), "settings": _settings(saes)} for digest, saes in runs.items()]


def _settings(saes: Sequence[SAE]) -> list[dict[str, Any]]:
    """What commands ask for that together make some SAEs of one run, and their tasks; each SAE is in one of them.

    Records repeat what decides numbers, and not which SAEs others asked for, so that is read off the SAEs: labels that
    were trained at the same places, widths, sparsities and seeds are one command's.
    """
    tasks = sorted({record.task for sae in saes for record in sae.records})
    of_label: dict[str, list[SAEDescription]] = {}
    for about in (sae.about for sae in saes if not sae.about.origin):
        of_label.setdefault(about.label, []).append(about)
    alike: dict[frozenset[Any], list[SAEDescription]] = {}
    for abouts in of_label.values():
        grid = frozenset((of.site.name, of.d_sae, of.target_l0, of.coefficient, of.seed) for of in abouts)
        alike.setdefault(grid, []).extend(abouts)
    sources = {sae.about.origin.source: None for sae in saes if sae.about.origin}
    asked = [*map(_asked, alike.values()), *([{"saes": [*sources]}] if sources else [])]
    config = saes[0].records[0].provenance.config
    of_model = ("layers", "sites") if config.get("world") else ()  # of a language model
    return [{**config, **{name: of[name] for name in of if name not in of_model}, "tasks": tasks} for of in asked]


def _asked(abouts: Sequence[SAEDescription]) -> dict[str, list[Any]]:
    """The settings by which a command asks for some SAEs, by the names of their fields."""
    values = {
        "archs": (of.label for of in abouts),
        "layers": (of.site.layer for of in abouts),
        "sites": (of.site.kind for of in abouts),
        "widths": (of.d_sae for of in abouts),
        "l0s": (of.target_l0 for of in abouts),
        "sparsity": (of.coefficient for of in abouts if of.target_l0 is None),
        "seeds": (of.seed for of in abouts),
        "added_recipes": (of.tuned_by and of.tuned_by.partition(" ")[0] for of in abouts),
    }
    return {name: [*dict.fromkeys(one for one in of if one not in (None, ""))] for name, of in values.items()}


def _facts(saes: Sequence[SAE]) -> Facts:
    records = [record for sae in saes for record in sae.records]
    of = records[0].provenance
    added = captions.added_recipes(sae.about for sae in saes)
    times = sorted(record.provenance.time for record in records if record.provenance.time)
    facts = [
        ("What", _what(saes)),
        ("When", " to ".join(dict.fromkeys(_minute(time) for time in (*times[:1], *times[-1:])))),
        ("Language model", _joined(true_name(of.model), of.model_revision and f"revision {of.model_revision}",
                                   of.lm_dtype, of.model_sha256 and f"SHA-256 of its weights {of.model_sha256[:SHOWN]}",
                                   of.tokenizer_sha256 and f"of its tokenizer {of.tokenizer_sha256[:SHOWN]}")),
        ("Trained on", _trained(saes, of.dataset, captions.preset_of(of) + added)),
        ("Evaluated on", _evaluated(records)),
        ("Measured", _listed(sorted({f"{record.task} (version {record.task_version})" for record in records}))),
        ("Software", _listed(f"{name} {version}" for name, version in sorted(of.versions.items(), key=_ours_first))),
        ("Machine", _joined(getattr(of, "device", None), _threads(getattr(of, "threads", None)),
                            _python(getattr(of, "python", None)))),
        ("Settings", f"SHA-256 {of.config_hash[:SHOWN]}; all of them are on every SAE's page"),
    ]  # fmt: skip
    return [(term, one_line(text)) for term, text in facts if text]


def _what(saes: Sequence[SAE]) -> str:
    own, controls = ([sae for sae in saes if sae.about.control == control] for control in (False, True))
    parts = [f"{len(saes)} SAE{'s' * (len(saes) != 1)}: {_listed(sorted({sae.label for sae in own}))}"]
    if controls:
        parts.append(f"controls {_listed(sorted({sae.label for sae in controls}))}")
    parts.append(f"at {_listed(sorted({sae.setting.site for sae in saes}, key=natural_order))}")
    parts.append(f"width {_listed(sorted({sae.setting.width for sae in saes}))}")
    parts.append(f"wanted L0 or coefficient {_listed(f'{target:g}' for target in sorted({s.target for s in saes}))}")
    parts.append(f"seeds {_listed(sorted({sae.seed for sae in saes if sae.seed is not None})) or 'unknown'}")
    return "; ".join(parts)


def _trained(saes: Sequence[SAE], dataset: str, preset: str) -> str:
    seen = sorted({sae.about.training.tokens_seen for sae in saes if sae.about.training.tokens_seen})
    if not seen:
        return "elsewhere, as their origin says" if any(sae.about.origin for sae in saes) else "nothing"
    amount = " to ".join(f"{n:,}" for n in dict.fromkeys((seen[0], seen[-1])))
    return f"{amount} activations from {dataset} (preset {preset})"


def _evaluated(records: Sequence[Record]) -> str:
    of = records[0].provenance
    overlaps = [r.sae.training.eval_overlap for r in records if r.sae.training.eval_overlap is not None]
    shared = f"{max(overlaps):.1%} of them in runs of 13 tokens that the training text has too" if overlaps else None
    counted = next((s.n for r in records if r.measured_on == "tokens" for s in r.scores.values() if s.n), None)
    amount = f"{counted:,} held-out tokens of {of.eval_documents:,} documents of {of.dataset}" if counted else None
    return _joined(amount, shared, f"fingerprint {of.eval_fingerprint[:SHOWN]}")


def _minute(time: str) -> str:
    """2026-11-26T01:51:42+00:00 to the minute; anything else as it is."""
    return f"{time[:10]} {time[11:16]} UTC" if time.endswith("+00:00") else time


def _threads(n: int | None) -> str | None:
    return None if n is None else f"{n} thread{'s' * (n != 1)}"


def _python(version: str | None) -> str | None:
    return version and f"Python {version}"


def _ours_first(item: tuple[str, str]) -> tuple[bool, bool, str]:
    return item[0] != "sae-arch-bench", item[0] != "commit", item[0]


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _joined(*parts: object) -> str:
    return "; ".join(str(part) for part in parts if part)


def command(config: Mapping[str, Any], **others: Any) -> str:
    """The command of these settings, every one of them said; RUN stands for the run's folder.

    A flag is called as its field, where it takes several values by the singular; a test holds it against the flags.
    `others` are flags by their names, in the place of the settings' own.
    """
    flags: dict[str, Any] = {}
    for field, value in config.items():
        if field not in ("world", "split", "part") and value not in (None, False, 0, [], {}):
            flags[field if field == "tasks" or not isinstance(value, list) else field.removesuffix("s")] = value
    words = []
    for flag, value in (flags | others).items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [f"--{flag.replace('_', '-')}", *(one_line(_word(value)) for value in values)]
    return shlex.join(["python", "bench.py", *words, "--out", "RUN"])


def _word(value: Any) -> str:
    """A value as it is written after a flag."""
    if isinstance(value, Mapping) and "source" in value:
        return str(value["source"])
    if isinstance(value, Mapping):
        settings = ",".join(f"{key}={of}" for key, of in value.get("settings", {}).items())
        return f"{value.get('name')}:{settings}" if settings else str(value.get("name"))
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
