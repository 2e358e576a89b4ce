"""Which room may import which, read from the source: imports run downwards, and some rooms never load torch."""

import ast
import importlib.util

import pytest
from rooms import BESIDE, MAP, MODULES, PACKAGE, PLUGINS, ROOMS, ROOT, drawn_map, imports, name_of, own, room_of

WITHOUT_TORCH = {"words": {"device"}, "records": set(), "leaderboard": set(), "study": set(), "cli": set()}
"""Rooms that never load torch, nor anything that does; the files that are excepted."""

OUTSIDE_OF_PLUGINS = {
    "torch", "jaxtyping", "pydantic", "numpy", "scipy", "sklearn", "typing", "math", "collections", "dataclasses",
    "hashlib",
}  # fmt: skip


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


def test_the_map_is_the_one_of_this_source():
    """`python tests/rooms.py` draws it again; so no file is missing from it."""
    assert MAP.read_text() == drawn_map()


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


SAEBENCH = {"sae_bench.py", "sae_bench_absorption.py"}
"""Workers in SAEBench's environment, whose package has the name of ours."""

SCRIPTS = [
    path
    for folder in ("benchmarks", "tests/parity")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name not in SAEBENCH
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_script_takes_from_the_house_is_there(path):
    """No other test runs them all."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "sae_bench":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                there = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert there, f"{node.module} has no {alias.name}"
