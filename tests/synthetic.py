"""A finished run made by hand: records, training logs and latents as a run leaves them, without a language model.

Values follow a plan, better with more active latents and one architecture better than another, so that a figure or a
page drawn from them looks like one of a real board.
"""

import json
import math
from pathlib import Path

import numpy as np

from sae_bench.leaderboard.compare import compare
from sae_bench.records.files import digest_of, sha256
from sae_bench.records.names import file_name
from sae_bench.records.schema import record_from

EFFECT = {"gated": 0.05, "jumprelu": 0.0, "relu": 0.35, "topk": 0.02}
N_DOCUMENTS, D_SAE, D_IN = 30, 512, 64
HOSTILE = "</script><img src=x onerror=alert(1)> \"quoted\" 'q' & \u202eright to left\u2028 {{ 7*7 }} `$x`"
EDGES = np.arange(-7.0, 0.25, 0.25).tolist()


def metric(name, better, unit="", headline=True):
    return {"name": name, "better": better, "unit": unit, "description": name, "headline": headline}


def record(label, target, seed, task, *, site="layer_9.resid_post", model="demo", layer=9):
    """One record, with its sums by document, as `run` writes it."""
    draw = np.random.default_rng([len(label), int(target), seed])
    tokens = np.random.default_rng(7).integers(40, 160, N_DOCUMENTS).astype(float)
    hard = np.random.default_rng(8).normal(0, 0.2, N_DOCUMENTS)
    level = EFFECT.get(label.partition(":")[0], 0.2) + draw.normal(0, 0.01)
    l0 = target * (1 if label == "topk" else 1 + draw.normal(0, 0.03))
    loss = 2.2 - 0.4 * math.log(target) + level + hard + draw.normal(0, 0.05, N_DOCUMENTS)
    fvu = 0.4 - 0.06 * math.log(target) + 0.2 * level + 0.05 * hard
    gamma = (0.9 if label == "relu" else 1.0) + 0.002 * hard
    by_document, per_latent, details = {}, {}, {}

    def score(value, formula=None, stderr=0.01):
        return {"value": float(value), "stderr": stderr, "n": int(tokens.sum()), "formula": formula, "note": None}

    if task == "delta_lm_loss":
        metrics = {"delta_lm_loss": metric("delta_lm_loss", "down", "nats")}
        by_document = {"added": (loss * tokens).tolist(), "predictions": tokens.tolist()}
        scores = {"delta_lm_loss": score((loss * tokens).sum() / tokens.sum(), "added / predictions")}
    elif task == "reconstruction":
        metrics = {
            name: metric(name, better)
            for name, better in (("fve", "up"), ("fvu", "down"), ("l0", None), ("gamma", None), ("gamma_centred", None))
        }
        by_document = {
            "squared_error": (fvu * tokens).tolist(), "variance": tokens.tolist(), "active": (l0 * tokens).tolist(),
            "tokens": tokens.tolist(), "norm_hat_squared": (gamma * tokens).tolist(), "inner": tokens.tolist(),
        }  # fmt: skip
        scores = {
            "fve": score(1 - (fvu * tokens).sum() / tokens.sum(), "1 - squared_error / variance"),
            "fvu": score((fvu * tokens).sum() / tokens.sum(), "squared_error / variance"),
            "l0": score(l0, "active / tokens", stderr=0.2),
            "gamma": score((gamma * tokens).sum() / tokens.sum(), "norm_hat_squared / inner"),
        }
        scores["gamma_centred"] = scores["gamma"]  # of data whose mean is zero
    else:
        metrics = {name: metric(name, "down") for name in ("dead_share", "dense_10pct_share")}
        frequency = np.sort(10 ** draw.normal(math.log10(target / D_SAE), 0.8, D_SAE).clip(-9, -0.3))
        frequency[: draw.integers(5, 60)] = 0
        counts = np.floor(frequency * tokens.sum()).astype(int)
        dead, dense = (counts == 0).mean(), (counts / tokens.sum() > 0.1).mean()
        scores = {"dead_share": score(dead), "dense_10pct_share": score(dense, stderr=0.001)}
        per_latent = {"count": counts.tolist()}
        details = {"n_tokens": int(tokens.sum()), "log10_frequency_edges": EDGES}
    kind = site.rpartition(".")[2]
    return {
        "task": task, "task_version": "1", "failure": None, "metrics": metrics, "scores": scores,
        "by_document": by_document, "per_latent": per_latent, "details": details,
        "sae": {
            "id": file_name(f"{label}.{site}.w{D_SAE}.l0_{target:g}.seed{seed}"),
            "arch": label.partition(":")[0], "label": label, "arch_version": "1", "d_in": D_IN, "d_sae": D_SAE,
            "site": {"name": site, "kind": kind, "layer": layer, "path": f"model.layers.{layer}", "side": "output"},
            "target_l0": target, "coefficient": None, "seed": seed, "options": {}, "recipe": {"lr": 2e-3},
            "training": {
                "tokens_seen": 65_536, "n_steps": 64, "seconds": 6.5 + draw.random(), "failure": None,
                "input_scale": 1.5, "kernels": "auto",
            },
            "weights_sha256": f"{seed}" * 64,
        },
        "provenance": {
            "model": model, "dataset": "corpus", "preset": "short", "eval_fingerprint": "f" * 64,
            "eval_tokens": int(tokens.sum()), "eval_documents": N_DOCUMENTS, "config_hash": "c" * 64,
            "device": "x86_64 cpu", "threads": 2, "versions": {"sae-arch-bench": "0.1.0", "torch": "2"},
            "config": {"tokens": 8192}, "time": "2026-11-24T00:00:00+00:00",
        },
    }  # fmt: skip


