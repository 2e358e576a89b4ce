"""A plugin is known by all that it reads: its file, modules that it imports, data files, also behind links."""

import sys
from pathlib import Path

import pytest

from sae_bench.errors import UserError
from sae_bench.plugin_files import files_of_plugin
from sae_bench.registry import load_plugin

PLUGIN = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from beside import NAME
from sae_bench import ARCHITECTURES, register_architecture

FILES = ("declared.txt",)
WORDS = (Path(__file__).parent / "opened.txt").read_text()

@register_architecture(NAME)
class Mine(ARCHITECTURES["topk"]):
    version = "1"
"""


def test_whatever_a_plugin_reads_is_in_what_it_is_known_by(at_work, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    plugin = tmp_path / "plug.py"
    plugin.write_text(PLUGIN + "import lib_of_theirs\nlib_of_theirs.read(Path(__file__).parent / 'by_library.txt')\n")
    for name in ("declared.txt", "opened.txt", "by_library.txt", "at_import.txt"):
        (tmp_path / name).write_text("words")
    (tmp_path / "site-packages").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    reads = f"from pathlib import Path\nread = Path.read_text\nread(Path({str(tmp_path)!r}, 'at_import.txt'))\n"
    (tmp_path / "site-packages" / "lib_of_theirs.py").write_text(reads)
    (tmp_path / "beside.py").write_text("def later():\n    from package.deeper import N\n\nNAME = 'mine'\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from . import other\n")
    (tmp_path / "package" / "other.py").write_text("import json, torch, sae_bench\n")
    (tmp_path / "package" / "deeper.py").write_text("N = 1\n")
    load_plugin(str(plugin))
    import package  # noqa: F401  (as the plugin may have it imported by now)

    expected = {"plug.py", "beside.py", "declared.txt", "opened.txt", "by_library.txt"}
    expected |= {f"package/{name}.py" for name in ("__init__", "other", "deeper")}
    assert set(files_of_plugin(plugin)) == expected


BEHIND_LINKS = """
from pathlib import Path
from inner_of_theirs import scale
from sae_bench import ARCHITECTURES, register_architecture

FILES: tuple[str, ...] = ("declared.txt",)
WORDS = (Path(__file__).parent / "opened.txt").read_text() + (Path(__file__).resolve().parent / "real.txt").read_text()

@register_architecture("linked_{number}")
class Linked(ARCHITECTURES["topk"]):
    version = "1"
"""


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_plugin_behind_links_is_known_by_all_that_it_reads(tmp_path, monkeypatch, link):
    """Its package is a link, too: relative imports in it begin at the package, not at what the link leads to."""
    real, named = tmp_path / "real", tmp_path / "named"
    (real / "of_package").mkdir(parents=True)
    if link == "file":
        named.mkdir()
        (named / "plug.py").symlink_to(real / "plugin_itself.py")
    else:
        named.symlink_to(real)
    plugin = named / "plug.py"
    (real / ("plugin_itself.py" if link == "file" else "plug.py")).write_text(BEHIND_LINKS.format(number=link))
    for name in ("declared.txt", "opened.txt"):
        (named / name).write_text("words")
    (real / "real.txt").write_text("words")
    (tmp_path / "path" / "of").mkdir(parents=True)
    (tmp_path / "path" / "inner_of_theirs").symlink_to(real / "of_package")
    (real / "of_package" / "__init__.py").write_text("from .deep import scale\n")
    (real / "of_package" / "deep.py").write_text("def scale():\n    from .deeper import N\n    return N\n")
    (real / "of_package" / "deeper.py").write_text("N = 1\n")
    monkeypatch.syspath_prepend(tmp_path / "path")
    for name in [name for name in sys.modules if name.startswith("inner_of_theirs")]:
        monkeypatch.delitem(sys.modules, name)
    load_plugin(str(plugin))
    found = files_of_plugin(plugin)
    names = {"plug.py", "declared.txt", "opened.txt", "real.txt", "__init__.py", "deep.py", "deeper.py"}
    assert {Path(name).name for name in found} == names
    assert {"plug.py", "declared.txt", "opened.txt"} < set(found)
    monkeypatch.chdir(named)
    assert files_of_plugin(Path("plug.py")).keys() == found.keys()


@pytest.mark.parametrize(
    "said", ["FILES = ('words.txt')", "FILES: str = 'words.txt'", "FILES = (7,)", "FILES = names()"]
)
def test_files_that_are_no_list_of_names_are_refused(tmp_path, said):
    (tmp_path / "plug.py").write_text(said)
    with pytest.raises(UserError, match=r"FILES is no list of names: write FILES = \('words.txt',\)"):
        files_of_plugin(tmp_path / "plug.py")
