"""The rooms of the package, as the source has them: which file stands where, and what it imports.

python tests/rooms.py                         # write docs/map.md
"""

import ast
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sae_bench"
MAP = ROOT / "docs" / "map.md"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))
PLUGINS = sorted([*ROOT.glob("architectures/*.py"), *ROOT.glob("tasks/*.py")])

WORDS = {"_version", "errors", "progress", "signals", "parsing", "device", "registry", "plugin_files"}
"""What everybody uses: the files beside the rooms, but for `testing`."""

ROOMS = {
    "words": set(),
    "records": {"words"},
    "saes": {"words", "records"},
    "lm": {"words", "records"},
    "synthetic": {"words", "records", "lm"},
    "training": {"words", "records", "saes", "lm"},
    "activations_cache": {"words", "records", "lm"},
    "evaluation": {"words", "records", "saes", "lm"},
    "formats": {"words", "records", "saes"},
    "autointerp": {"words", "records", "saes", "lm", "evaluation"},
    "probing": {"words", "records", "saes", "lm", "evaluation"},
    "leaderboard": {"words", "records"},
    "study": {"words", "records", "leaderboard"},
    "runs": {
        "words",
        "records",
        "saes",
        "lm",
        "synthetic",
        "training",
        "activations_cache",
        "evaluation",
        "formats",
        "autointerp",
        "probing",
        "leaderboard",
    },
    "tuning": {
        "words",
        "records",
        "saes",
        "lm",
        "training",
        "leaderboard",
        "runs",
    },
    "distributed": {
        "words",
        "records",
        "saes",
        "lm",
        "training",
        "activations_cache",
        "evaluation",
        "formats",
        "autointerp",
        "leaderboard",
        "runs",
    },
    "api": {
        "words",
        "records",
        "saes",
        "lm",
        "synthetic",
        "formats",
        "autointerp",
        "leaderboard",
        "runs",
        "tuning",
        "distributed",
    },
    "cli": {
        "words",
        "records",
        "saes",
        "lm",
        "evaluation",
        "formats",
        "study",
        "leaderboard",
        "runs",
        "tuning",
        "distributed",
        "api",
    },
}
"""A room and the rooms that it may import from."""

BESIDE = {"demo": {"words", "records", "lm", "probing"}, "testing": {*ROOMS}}
"""The plug-in model and corpus, and the contract of plugins: nothing imports them but who asks for them."""


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


def purpose(path: Path) -> str:
    """The first sentence of what a file says of itself."""
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    return said.splitlines()[0].rstrip(".:") if said else ""


def arrows() -> Counter[tuple[str, str]]:
    """How many imports lead from one room to another."""
    return Counter(
        (room_of(name_of(path)), room_of(name))
        for path in MODULES
        for name in own(path)
        if room_of(name) != room_of(name_of(path))
    )


def reduced(edges: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges that do not follow from others: the transitive reduction, where there is no circle."""
    below: dict[str, set[str]] = {}
    for above, room in edges:
        below.setdefault(above, set()).add(room)

    def reached(room: str) -> set[str]:
        found: set[str] = set()
        waiting = set(below.get(room, ()))
        while waiting:
            found.add(other := waiting.pop())
            waiting |= below.get(other, set()) - found
        return found

    return {
        (above, room)
        for above, rooms in below.items()
        for room in rooms
        if not any(room in reached(other) for other in rooms - {room})
    }


def drawn_map() -> str:
    """docs/map.md: the rooms and their imports as a diagram, and one line a file."""
    rooms = [*ROOMS, *BESIDE]
    counts = arrows()
    edges = [
        f"    {above} --> {below}" for above, below in sorted(reduced(counts), key=lambda p: tuple(map(rooms.index, p)))
    ]
    parts = [
        "# The house",
        "",
        "Imports run from the upper rooms to the lower ones, and never back; `tests/test_rooms.py` holds it. This page",
        "is made from the source by `python tests/rooms.py`. An arrow that follows from two others is left out.",
        "",
        f"{len(MODULES)} files, {len(rooms)} rooms, {sum(counts.values())} imports between rooms.",
        "",
        "```mermaid",
        "flowchart TD",
        *edges,
        "```",
    ]
    for room in rooms:
        init = PACKAGE / room / "__init__.py"
        title = {"words": "Words that everybody uses", "testing": "The contract of plugins"}.get(room)
        parts += ["", f"## {room}", "", title or purpose(init), ""]
        parts += [
            f"- `{path.relative_to(ROOT).as_posix()}`: {purpose(path)}"
            for path in MODULES
            if room_of(name_of(path)) == room
        ]
    parts += ["", "## Plugins", ""]
    parts += [
        f"- `{path.relative_to(ROOT).as_posix()}`: {purpose(path)}" for path in PLUGINS if path.stem != "__init__"
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    MAP.write_text(drawn_map())
