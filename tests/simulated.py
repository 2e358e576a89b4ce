"""Records of simulated experiments, whose planted differences are known."""

import numpy as np
from scipy import stats

from sae_bench.leaderboard.bootstrap import Estimate

N_DOCUMENTS = 60


def record(label, target, seed, l0, numerator, tokens, better="down"):
    """A record with one metric, loss = sum(numerator) / tokens, and the L0."""
    by_document = {"added": list(numerator), "tokens": list(tokens), "active": list(l0 * np.asarray(tokens))}

    def score(name):
        above, below = sum(by_document[name]), sum(by_document["tokens"])
        return {"value": above / below, "stderr": 0.0, "n": int(below), "formula": f"{name} / tokens", "note": None}

    return {
        "failure": None,
        "task": "t",
        "task_version": "1",
        "metrics": {"loss": {"better": better}, "l0": {"better": None}},
        "scores": {"loss": score("added"), "l0": score("active")},
        "by_document": by_document,
        "per_latent": {},
        "details": {},
        "sae": {"id": f"{label}.{target}.{seed}", "arch": label.partition(":")[0], "label": label, "seed": seed,
                "target_l0": target, "d_sae": 8, "site": {"name": "s"}},
        "provenance": {"model": "m"},
    }  # fmt: skip


def simulated(seed, effects, n_seeds=5, seed_sd=0.02, document_sd=0.3, noise=0.05, targets=(16, 32, 64)):
    """loss = 1 - log10(L0) / 4 + effect + what a document and a seed add; documents are shared by all SAEs."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(50, 150, N_DOCUMENTS).astype(float)
    of_document = draw.normal(0, document_sd, N_DOCUMENTS)
    records = []
    for label, effect in effects.items():
        for run in range(n_seeds):
            of_seed = draw.normal(0, seed_sd)
            for target in targets:
                level = 1 - np.log10(target) / 4 + effect + of_seed + of_document
                loss = level + draw.normal(0, noise, N_DOCUMENTS)
                records.append(record(label, target, run, target, loss * tokens, tokens))
    return records


def rarely(n: int, p: float = 0.025) -> float:
    """The share of n experiments that something of that probability exceeds once in a thousand tests."""
    return float(stats.binom.isf(1e-3, n, p)) / n


def exactly(value: float, stderr: float = 1.0, degrees: float = 20.0) -> Estimate:
    return Estimate(value, stderr, ((1.0, degrees),), True)
