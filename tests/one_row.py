"""A record made by hand, a row of a table, and the cells of a table in Markdown."""

METRICS = {
    "fve": {"name": "fve", "better": "up", "unit": "", "description": "", "headline": True},
    "l0": {"name": "l0", "better": None, "unit": "latents", "description": "", "headline": True},
    "cosine": {"name": "cosine", "better": "up", "unit": "", "description": "", "headline": False},
}


def record(label="topk", l0=32.0, *, target=32.0, seed=0, task="reconstruction", failure=None, run="a", **fve):
    score = {"value": 0.91234, "stderr": 0.00567, "n": 4096, "formula": None, "note": None}
    scores = {"fve": score | fve, "l0": score | {"value": l0, "stderr": 0.25}, "cosine": score}
    return {
        "task": task,
        "task_version": "1",
        "failure": failure,
        "metrics": METRICS,
        "scores": {} if failure else scores,
        "sae": {
            "id": f"{label}.{target}.seed{seed}", "label": label, "site": {"name": "layer_9.resid_post"}, "d_sae": 2048,
            "target_l0": target, "coefficient": None, "seed": seed, "training": {"tokens_seen": 524_288},
        },
        "provenance": {
            "model": "tiny", "dataset": "corpus", "preset": "short", "eval_fingerprint": "f" * 64,
            "eval_documents": 40, "config_hash": run * 64,
            "versions": {"sae-arch-bench": "0.1.0"},
        },
    }  # fmt: skip


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