SAE = {
    "arch": "topk",
    "arch_version": "1",
    "d_in": D_IN,
    "d_sae": D_SAE,
    "coefficient": None,
    "options": {},
    "recipe": None,
}
PROVENANCE = {
    "model": "demo", "dataset": "corpus", "preset": "short", "eval_fingerprint": "f" * 64,
    "eval_documents": N_DOCUMENTS, "config_hash": "c" * 64, "versions": {"sae-arch-bench": "0.1.0"},
}  # fmt: skip


def filled(one):
    """A record by hand, with all that its test does not speak of."""
    metrics = {name: metric(name, None, headline=False) | found for name, found in one["metrics"].items()}
    sae, provenance = SAE | one["sae"], PROVENANCE | one["provenance"]
    nothing = {"by_document": {}, "per_latent": {}, "details": {}}
    return nothing | one | {"metrics": metrics, "sae": sae, "provenance": provenance}


def typed(of):
    """Records by hand, as they are read from files."""
    return [record_from(filled(one), Path("by hand")) for one in of]


TASKS = ("delta_lm_loss", "reconstruction", "feature_density")


def records(labels=tuple(EFFECT), targets=(16.0, 32.0, 64.0), seeds=(0, 1), sites=("layer_9.resid_post",)):
    return [
        record(label, target, seed, task, site=site)
        for site in sites for label in labels for target in targets for seed in seeds for task in TASKS
    ]  # fmt: skip


def training_log(label, target):
    draw = np.random.default_rng(len(label))
    for step in range(0, 64, 2):
        done = step / 64
        yield {
            "step": step, "tokens": (step + 1) * 1024, "lr": 2e-3, "dead_share": 0.1 * done,
            "loss": None if step == 2 else 1.5 - done, "l0": target * (1 + 5 * (1 - done) ** 3),
            "fve": 0.2 + 0.5 * done - EFFECT.get(label, 0.1) / 4 + draw.normal(0, 0.01), "dense_products": 0.0,
        }  # fmt: skip


def latent(sae, number, *, explained=True, text=None, width=24):
    """One latent as `latents/<sae>/<latent>.json` holds it."""
    draw = np.random.default_rng([number, len(sae)])
    words = ["the", " river", " came", " down", " from", " hills", "\n", " in", " spring", " 数", " naïve", "###"]

    def example(kind, i):
        activations = np.where(draw.random(width) < 0.2, draw.random(width) * 8, 0.0) * (kind in ("top", "decile"))
        tokens = [words[int(at)] for at in draw.integers(0, len(words), width)]
        return {
            "kind": kind, "use": "explain" if i % 2 else "score", "decile": i % 10 if kind == "decile" else None,
            "document": i, "tokens": [text or "x", *tokens[1:]], "activations": activations.round(3).tolist(),
        }  # fmt: skip

    examples = [example(kind, i) for kind in ("top",) * 6 + ("decile",) * 4 + ("silent",) * 3 for i in [int(number)]]
    n_fired = int(15 * (1 + number) ** 1.5)
    value = 0.9 - 0.1 * math.log10(n_fired)
    scores = {
        "detection": {"value": value, "n": 20, "counts": {"true_positive": 8, "true_negative": 9}, "note": None},
        "fuzzing": {"value": None, "n": 0, "counts": {}, "note": "no answer could be read"},
    }
    return {
        "sae": sae, "latent": number, "n_fired": n_fired, "n_tokens": 100_000, "max": 8.0,
        "histogram": {"edges": [0.0, 2.0, 4.0, 6.0, 8.0], "counts": [40, 20, 8, 2]},
        "logits": {"top": [[f" w{i}", 1.5 - i / 10] for i in range(10)],
                   "bottom": [[text or f" v{i}", -1.5 + i / 10] for i in range(10)]},
        "examples": examples, "explanation": text or f"words about rivers, number {number}" if explained else None,
        "explainer": "a judge" if explained else None,
        "answers": [{"scorer": "detection", "role": "score", "example": [0], "answer": "1", "failure": None}],
        "scores": scores if explained else {}, "judge": {"model": "a judge"} if explained else None,
    }  # fmt: skip


def seal(path, content):
    """A sealed file, without waiting for the disk as the harness does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(json.dumps(content))
    path.write_text(json.dumps(content | {"seal": digest_of(content)}, sort_keys=True))


def write_run(folder: Path, of=None, *, n_latents=0, text=None, width=24) -> Path:
    """Write a run's folder as far as boards, figures and reports read it."""
    of = records() if of is None else of
    seal(folder / "run.json", {"config": {"tokens": 8192}, "config_hash": "c" * 64})
    for one in of:
        sae = one["sae"]
        seal(folder / "records" / f"{sae['id']}.{one['task']}.json", one)
        if one["task"] == "reconstruction":
            lines = (json.dumps(row) + "\n" for row in training_log(sae["label"], sae["target_l0"] or 32))
            log = folder / "saes" / sae["id"] / "metrics.jsonl"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("".join(lines))
            seal(log.with_name("sae_bench.json"), {"files": {log.name: sha256(log)}})
            for number in range(n_latents):
                content = latent(sae["id"], number * 5, explained=number % 4 != 3, text=text, width=width)
                seal(folder / "latents" / sae["id"] / f"{number * 5}.json", content)
    return folder


def at(comparison, metric, l0s):
    """Standings by L0 and the differences there; the area is in the family of its differences."""
    found = compare(comparison, metric, l0s)
    standings = {place: of for place, of in found.standings.items() if place is not None}
    return standings, [d for d in found.differences if d.l0 is not None]
