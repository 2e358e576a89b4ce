"""Which room may import which, read from the source: imports run downwards, and some rooms never load torch."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sae_bench"

WORDS = {"_version", "errors", "progress", "signals", "parsing", "device", "registry"}
"""What everybody uses: the files beside the rooms, but for `testing`."""

ROOMS = {
    "words": set(),
    "records": {"words"},
    "saes": {"words", "records"},
    "lm": {"words", "records"},
    "training": {"words", "records", "saes", "lm"},
    "evaluation": {"words", "records", "saes", "lm"},
    "formats": {"words", "records", "saes"},
    "autointerp": {"words", "records", "saes", "lm", "evaluation"},
    "leaderboard": {"words", "records"},
    "runs": {"words", "records", "saes", "lm", "training", "evaluation", "formats", "autointerp", "leaderboard"},
    "cli": {"words", "records", "saes", "lm", "evaluation", "formats", "leaderboard", "runs"},
}
"""A room and the rooms that it may import from."""

BESIDE = {"demo": {"words", "records", "lm"}, "testing": {*ROOMS}}
"""The plug-in model and corpus, and the contract of plugins: nothing imports them but who asks for them."""

WITHOUT_TORCH = {"words": {"device"}, "records": set(), "leaderboard": set(), "cli": set()}
"""Rooms that never load torch, nor anything that does; the files that are excepted."""

OUTSIDE_OF_PLUGINS = {"torch", "jaxtyping", "pydantic", "numpy", "scipy", "typing", "math", "collections"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
PLUGINS = sorted([*ROOT.glob("architectures/*.py"), *ROOT.glob("tasks/*.py")])


def name_of(path: Path) -> str:
    """The module's name within the package: `errors`, `lm.sites`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(module: str) -> str:
    """The room that a module stands in."""
    first = module.partition(".")[0]
    return "words" if first in WORDS else first


@cache
def imports(path: Path, *, at_once: bool = False) -> frozenset[str]:
    """Every module that a file imports, but for type checkers alone; `at_once`: and that loading the file loads."""
    tree = ast.parse(path.read_text())
    left_out = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        later = at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if typing_only or later:
            left_out |= {id(below) for below in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            folder = ROOT.joinpath(*str(node.module).split("."))
            inside = {f"{node.module}.{alias.name}" for alias in node.names if (folder / f"{alias.name}.py").exists()}
            found |= inside or {str(node.module)}
    return frozenset(found)


def own(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    return {name.partition("sae_bench.")[2] for name in imports(path) if name.startswith("sae_bench.")}


def loaded_by(module: str) -> set[str]:
    """Everything that is loaded with a module of ours, however many imports away."""
    found: set[str] = set()
    waiting = {f"sae_bench.{module}"}
    while waiting:
        name = waiting.pop()
        found.add(name)
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if path.exists():
            waiting |= imports(path, at_once=True) - found
    return found


def test_every_file_stands_in_a_room():
    assert {room_of(name_of(path)) for path in MODULES} == {*ROOMS, *BESIDE}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_imports_from_its_room_and_from_below(path):
    room = room_of(name_of(path))
    allowed = {room} | (ROOMS | BESIDE)[room]
    for name in own(path):
        assert room_of(name) in allowed, f"{name_of(path)} imports {name}: {room} may not import {room_of(name)}"


def test_the_table_has_no_circle():
    for above, below in ROOMS.items():
        for room in below:
            assert list(ROOMS).index(room) < list(ROOMS).index(above)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_is_part_of_a_circle(path):
    seen: set[str] = set()
    waiting = own(path)
    while waiting:
        name = waiting.pop()
        assert name != name_of(path), f"{name} imports itself, by way of others"
        seen.add(name)
        file = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
        waiting |= (own(file) if file.exists() else set()) - seen


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if name_of(path) not in WITHOUT_TORCH.get(room_of(name_of(path)), {name_of(path)})],
    ids=name_of,
)
def test_some_rooms_never_load_torch(path):
    heavy = {name.partition(".")[0] for name in loaded_by(name_of(path))} & {"torch", "safetensors", "transformers"}
    assert not heavy


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_a_plugin_imports_the_public_names_alone(path):
    assert {name.partition(".")[0] for name in imports(path)} <= OUTSIDE_OF_PLUGINS | {"sae_bench"}
    assert own(path) == set()


def test_no_file_imports_a_plugin_by_its_name():
    for path in [*MODULES, ROOT / "bench.py"]:
        assert not [name for name in imports(path) if name.startswith(("sae_bench.architectures", "sae_bench.tasks"))]
        assert not imports(path) & {"architectures", "tasks"}
