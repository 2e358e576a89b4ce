"""`ls`: what there is to choose from."""

import re
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

SITES = {
    "resid_post": "output of the layer: the residual stream after it",
    "mlp_out": "what the MLP adds to the residual stream (Gemma 2, 3: after the post-MLP norm)",
    "attn_out": "concatenated head outputs, before the output projection",
    "attn_add": "what attention adds to the residual stream: TransformerLens's hook_attn_out",
    "resid_pre": "input of the layer: the residual stream before it",
    "resid_mid": "the residual stream between attention and MLP, in models that do one after the other",
    "path:MODULE": "output of any module; {layer} stands for the number; path:MODULE@input for its input",
}


What = Literal["archs", "tasks", "scorers", "models", "sites", "suites"]


def ls(what: What | None = None, *, plugin: list[str] | None = None) -> int:
    """List what there is: archs, tasks, scorers, models, sites or suites; all of it without a word.

    Args:
        plugin: Python files with architectures, tasks, scorers or models of your own.
    """
    from sae_bench.registry import load_plugin

    load_plugin(*plugin or ())
    for kind in [what] if what else get_args(What):
        rows = _rows(kind)
        width = max(len(name) for name, _ in rows)
        print("\n".join([*([] if what else [f"{kind}:"]), *(f"{name:<{width}}  {text}" for name, text in rows)]))
    return 0


def _rows(what: What) -> list[tuple[str, str]]:
    """Names of one kind, and what each stands for."""
    from sae_bench.lm.model_names import HUB_MODELS
    from sae_bench.registry import ARCHITECTURES, MODELS, SCORERS, TASKS, Registry, known_architectures
    from sae_bench.runs.suite import suite_files

    registries: dict[str, Registry[Any]] = {"archs": ARCHITECTURES, "tasks": TASKS, "scorers": SCORERS}
    if registry := registries.get(what):
        rows = [(name, _first_line(registry[name])) for name in registry]
        if what == "archs":  # controls below, and called so
            controls = known_architectures(True)
            rows = [
                (name, f"Control: {text.removeprefix('Control: ')}" if name in controls else text)
                for name, text in rows
            ]
            rows.sort(key=lambda row: row[0] in controls)
    elif what == "models":
        rows = sorted([*HUB_MODELS.items(), *((name, _first_line(MODELS[name])) for name in MODELS)])
    elif what == "sites":
        rows = list(SITES.items())
    else:
        rows = [(path.stem, _first_sentence(path)) for path in suite_files()]
    return rows


def _first_sentence(suite: Path) -> str:
    """What the comment at a suite's top begins with."""
    lines = takewhile(lambda line: line.startswith("#"), suite.read_text(encoding="utf-8").splitlines())
    return re.split(r"(?<=[^0-9])[.:] |\.$", " ".join(line.lstrip("# ") for line in lines), maxsplit=1)[0]


def _first_line(plugin: object) -> str:
    text = sys.modules[plugin.__module__].__doc__ or plugin.__doc__ or ""
    return text.strip().partition("\n")[0]
