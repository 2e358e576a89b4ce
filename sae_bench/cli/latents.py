"""`explain`: one latent of a run, in the terminal."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError, did_you_mean, one_line
from sae_bench.records.files import of_our_form, read_sealed
from sae_bench.records.run_folder import RunFolder

SHADES = (195, 159, 123, 87, 51)
"""Backgrounds from weak to strong, of the terminal's 256 colours."""
BELOW_ZERO = (230, 229, 228, 227, 226)
"""Those of activations below zero."""

PER_KIND = 4


def explain(run: Path, sae: str, /, *, latent: int, every: bool = False) -> int:
    """Show what a latent fires on, how it was explained, and how the explanation scored.

    Args:
        run: A run's folder.
        sae: The SAE's name, or the beginning of it if no other begins so.
        latent: The latent's number.
        every: Show all excerpts, not the first few of each kind.
    """
    path = find_latent(run, sae, latent)
    with of_our_form(path):
        text = "\n".join(lines_of(read_sealed(path), colour=sys.stdout.isatty(), every=every))
    print(text)
    return 0


def find_latent(run: Path, sae: str, latent: int) -> Path:
    """The latent's file.

    Raises:
        UserError: the run has no such SAE, or has not collected that latent.
    """
    folders = {path.name: path for path in sorted((run / "latents").glob("*")) if path.is_dir()}
    if not folders:
        raise UserError(f"{run} holds no latents: run its command again with --latents 100")
    found = [name for name in folders if name == sae] or [name for name in folders if name.startswith(sae)]
    if len(found) != 1:
        raise UserError(f'{"unknown" if not found else "more than one"} SAE "{sae}"{did_you_mean(sae, folders)}')
    path = RunFolder(run).latents_path(found[0]) / f"{latent}.json"
    if not path.is_file():
        known = sorted(int(file.stem) for file in folders[found[0]].glob("*.json"))
        near = ", ".join(map(str, sorted(sorted(known, key=lambda one: abs(one - latent))[:8])))
        raise UserError(f"latent {latent} of {found[0]} was not collected: choose another --latent, such as {near}")
    return path


def lines_of(latent: Mapping[str, Any], *, colour: bool, every: bool = False) -> Iterator[str]:
    """The latent as lines of text; whatever it says, it stays text."""
    yield f"{one_line(latent['sae'])}, latent {latent['latent']}"
    yield f"fires on {latent['n_fired']:,} of {latent['n_tokens']:,} tokens, at most {latent['max']:.3g}"
    if latent["logits"]:
        for name, words in latent["logits"].items():
            yield f"{name:<7}{'  '.join(one_line(repr(word)) for word, _ in words)}"
    explanation = latent["explanation"]
    yield "not explained" if explanation is None else f'"{one_line(explanation)}" ({one_line(latent["explainer"])})'
    for name, score in latent["scores"].items():
        value = "none" if score["value"] is None else f"{score['value']:.3f}"
        yield f"{name:<20}{value:>6}  n {score['n']}  {one_line(score['note'] or '')}".rstrip()
    failures = [one_line(answer["failure"]) for answer in latent["answers"] if answer["failure"]]
    if failures:
        yield f"{len(failures)} of {len(latent['answers'])} answers failed: {', '.join(sorted(set(failures)))}"
    for kind in ("top", "decile", "silent", "hard"):
        examples = [example for example in latent["examples"] if example["kind"] == kind]
        for example in examples if every else examples[:PER_KIND]:
            decile = f" {example['decile']}" if example["decile"] else ""
            yield ""
            yield f"{kind}{decile}, to {example['use']}, document {example['document']}"
            yield highlighted(example["tokens"], example["activations"], latent["max"], colour=colour)


def highlighted(tokens: Sequence[str], activations: Sequence[float], maximum: float, *, colour: bool) -> str:
    """The text with its active tokens on a background, or in brackets with their strength, up to 10 by size."""
    parts = []
    for token, value in zip(tokens, activations, strict=True):
        text = "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in token)
        if value == 0 or maximum <= 0:
            parts.append(text)
        elif colour:
            shades = SHADES if value > 0 else BELOW_ZERO
            shade = shades[min(len(shades) - 1, int(len(shades) * abs(value) / maximum))]
            parts.append(f"\x1b[30;48;5;{shade}m{text}\x1b[0m")
        else:
            parts.append(f"[{text}|{int(10 * value / maximum)}]")
    return "".join(parts)
