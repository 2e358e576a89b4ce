"""`ls`: what there is to choose from."""

import sys
from typing import Any, Literal

SITES = {
    "resid_post": "output of the layer: the residual stream after it",
    "mlp_out": "what the MLP adds to the residual stream (Gemma 2, 3: after the post-MLP norm)",
    "attn_out": "concatenated head outputs, before the output projection",
    "attn_add": "what attention adds to the residual stream: TransformerLens's hook_attn_out",
    "resid_pre": "input of the layer: the residual stream before it",
    "resid_mid": "the residual stream between attention and MLP, in models that do one after the other",
    "path:MODULE": "output of any module; {layer} stands for the number; path:MODULE@input for its input",
}


def ls(
    what: Literal["archs", "tasks", "scorers", "models", "sites", "suites"], *, plugin: list[str] | None = None
) -> int:
    """List what there is: archs, tasks, scorers, models, sites or suites.

    Args:
        plugin: Python files with architectures, tasks, scorers or models of your own.
    """
    from sae_bench.lm.model_names import HUB_MODELS
    from sae_bench.registry import ARCHITECTURES, MODELS, SCORERS, TASKS, Registry, known_architectures, load_plugin
    from sae_bench.runs.suite import load_suite, suite_files

    load_plugin(*plugin or ())
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
        rows = [(path.stem, f"{load_suite(str(path))['model']}: {path}") for path in suite_files()]
    width = max(len(name) for name, _ in rows)
    for name, meaning in rows:
        print(f"{name:<{width}}  {meaning}")
    return 0


def _first_line(plugin: object) -> str:
    text = sys.modules[plugin.__module__].__doc__ or plugin.__doc__ or ""
    return text.strip().partition("\n")[0]
