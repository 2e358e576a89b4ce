"""The commands by which a report says that its run can be made again."""

import shlex
from itertools import chain, product
from pathlib import Path

import pytest
from synthetic import records, write_run

from sae_bench.cli.main import app
from sae_bench.leaderboard.board import Board
from sae_bench.leaderboard.html.made import command, made
from sae_bench.records.files import read_sealed
from sae_bench.runs.config import RunConfig
from sae_bench.runs.suite import configure

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted(folder.parent for folder in (ROOT / "results").glob("*/records"))


@pytest.mark.parametrize(
    "flags",
    [
        {"archs": ["gated:penalty=ri_l1,lr=5e-4", "topk", "pca"], "l0s": [12.5, 64], "seeds": [0, 3], "layers": [3]},
        {"archs": ["topk"], "sparsity": [0.0123456789], "random_lm": True, "reuse": 3, "limit": 4, "dtype": "float32"},
        {"archs": ["relu"], "model": "synthetic", "widths": [64], "preset": "short"},
    ],
)
def test_the_command_of_a_run_has_its_settings_again(flags):
    """Every flag is read by the command line, and what comes out has the hash of the run."""
    config = configure(None, flags)
    words = shlex.split(command(config.identity))
    assert words[:2] == ["python", "bench.py"]
    _, bound, _ = app.parse_args(words[2:], print_error=False, exit_on_error=False)
    settings = bound.arguments["settings"]
    assert configure(None, settings).hash == config.hash
    names = {flag.name for flag in RunConfig.flags().values()}
    assert {word[2:].replace("-", "_") for word in words if word.startswith("--")} <= names | {"out"}
    again = shlex.split(command(config.identity, l0=[16, 32], latents=100))
    assert again[again.index("--l0") + 1 :][:2] == ["16", "32"]
    assert again.count("--l0") == 1


def parsed(settings):
    """The run that a command of the report asks for."""
    _, bound, _ = app.parse_args(shlex.split(command(settings))[2:], print_error=False, exit_on_error=False)
    return configure(None, bound.arguments["settings"])


def grid(config, layers):
    """The SAEs that it asks for; `layers` where it names none."""
    labels, targets = (arch.label for arch in config.archs), (*config.l0s, *config.sparsity)
    return {*product(labels, config.layers or layers, config.sites, config.widths, targets, config.seeds)}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_commands_of_a_published_board_ask_for_its_saes_and_no_others(folder):
    (run,) = made(Board.read([folder]))
    (config,) = map(parsed, run["settings"])
    said = read_sealed(folder / "run.json")
    asked = [RunConfig(**{**said["config"], **part}) for part in said.get("asked", [{}])]
    layers = config.layers or ("none",)
    assert grid(config, layers) == {*chain(*(grid(part, layers) for part in asked))} != set()
    if "training_hash" in said:  # the others are from before runs grew
        assert config.training_hash == said["training_hash"]
        assert config.evaluation_hash == said["config_hash"]


def test_a_run_that_several_commands_made_is_made_by_as_many(tmp_path):
    """One grid for what was asked for differently would ask for more than there is."""
    of = [*records(("topk", "relu"), (16.0,)), *records(("jumprelu",), (16.0, 32.0), seeds=(3,))]
    for record in of:
        if record["sae"]["label"] == "jumprelu":
            record["sae"]["tuned_by"] = "later 12345678"
    (run,) = made(Board.read([write_run(tmp_path, of)]))
    second, first = (shlex.split(command(settings)) for settings in run["settings"])
    assert {"topk", "relu", "0", "1"} <= {*first}
    assert not {"jumprelu", "32", "3", "--added-recipe"} & {*first}
    assert not {"topk", "relu"} & {*second}
    assert second[second.index("--l0") + 1 :][:2] == ["16", "32"]
    assert second[second.index("--added-recipe") + 1] == "later"
