"""Plugins run when they are asked for and not before, and one that fails says so in one line."""

import importlib
import sys

import pytest
from conftest import forgotten

from sae_bench import registry
from sae_bench.errors import UserError
from sae_bench.registry import ARCHITECTURES, TASKS, load_plugin, register_task

SOUND = """
import pathlib
from sae_bench import SparseAutoencoder, register_architecture

pathlib.Path(__file__).with_suffix(".ran").touch()

@register_architecture("{name}")
class Foreign(SparseAutoencoder):
    pass
"""
MODULES = {
    "foreign": SOUND.format(name="foreign"),
    "broken": "import math\n\nmath.sqrt(\n    -1\n)\n",
    "silent": "",
    "absent": "import no_such_module_anywhere",
    "chatty": "raise RuntimeError('one\\ntwo')",
    "thief": SOUND.format(name="topk"),
}


@pytest.fixture
def installed(own_plugins_of_a_test, tmp_path, monkeypatch):
    """A package from elsewhere whose entry points name a module for every way to be."""
    about = tmp_path / "foreign-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    names = "".join(f"{name} = foreign_{name}\n" for name in MODULES)
    (about / "entry_points.txt").write_text(f"[sae_bench.architectures]\n{names}")
    for name, text in MODULES.items():
        (tmp_path / f"foreign_{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, f"foreign_{name}", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_installed_plugin_is_listed_without_being_run_and_runs_when_it_is_named(installed):
    assert "foreign" in list(ARCHITECTURES)
    assert "foreign" in ARCHITECTURES
    assert ARCHITECTURES["topk"].name == "topk"
    with pytest.raises(UserError, match=r'unknown architecture "foreing" .did you mean "foreign"'):
        ARCHITECTURES["foreing"]
    assert not (installed / "foreign_foreign.ran").exists()
    assert ARCHITECTURES["foreign"].__module__ == "foreign_foreign"
    assert (installed / "foreign_foreign.ran").exists()


def test_a_file_in_the_folder_of_architectures_is_all_that_a_built_in_needs(
    own_plugins_of_a_test, tmp_path, monkeypatch
):
    folder = importlib.import_module(ARCHITECTURES.package)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    assert set(ARCHITECTURES) >= {"gated", "jumprelu", "relu", "topk"}
    assert "newcomer" not in ARCHITECTURES
    (tmp_path / "newcomer.py").write_text(SOUND.format(name="newcomer"))
    assert "newcomer" in list(ARCHITECTURES)
    assert ARCHITECTURES["newcomer"].__module__ == "sae_bench.architectures.newcomer"
    del sys.modules["sae_bench.architectures.newcomer"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "ValueError: math domain error (foreign_broken.py, line 3); mend or uninstall it"),
        ("absent", "ModuleNotFoundError: No module named 'no_such_module_anywhere' (foreign_absent.py, line 1)"),
        ("chatty", "does not load: RuntimeError: one two (foreign_chatty.py, line 1)"),
        ("silent", "does not register it"),
        ("thief", 'architecture "topk" of foreign_thief is taken by sae_bench.architectures.topk'),
    ],
)
def test_an_installed_plugin_that_fails_says_so_in_one_line(installed, name, reason):
    with pytest.raises(UserError) as error:
        ARCHITECTURES[name]
    assert name in str(error.value)
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert f"foreign_{name}" not in sys.modules or name in ("silent",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = = 1", "SyntaxError: invalid syntax (mine.py, line 1); mend the file"),
        ("\n\nundefined", "NameError: name 'undefined' is not defined (mine.py, line 3)"),
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere' (mine.py, line 1)"),
        ("raise OSError('one\\ntwo')", "OSError: one two (mine.py, line 1)"),
        ("pass", "registers nothing"),
    ],
)
def test_a_plugin_file_that_fails_says_so_in_one_line(tmp_path, text, reason):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError) as error:
        load_plugin(str(tmp_path / "mine.py"))
    assert reason in str(error.value)
    assert str(tmp_path / "mine.py") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_built_in_that_fails_is_our_mistake_and_keeps_its_traceback(monkeypatch):
    def fail(module):
        raise RuntimeError(module)

    monkeypatch.setattr(TASKS, "_classes", {})
    monkeypatch.setattr(TASKS, "_modules", lambda: {"reconstruction": "ours"})
    monkeypatch.setattr(TASKS, "_built_in", lambda: {"reconstruction": "ours"})
    monkeypatch.setattr(registry.importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="ours"):
        TASKS["reconstruction"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "-x", "x:y", "x,y", "a b", "x" * 65, "x\n", "\u00efx"])
def test_a_name_that_would_not_fit_into_a_path_or_a_label_is_refused(name):
    with pytest.raises(UserError, match="rename it"):
        register_task(name)


def test_what_a_test_registers_is_forgotten_and_what_it_loads_is_not(monkeypatch):
    """Else a built-in that a test was the first to ask for is in no registry from then on, whichever test asks."""
    monkeypatch.delitem(ARCHITECTURES._classes, "topk", raising=False)
    monkeypatch.delitem(sys.modules, "sae_bench.architectures.topk", raising=False)
    with forgotten():
        topk = ARCHITECTURES["topk"]
        ARCHITECTURES.register("of_a_test")(type("OfATest", (), {}))
    assert ARCHITECTURES["topk"] is topk
    assert "of_a_test" not in ARCHITECTURES
