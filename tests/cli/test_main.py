"""The command line: what it accepts, what it prints, and that every mistake is one line and leaves no trace."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import bench, complaint, flags, small_run

from sae_bench.cli.main import app
from sae_bench.runs.config import RunConfig
from sae_bench.runs.suite import configure, load_suite, several, suite_files

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "pandas", "numpy")  # flags follow from a pydantic model, so that is not
FLAGS = set(
    """
    --arch --sae --controls --recipe --added-recipe
    --tasks --config --preset --plugin --model --layer --random-lm --site --revision --dtype --trust-remote-code --width
    --l0 --sparsity --seed --dataset --text-column --tokens --reuse --eval-tokens --eval-skip --context-size
    --batch-size --buffer-tokens --out --device --kernels --screening --compile --limit --checkpoint-every --overwrite
    --latents --interp-tokens --hard-negatives --chance --autointerp-scorers --judge-model --judge-base-url
    --explainer-model --explainer-base-url --explainer-excerpts --judge-excerpts --judge-budget --judge-prices
    --judge-concurrency --judge-timeout --judge-optional
    --activations-cache --cache-limit --probe-sets --probe-set --absorption-words
    --extend-tokens --emit --log-to --dry-run --quiet --devices --dollars-per-hour --on --capture
    """.split()  # noqa: SIM905
)
PLUGIN = '''
"""Every latent that is above zero."""
from sae_bench import Loss, SparseAutoencoder, Step, reconstruction_loss, register_architecture

@register_architecture("mine")
class Mine(SparseAutoencoder):
    def encode(self, x):
        return self.select(x, keep=lambda z: z > 0)

    def loss(self, x, step):
        f = self.encode(x)
        x_hat = self.decode(f)
        return Loss(reconstruction_loss(x, x_hat) + step.coefficient * f.sum_per_token(f.values), x_hat, f)
'''


@pytest.fixture
def settings(gemma2_folder, corpus, at_work, tmp_path):
    return small_run(gemma2_folder, corpus, tmp_path / "out")


def modules_after(statement: str) -> set[str]:
    code = f"import sys\ntry:\n    {statement}\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "statement", ["import sae_bench.cli.main", "from sae_bench.cli.main import main; main(['--help'])"]
)
def test_help_imports_nothing_heavy(statement):
    loaded = modules_after(statement)
    assert "sae_bench.cli.main" in loaded
    assert not loaded & set(HEAVY)


def test_a_board_is_drawn_without_torch():
    """Nor with pandas, which takes longer to load than a table to draw."""
    loaded = modules_after("import sae_bench.leaderboard.tables")
    assert "numpy" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "pandas"}


def test_the_flags_are_these_and_no_others(capsys):
    arguments = app.assemble_argument_collection(default_parameter=None)
    names = [name for argument in arguments for name in argument.names]
    assert sorted(name for name in names if name != "*") == sorted(FLAGS)  # *: settings, and the rest, as a whole
    assert bench("--help") == 0
    text = capsys.readouterr().out
    assert [flag for flag in FLAGS if flag not in text] == []


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("archs", ["batchtopk", "gated", "jumprelu", "matryoshka", "p_anneal", "relu", "topk"]),
        ("tasks", ["delta_lm_loss", "feature_density", "reconstruction"]),
        ("models", ["demo", "gemma-2-2b", "gemma-2-9b", "gpt2", "pythia-70m"]),
        ("sites", ["resid_post", "mlp_out", "attn_out", "path:MODULE"]),
        ("suites", ["demo", "gemma-2-2b", "gemma-2-9b", "smoke"]),
    ],
)
def test_ls_lists_names_with_a_meaning_each(capsys, what, names):
    assert bench("ls", what) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(names) <= set(rows)


def test_every_suite_that_comes_along_is_a_valid_configuration():
    names = [path.stem for path in suite_files()]
    assert names
    for name in names:
        config = configure(name, {})
        assert {arch.name for arch in config.archs} >= {"topk", "jumprelu"}


def test_a_dry_run_says_what_would_happen_and_does_nothing(capsys, settings):
    many = settings | {"--arch": ("topk", "jumprelu"), "--site": ("resid_post", "attn_out"), "--seed": (3, 4)}
    assert bench(*flags(many), "--dry-run") == 0
    text = capsys.readouterr().out
    assert text.count("to train") == 2 * 2 * 2
    assert "topk.layer_1.attn_out.w64.l0_8.seed4" in text
    assert "model.layers.1.self_attn.o_proj  48" in text
    assert "8 SAEs, 7 steps of 256" in text  # 1000 activations x 2 / 256
    assert "memory" in text
    assert "disk" in text
    assert not settings["--out"].exists()


def test_quiet_prints_the_board_alone_and_otherwise_progress_goes_to_stderr(capsys, settings):
    assert bench(*flags(settings), "--quiet") == 0
    quiet = capsys.readouterr()
    assert quiet.out.splitlines()[0].startswith("architecture")
    assert quiet.err == ""
    assert bench(*flags(settings)) == 0
    loud = capsys.readouterr()
    assert loud.out == quiet.out
    assert "loading" in loud.err
    assert str(settings["--out"]) in loud.err
    assert bench("table", settings["--out"]) == 0
    assert capsys.readouterr().out == quiet.out


def test_limit_evaluates_on_so_many_contexts(settings):
    assert bench(*flags(settings | {"--limit": 2, "--tasks": "reconstruction"}), "--quiet") == 0
    (path,) = (settings["--out"] / "records").iterdir()
    assert json.loads(path.read_text())["scores"]["fve"]["n"] == 2 * 31


def test_a_flag_overrides_the_suite(capsys, settings, tmp_path):
    suite = tmp_path / "suite.toml"
    suite.write_text(
        f'archs = ["relu"]\nmodel = "{settings["--model"]}"\nsites = ["mlp_out"]\nlayers = [2]\nwidths = ["1k"]\n'
        f"sparsity = [0.25]\ntokens = 4000\n"
    )
    assert bench("--config", suite, "--layer", 3, "--l0", 5, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "relu.layer_3.mlp_out.w1024.l0_5.seed0" in text
    assert "4,000 activations" in text
    assert text.count("to train") == 1, "--l0 replaces the suite's sparsity"


def test_a_suite_may_call_a_setting_as_its_flag_does_or_as_run_json_does(tmp_path):
    names = {flag.name: field for field, flag in RunConfig.flags().items()}
    assert {"arch": "archs", "latents": "n_latents", "tokens": "tokens"}.items() <= names.items()
    values = {"sae": ["a"], "plugin": ["a.py"], "added_recipe": ["a.toml"]}
    for place, keys in enumerate((names.keys(), names.values())):
        suite = tmp_path / f"{place}.toml"
        lines = zip(keys, (json.dumps(values.get(name, 3)) for name in names), strict=True)
        suite.write_text("".join(f"{key} = {value}\n" for key, value in lines))
        found = load_suite(str(suite))
        assert found == several({field: values.get(name, 3) for name, field in names.items()})
        assert (found["seeds"], found["tokens"]) == ([3], 3), "what may have several values is a list"


ONE_FIELD = '''
import sys
from typing import Annotated
import sae_bench.runs.config as config
from sae_bench.parsing import Count, Flag, Heading

class More(config.RunConfig):
    n_cups: Annotated[Count, Flag(Heading.DATA, "cups")] = 3
    """Cups of coffee."""

config.RunConfig = More
from sae_bench.cli.main import app, main
from sae_bench.runs.suite import configure
for arguments in ([], ["--config", sys.argv[1]], ["--config", sys.argv[1], "--cups", "2k"]):
    _, bound, _ = app.parse_args(arguments)
    command = bound.arguments.get("command")
    made = configure(command and command.config, bound.arguments.get("settings") or {})
    print(made.n_cups, made.identity["n_cups"])
main(["--help"])
'''


def test_a_setting_is_one_field_and_flag_help_heading_and_suite_key_follow(tmp_path):
    (tmp_path / "more.py").write_text(ONE_FIELD)
    (tmp_path / "suite.toml").write_text("cups = 5\n")
    command = [sys.executable, str(tmp_path / "more.py"), str(tmp_path / "suite.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stderr == ""
    *made, text = done.stdout.split("\n", 3)
    assert made == ["3 3", "5 5", "2048 2048"], "the default, a suite over it, a flag over both"
    under = text.partition("Data and training")[2].partition("╰")[0]
    assert re.search(r"--cups STR +Cups of coffee. Default: 3.", under)


def test_settings_of_an_architecture_reach_it(capsys, settings):
    specs = settings | {"--arch": ("gated:penalty=ri_l1,lr=5e-4", "gated")}
    assert bench(*flags(specs), "--quiet") == 0
    assert "gated:penalty=ri_l1,lr=0.0005" in capsys.readouterr().out
    own, plain = (
        json.loads(path.read_text())["description"]
        for path in sorted((settings["--out"] / "saes").glob("*/sae_bench.json"))
    )
    assert (own["options"]["penalty"], own["recipe"]["lr"]) == ("ri_l1", 5e-4)
    assert plain["options"]["penalty"] == "l1"


def test_commas_may_stand_between_values_and_a_single_one_needs_no_list(capsys, settings, tmp_path):
    (tmp_path / "suite.toml").write_text('widths = "1k"\narch = "topk"\nlayer = "0,2"\n')
    suite = {name: value for name, value in settings.items() if name not in ("--width", "--arch", "--layer", "--l0")}
    command = flags(suite | {"--config": tmp_path / "suite.toml", "--l0": "4,8", "--seed": ("0,1", 2)})
    assert bench(*command, "--dry-run") == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("topk.")]
    assert len(rows) == len({*rows}) == 2 * 2 * 3
    assert "topk.layer_2.resid_post.w1024.l0_8.seed2" in rows


def test_ls_alone_lists_everything(capsys):
    assert bench("ls") == 0
    said = capsys.readouterr().out
    for kind, name in (("archs", "topk"), ("tasks", "reconstruction"), ("sites", "resid_post"), ("suites", "demo-all")):
        assert f"{kind}:\n" in said
        assert f"\n{name} " in said


def test_a_setting_may_be_a_list_or_a_fraction_without_its_zero(capsys, settings):
    archs = ("matryoshka:group_shares=[.25,.25]", "gated:lr=.5e-3")
    assert bench(*flags(settings | {"--arch": archs}), "--dry-run") == 0
    said = capsys.readouterr().out
    assert "matryoshka-group_shares-0.25-0.25-" in said
    assert "gated-lr-0.0005" in said


def test_a_plugin_file_takes_part_like_a_built_in(capsys, settings, tmp_path):
    plugin = tmp_path / "my_sae.py"
    plugin.write_text(PLUGIN)
    code = (
        f"from sae_bench.cli.main import main; main({[str(part) for part in flags(settings | {'--arch': 'mine'})]!r} "
        f"+ ['--quiet', '--plugin', {str(plugin)!r}])"
    )  # a process of its own: what is registered stays registered
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert any(line.startswith("mine ") for line in done.stdout.splitlines())


def test_all_stands_for_every_architecture_beside_those_named():
    config = RunConfig.build(
        {"archs": ["all", "gated:penalty=ri_l1"], "model": "demo", "sites": ["resid_post"], "seeds": [0]},
        known=lambda controls: ("random",) if controls else ("relu", "gated"),
    )
    assert [arch.label for arch in config.archs] == ["relu", "gated", "gated:penalty=ri_l1"]


def test_a_plugin_cannot_take_the_name_of_a_built_in(capsys, settings, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.replace('register_architecture("mine")', 'register_architecture("topk")'))
    line = complaint(capsys, settings | {"--plugin": plugin}, settings["--out"])
    assert '"topk"' in line
    assert "rename it" in line
