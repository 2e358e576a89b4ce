"""Who may import whom, read from the source: each module only from the levels below its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sae_bench"

LEVELS = [
    {"__init__", "errors", "paths", "redact"},
    {"demo_model", "counts", "excerpts", "answers"},
    {"judge_config"},
    {
        "redact",
        "interrupts",
        "patterns",
        "device",
        "stats",
        "resample",
        "curves",
        "config",
        "progress",
        "schedules",
        "models",
        "sites",
    },
    {"files", "log_sinks", "prompt", "prices", "formats.headers", "formats.places", "formats.hub"},
    {"store", "judge", "formats.source"},
    {"scorers.base", "panel"},
    {"scorers.detection", "scorers.fuzzing", "scorers.simulation", "scorers.saebench"},
    {"scorers.known"},
    {"active"},
    {"sae", "crossover", "books", "keepers"},
    {"task"},
    {"metrics", "registry", "corpus"},
    {"lm", "data", "weights", "leaderboard", "lm_loss", "checkpoint", "formats.foreign"},
    {
        "activations",
        "ablations",
        "plan",
        "provenance",
        "formats.ours",
        "formats.saelens",
        "formats.sparsify",
        "formats.dictionary_learning",
        "formats.gemma_scope",
        "formats.convert",
    },
    {"trainee", "evaluate", "formats.sources", "saebench"},
    {"train", "collect", "chance", "records"},
    {"train_stage", "checks", "compare", "palette", "latents"},
    {"imports", "export", "asking", "verdicts"},
    {"latent_records", "frequency_claim"},
    {"interpret"},
    {"run", "publish", "board"},
    {"dry_run", "verify", "claims", "compare_table", "conversion", "report_data", "figures.style"},
    {"report", "board_table", "figures.against_l0", "figures.frequency", "figures.cost", "figures.interpretability"},
    {"figures.training"},
    {"figures.draw"},
    {"published"},
    {"verbs.libraries", "verbs.lists", "verbs.boards", "verbs.latents"},
    {"verbs.runs", "verbs.saes"},
    {"cli"},
]
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}
OUTSIDE_OF_PLUGINS = {"torch", "jaxtyping", "pydantic", "numpy", "scipy"}
PLUGINS = sorted([*ROOT.glob("architectures/*.py"), *ROOT.glob("tasks/*.py")])


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, except for type checkers alone."""
    found = set()
    tree = ast.parse(path.read_text())
    for_types = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for below in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {alias.name for alias in node.names}
            folder = ROOT.joinpath(*str(node.module).split("."))
            inside = {f"{node.module}.{name}" for name in names if (folder / f"{name}.py").exists()}
            found |= inside or {str(node.module)}
    return found


def own(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    return {name.partition("sae_bench.")[2] for name in imports(path) if name.startswith("sae_bench.")}


def name_of(path: Path) -> str:
    """The module's name within the package: `store`, `verbs.runs`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def test_every_module_has_a_level():
    assert {name_of(path) for path in MODULES} | {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_from_below(path):
    for name in own(path):
        assert name in LEVEL, f"{name_of(path)} imports a plugin: {name}"
        assert LEVEL[name] < LEVEL[name_of(path)], f"{name_of(path)} imports {name}, which does not stand below it"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_a_plugin_imports_the_public_names_alone(path):
    standard = {"typing", "math", "collections"}
    assert {name.partition(".")[0] for name in imports(path)} <= OUTSIDE_OF_PLUGINS | standard | {"sae_bench"}
    assert own(path) == set()


@pytest.mark.parametrize("module", ["leaderboard", "store", "config", "errors", "paths", "cli", "registry"])
def test_some_modules_do_not_import_torch(module):
    assert not {name.partition(".")[0] for name in imports(PACKAGE / f"{module}.py")} & {"torch", "safetensors"}


def test_no_file_imports_a_plugin_by_its_name():
    for path in [*MODULES, ROOT / "bench.py"]:
        assert not [name for name in imports(path) if name.startswith(("sae_bench.architectures", "sae_bench.tasks"))]
        assert not imports(path) & {"architectures", "tasks"}
