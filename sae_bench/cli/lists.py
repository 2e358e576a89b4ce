"""`ls`: what there is to choose from."""

import sys
from typing import Literal

SITES = {
    "resid_post": "output of the layer: the residual stream after it",
    "mlp_out": "what the MLP adds to the residual stream (Gemma 2, 3: after the post-MLP norm)",
    "attn_out": "concatenated head outputs, before the output projection",
    "path:MODULE": "output of any module; {layer} stands for the number; path:MODULE@input for its input",
}


def ls(what: Literal["archs", "tasks", "models", "sites", "suites"], *, plugin: list[str] | None = None) -> int:
    """List what there is: archs, tasks, models, sites or suites.

    Parameters
    ----------
    plugin
        Python files with architectures or tasks of your own.
    """
    from sae_bench.lm.load import MODELS
    from sae_bench.registry import ARCHITECTURES, TASKS, load_plugins
    from sae_bench.runs.suite import load_suite, suite_files

    load_plugins(plugin)
    if what in ("archs", "tasks"):
        registry = ARCHITECTURES if what == "archs" else TASKS
        rows = [(name, _first_line(registry[name])) for name in registry]
    elif what == "models":
        rows = list(MODELS.items())
    elif what == "sites":
        rows = list(SITES.items())
    else:
        rows = [(path.stem, f"{load_suite(str(path))['model']}: {path}") for path in suite_files()]
    width = max(len(name) for name, _ in rows)
    for name, meaning in rows:
        print(f"{name:<{width}}  {meaning}")
    return 0


def _first_line(cls: type) -> str:
    text = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
    return text.strip().partition("\n")[0]
