"""Who may import whom, read from the source: each module only from the levels below its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sae_bench"

LEVELS = [
    {"__init__", "errors", "records.names", "records.redact"},
    {"demo.model", "parsing", "autointerp.examples", "autointerp.parse"},
    {"autointerp.settings"},
    {
        "records.redact",
        "signals",
        "saes.layouts",
        "device",
        "evaluation.stderr",
        "leaderboard.bootstrap",
        "leaderboard.curves",
        "runs.config",
        "progress",
        "training.schedules",
        "lm.load",
        "lm.sites",
    },
    {
        "records.files",
        "training.logging",
        "autointerp.prompt",
        "autointerp.budget",
        "formats.headers",
        "formats.hook_names",
        "formats.hub",
    },
    {"records.run_folder", "autointerp.client", "formats.source"},
    {"autointerp.scorers.base", "autointerp.judges"},
    {
        "autointerp.scorers.detection",
        "autointerp.scorers.fuzzing",
        "autointerp.scorers.simulation",
        "autointerp.scorers.saebench",
    },
    {"autointerp.scorers.known"},
    {"saes.active"},
    {"saes.base", "saes.kernel_choice", "training.device_stats", "autointerp.reservoir"},
    {"evaluation.task"},
    {"evaluation.document_sums", "registry", "lm.corpus"},
    {"lm.model", "lm.tokens", "saes.save", "leaderboard.tables", "lm.losses", "training.checkpoint", "formats.foreign"},
    {
        "training.buffer",
        "lm.ablations",
        "runs.plan",
        "records.provenance",
        "formats.ours",
        "formats.saelens",
        "formats.sparsify",
        "formats.dictionary_learning",
        "formats.gemma_scope",
        "formats.convert",
    },
    {"training.trainer", "evaluation.loop", "formats.open", "formats.saebench"},
    {"training.loop", "autointerp.sample", "autointerp.random_baseline", "runs.records"},
    {"runs.train", "testing", "leaderboard.compare", "leaderboard.palette", "autointerp.latents"},
    {"runs.import_saes", "formats.export", "autointerp.explainer"},
    {"runs.latent_records"},
    {"runs.interpret"},
    {"runs.pipeline", "runs.publish", "leaderboard.board"},
    {
        "runs.dry_run",
        "runs.verify",
        "leaderboard.claims",
        "leaderboard.compare_table",
        "runs.convert",
        "leaderboard.html.report_data",
        "leaderboard.figures.style",
    },
    {
        "leaderboard.html.report",
        "leaderboard.board_table",
        "leaderboard.figures.against_l0",
        "leaderboard.figures.frequency",
        "leaderboard.figures.cost",
        "leaderboard.figures.interpretability",
    },
    {"leaderboard.figures.training"},
    {"leaderboard.figures.draw"},
    {"leaderboard.board_folder"},
    {"cli.libraries", "cli.lists", "cli.boards", "cli.latents"},
    {"cli.runs", "cli.saes"},
    {"cli.main"},
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


@pytest.mark.parametrize(
    "module",
    ["leaderboard.tables", "records.run_folder", "runs.config", "errors", "records.names", "cli.main", "registry"],
)
def test_some_modules_do_not_import_torch(module):
    assert not {name.partition(".")[0] for name in imports(PACKAGE.joinpath(*module.split(".")).with_suffix(".py"))} & {
        "torch",
        "safetensors",
    }


def test_no_file_imports_a_plugin_by_its_name():
    for path in [*MODULES, ROOT / "bench.py"]:
        assert not [name for name in imports(path) if name.startswith(("sae_bench.architectures", "sae_bench.tasks"))]
        assert not imports(path) & {"architectures", "tasks"}
