"""A process that lasts from one run to the next, as a notebook's does, takes everything as it is now."""

import sys

import torch

from sae_bench.registry import ARCHITECTURES, load_plugin
from sae_bench.runs.provenance import environment


def test_a_plugin_that_is_loaded_again_has_the_modules_that_are_there_now(tmp_path, own_plugins_of_a_test):
    """It would train with the old ones, and hash the new ones. Also where one imports the other."""
    (tmp_path / "deep_of_mine.py").write_text("SCALE = 1.0\n")
    (tmp_path / "chain_of_mine.py").write_text("from deep_of_mine import SCALE\n")
    plugin = tmp_path / "mine3.py"
    plugin.write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom chain_of_mine import SCALE\n"
        "from sae_bench import ARCHITECTURES, register_architecture\n"
        "register_architecture('mine3')(type('Mine', (ARCHITECTURES['topk'],), {'scale': SCALE}))\n"
    )
    path = sys.path[:]
    load_plugin(str(plugin))
    kept = sys.modules["chain_of_mine"]
    load_plugin(str(plugin))
    assert sys.modules["chain_of_mine"] is kept, "what did not change is imported once"
    (tmp_path / "deep_of_mine.py").write_text("SCALE = 12.0\n")
    load_plugin(str(plugin))
    sys.path[:] = path
    assert ARCHITECTURES["mine3"].scale == 12.0


def test_the_environment_has_the_threads_of_now(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert environment(device)["threads"] == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert environment(device)["threads"] == 4
