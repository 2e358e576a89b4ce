"""What docs/security.md says of the source holds: nothing unpickles or evaluates, and no data set may bring code."""

import ast
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
SOURCES = sorted([ROOT / "bench.py", *(path for name in ("sae_bench", "architectures", "tasks")
                                       for path in (ROOT / name).rglob("*.py"))])  # fmt: skip
READERS = {
    "sae_bench/formats/foreign.py": "torch.load(path, map_location='cpu', weights_only=True, mmap=True)",
    "sae_bench/formats/gemma_scope.py": "np.load(file, allow_pickle=False)",
}
"""The two calls that read strangers' pickles and arrays, each in the one file that has checked the headers before."""
UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "torch.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"}


def offences(source: str, allowed: str = "") -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in UNPICKLERS:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if ast.unparse(node) == allowed:
                continue
            if ast.unparse(node.func) in CALLS:
                found.append(ast.unparse(node.func))
            if given.get("weights_only") == "False" or "True" in (
                given.get("allow_pickle"), given.get("trust_remote_code")
            ):  # fmt: skip
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_or_evaluates(path):
    assert offences(path.read_text(), READERS.get(str(path.relative_to(ROOT)), "")) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from dill import load", "torch.load(x)", "eval(x)", "f(trust_remote_code=True)",
     "np.load(x)", "m.from_pretrained(x, weights_only=False)"],
)  # fmt: skip
def test_an_offence_is_found(source):
    assert len(offences(source)) == 1


def test_the_datasets_that_may_be_installed_run_no_scripts():
    """They were dropped with datasets 4.0; no flag brings them back."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = [one for one in map(Requirement, project["dependencies"]) if one.name == "datasets"]
    assert not needed.specifier.contains("3.99")


def test_a_reader_of_strangers_files_may_load_them_in_that_one_way_alone():
    (allowed, *_) = READERS.values()
    assert offences(f"x = {allowed}", allowed) == []
    assert offences("torch.load(path, map_location='cpu', weights_only=False, mmap=True)", allowed)
    assert offences("torch.load(path, weights_only=True)", allowed)
