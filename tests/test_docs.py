"""The documentation is true: its example runs, its links lead somewhere, its commands parse."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command import flags

from sae_bench.cli.main import app

ROOT = Path(__file__).parent.parent
WIDE = os.environ | {"COLUMNS": "200"}
"""So that no name in a table is broken."""

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    lines = re.findall(r"^    python bench\.py (.*)$", page.read_text(), flags=re.M)
    return [shlex.split(line, comments=True) for line in lines]


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: what a plugin registers stays registered."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=WIDE)


def test_the_example_architecture_passes_the_contract_and_takes_part_in_a_run(tmp_path, gemma2_folder, corpus, at_work):
    plugin, of_batches, contract = code_blocks(ROOT / "docs" / "add-an-architecture.md", "python")
    (tmp_path / "my_sae.py").write_text(plugin)
    (tmp_path / "my_batchtopk.py").write_text(of_batches)
    contract += '\nload_plugin("my_batchtopk.py")\ncheck_architecture("my_batchtopk")'
    specs = ("my_batchtopk", "shared_threshold", "shared_threshold:threshold=0.05", "topk")
    settings = {
        "--plugin": ("my_sae.py", "my_batchtopk.py"), "--arch": specs, "--model": gemma2_folder, "--layer": 1,
        "--dataset": corpus, "--width": 64, "--l0": 8, "--tokens": 2000, "--reuse": 4, "--batch-size": 200,
        "--eval-tokens": 300, "--context-size": 32, "--out": "run",
    }  # fmt: skip
    arguments = [str(part) for part in flags(settings)]
    done = python(f"{contract}\nfrom sae_bench.cli.main import main\nmain({arguments!r} + ['--quiet'])", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split()[0] for line in done.stdout.splitlines()[2:6]]
    assert sorted(rows) == sorted(specs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_site_has_every_page():
    """`make docs` builds it, and finds links that lead nowhere; a page that nothing names it would leave out."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert [page.name for page in PAGES if f": {page.relative_to(ROOT).as_posix()}\n" not in nav] == []


def test_documented_commands_are_ones_that_the_command_line_takes():
    found = [command for page in PAGES for command in commands(page)]
    assert len(found) > 8
    for command in found:
        app.parse_args(command, exit_on_error=False, print_error=False)


def test_every_metric_has_its_formula():
    from sae_bench import SCORERS, TASKS
    from sae_bench.evaluation.task import token_tasks

    text = (ROOT / "docs" / "formulas.md").read_text()
    names = [metric.name for task in token_tasks(TASKS).values() for metric in task.metrics] + list(SCORERS)
    assert [name for name in names if f"`{name}`" not in text] == []
