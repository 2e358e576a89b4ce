"""The files that a plugin file reads: modules beside it, however deep, and data, as far as these can be told.

Modules are found by the import statements of the plugin and of each module so found; installed packages and this one
are left out, for versions stand for them. Data files are those that the plugin or such a module opens while it is
loaded, in its folder or the working directory, itself or by a library's function; not those that a library opens when
it is imported, for that happens once in a process. Of others, opened later, it says so: `FILES = ("words.txt",)`.

A file is known by the name that it was called by, in a folder without links: a plugin that is a link, or stands behind
one, has its files where its code looks for them, beside `__file__`, and beside what the link leads to.
"""

import ast
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from os.path import relpath
from pathlib import Path
from types import FrameType
from typing import Any

from sae_bench.errors import UserError

STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
OURS = ("sae_bench", "architectures", "tasks", "suites")

_read: dict[Path, set[Path]] = {}
"""By plugin file, what was opened while it was loaded."""
_imported_as: dict[Path, bytes] = {}
"""What was in the modules that a plugin imports, when it was loaded the last time."""
_watched: list[set[Path]] = []
"""What was opened by the plugins that are being loaded now."""


def files_of_plugin(plugin: Path) -> dict[str, Path]:
    """The plugin's file and all that it reads, by their paths from its folder.

    Raises:
        UserError: a file that it says it reads is not there.
    """
    own = placed(plugin)
    files = modules_of(own) | {file for file in _read.get(own, ()) if file.is_file()}
    for name in _declared(own):
        beside = [folder / name for folder in (own.parent, own.resolve().parent) if (folder / name).is_file()]
        if not beside:
            raise UserError(f'--plugin {plugin}: FILES names "{name}", which is not beside it: bring it, or mend FILES')
        files.add(placed(beside[0]))
    return {Path(relpath(file, own.parent)).as_posix(): file for file in sorted(files)}


def placed(path: Path) -> Path:
    """A file as it was called, in the folder that it was called in, by the one path that this has without links."""
    return path.absolute().parent.resolve() / path.name


def modules_of(file: Path, package: str = "") -> set[Path]:
    """A file of Python, and the local ones that it imports, however deep; relative imports begin at the `package`."""
    modules, waiting = {placed(file)}, [(placed(file), package)]
    while waiting:
        for found, its_package in _imported(*waiting.pop()).items():
            if found not in modules:
                modules.add(found)
                waiting.append((found, its_package))
    return modules


@contextmanager
def watched(plugin: Path) -> Iterator[None]:
    """Note which local files are opened to be read within this block, in which the plugin is loaded, as it is now."""
    _hook_once()
    _forget_changed(plugin)
    opened: set[Path] = set()
    _watched.append(opened)
    try:
        yield
    finally:
        _watched.remove(opened)
        own = placed(plugin)
        _imported_as.update(_modules_beside(own))
        here = {own.parent, own.resolve().parent, plugin.absolute().parent, Path.cwd()}
        _read.setdefault(own, set()).update(placed(path) for path in opened if _is_local(path, here))


def _forget_changed(plugin: Path) -> None:
    """Where a module that the plugin imports was another when it was loaded before, have all of them imported anew.

    Else a process that lasts, as a notebook's does, would go on with the old ones, and say that it had the new ones.
    """
    now = _modules_beside(placed(plugin))
    if all(_imported_as.get(file, content) == content for file, content in now.items()):
        return
    importlib.invalidate_caches()
    for name, module in [*sys.modules.items()]:
        if (file := getattr(module, "__file__", None)) and placed(Path(file)) in now:
            del sys.modules[name]


def _modules_beside(own: Path) -> dict[Path, bytes]:
    """The modules that a plugin's file imports, and what is in them."""
    return {file: file.read_bytes() for file in modules_of(own) - {own}}


@cache
def _hook_once() -> None:
    sys.addaudithook(_note)  # it cannot be taken away; it does nothing while nothing is watched


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or event != "open" or not isinstance(arguments[0], str) or set(arguments[1] or "r") & set("wax+"):
        return
    if _is_opened_by_a_plugin(sys._getframe(1)):
        for opened in _watched:
            opened.add(Path(arguments[0]).absolute())


def _is_opened_by_a_plugin(frame: FrameType | None) -> bool:
    """Whether the innermost code that is not installed is a plugin's, and no import lies between it and the file."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            return False
        if not file.startswith("<") and not _is_installed(Path(file)):
            return not Path(file).is_relative_to(Path(__file__).parent)
        frame = frame.f_back
    return False


def _is_local(path: Path, here: Collection[Path]) -> bool:
    """Whether it is a file of data in one of these folders: as it was opened, or as it is called without links."""
    data = path.is_file() and path.suffix not in (".pyc", ".py") and not _is_installed(path)
    return data and any(one.is_relative_to(folder) for one in (path, placed(path), path.resolve()) for folder in here)


def _is_installed(path: Path) -> bool:
    packages = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return packages or any(path.is_relative_to(folder) for folder in STANDARD)


def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # whoever loads it says so
        return ast.Module([], [])


def _declared(plugin: Path) -> list[str]:
    """What a plugin's `FILES` holds, where it is a plain tuple or list of texts."""
    for node in _tree(plugin).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is None or not any(isinstance(to, ast.Name) and to.id == "FILES" for to in targets):
            continue
        try:
            names = ast.literal_eval(value)
        except (ValueError, TypeError):
            names = None
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"--plugin {plugin}: FILES is no list of names: write FILES = ('words.txt',)")
        return list(names)
    return []


def _imported(file: Path, package: str) -> dict[Path, str]:
    """The local modules that a file of a package imports, anywhere in it, each with its own package."""
    names: set[str] = set()
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    parents = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
    local = (_source_of(name) for name in sorted(parents) if name and name.split(".")[0] not in OURS)
    return dict(found for found in local if found)


def _source_of(module: str) -> tuple[Path, str] | None:
    """The file of a module that is not installed, if there is one, and the package that its own imports begin at."""
    if module.split(".")[0] in sys.stdlib_module_names:
        return None
    loaded = sys.modules.get(module)
    found, package = getattr(loaded, "__file__", None), getattr(loaded, "__package__", None)
    if found is None:
        try:
            parent = module.rpartition(".")[0]
            known = not parent or parent in sys.modules  # to look for it runs no parent's code
            spec = importlib.util.find_spec(module) if known else None
        except (ImportError, AttributeError, ValueError):
            return None
        found, package = (spec.origin, spec.parent) if spec else (None, None)
    path = placed(Path(found)) if found else None
    local = path and path.suffix == ".py" and path.is_file() and not _is_installed(path)
    return (path, package or "") if path and local else None
