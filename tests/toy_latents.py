"""Latents with a planted truth: each fires on one word of a toy text, and on nothing else."""

import random
from typing import Any

from sae_bench.autointerp.examples import N_FIRING, N_SILENT, N_TOP, Example, assign_uses, seeded_random
from sae_bench.autointerp.latents import latent_json
from sae_bench.autointerp.sample import CollectedLatent

WORDS = "river stone mill boat letter uncle bridge rain iron bread coal lamp harbour teacher circle snow roof".split()  # noqa: SIM905


def toy_example(kind: str, word: str, draw: random.Random, document: int, *, extra: str = "") -> Example:
    others = [other for other in WORDS if other != word]
    tokens = [f" {draw.choice(others)}" for _ in range(12)]
    for place in draw.sample(range(12), draw.randint(1, 3)) if kind in ("top", "decile") else ():
        tokens[place] = f" {word}"
    if extra:
        tokens.append(extra)
    activations = [2.0 if token.strip() == word else 0.0 for token in tokens]
    return Example(kind, "score", None, document, tuple(tokens), tuple(activations))


def toy_latent(number: int = 0, *, extra: str = "", n_firing: int = N_FIRING) -> dict[str, Any]:
    """A latent that fires with strength 2 on WORDS[number]; `extra` is put at the end of every excerpt."""
    word, draw = WORDS[number % len(WORDS)], random.Random(number)
    counts = {"top": min(N_TOP, n_firing), "decile": n_firing, "silent": N_SILENT}
    lists = {kind: [toy_example(kind, word, draw, i, extra=extra) for i in range(n)] for kind, n in counts.items()}
    examples = assign_uses(lists["top"], lists["decile"], lists["silent"], seeded_random("toy", number))
    found = CollectedLatent(number, 30, 2.0, [0.0, 1.0, 2.0], [0, 30], examples)
    return latent_json("toy", found, 1000, None)
