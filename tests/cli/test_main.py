"""The command line: what it accepts, what it prints, and that every mistake is one line and leaves no trace."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import bench, files, flags
from transformers import AutoModelForCausalLM, AutoTokenizer

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
    """A run of a few seconds, by flag."""
    return {
        "--arch": "topk", "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 64, "--l0": 8,
        "--tokens": 1000, "--reuse": 2, "--batch-size": 256, "--eval-tokens": 300, "--context-size": 32,
        "--out": tmp_path / "out",
    }  # fmt: skip


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


@pytest.fixture
def broken_model(gemma2_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(gemma2_folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(gemma2_folder).save_pretrained(tmp_path / "broken")
    return tmp_path / "broken"


MISTAKES = {
    "arch": ({"--arch": "jumprelo"}, ['architecture "jumprelo"', 'did you mean "jumprelu"?']),
    "setting": ({"--arch": "gated:penalti=l1"}, ['"penalti"', 'did you mean "penalty"?']),
    "setting's value": ({"--arch": "gated:penalty=l3"}, ["penalty", "'l3'", "'ri_l1'"]),
    "setting's form": ({"--arch": "gated:lr"}, ['"lr" is not key=value']),
    "setting twice": ({"--arch": "topk:lr=1e-3,lr=2e-3"}, ["lr is given twice"]),
    "setting's infinity": ({"--arch": "topk:lr=1e999"}, ["1e999 is no finite number"]),
    "setting's depth": ({"--arch": f"topk:lr={'[' * 5000}"}, ["is nested too deeply"]),
    "setting that no record holds": ({"--arch": "topk:lr=..."}, ["is no finite number, word or list"]),
    "task": ({"--tasks": "reconstructoin"}, ['task "reconstructoin"', 'did you mean "reconstruction"?']),
    "preset": ({"--preset": "papr"}, ["--preset", '"papr"', '"paper"', '"short"']),
    "suite": ({"--config": "smoky"}, ['suite "smoky"', 'did you mean "smoke"?']),
    "model": ({"--model": "demmo"}, ['model "demmo"', 'did you mean "demo"?']),
    "site": ({"--site": "resid_pos"}, ['site "resid_pos"', 'did you mean "resid_post"?']),
    "flag": ({"--archs": "topk"}, ["--archs", "Did you mean --arch?"]),
    "dtype": ({"--dtype": "float31"}, ["--dtype", '"float31"', '"float32"']),
    "device": ({"--device": "gpu"}, ['--device "gpu"', "no such device", "--device cpu"]),
    "device of a Mac": ({"--device": "mps"}, ['--device "mps"', "no float64", "--device cpu"]),
    "layer": ({"--layer": 99}, ["layer 99", "0..3"]),
    "negative layer": ({"--layer": -1}, ["--layer:", "-1", "greater than or equal to 0"]),
    "width": ({"--width": 0}, ["--width:", "'0'", "greater than 0"]),
    "count": ({"--width": "12q"}, ["'12q'", "write 4096, 16k"]),
    "k above the width": ({"--l0": 65}, ["topk", "65", "64"]),
    "L0 above the width": ({"--arch": "relu", "--l0": 65}, ["relu", "l0 65", "64", "lower --l0"]),
    "context": ({"--context-size": 129}, ["context size 129", "at most 128"]),
    "tokens": ({"--tokens": 127}, ["--tokens 127", "one batch of 256", "raise --tokens"]),
    "kernels": ({"--kernels": "dense", "--screening": "on"}, ["--screening on", "--kernels dense", "leave out"]),
    "held-out tokens": ({"--eval-tokens": 50_000}, ["50000", "--eval-tokens"]),
    "no corpus": ({"--dataset": "./nothing.jsonl"}, ['"./nothing.jsonl"', "check the path"]),
    "column": ({"--text-column": "body"}, ['column "body"', "known: text"]),
    "plugin": ({"--plugin": "nothing.py"}, ['--plugin "nothing.py"', "no such Python file"]),
    "no plugin": ({"--plugin": "README.md"}, ['--plugin "README.md"', ".py file"]),
    "both sparsities": ({"--l0": 8, "--sparsity": 8}, ["--l0 and --sparsity", "give one"]),
    "endless": ({"--l0": "inf"}, ["--l0:", "inf"]),
    "astronomical": ({"--tokens": "1e400"}, ["tokens", "1e400", "smaller"]),
    "short context": ({"--context-size": 2}, ["context", "2", "greater than or equal to 3"]),
    "sink": ({"--log-to": "wandb"}, ["--log-to wandb", "pip install", "[wandb]"]),
}


def complaint(capsys, changed: dict[str, object], out: Path) -> str:
    """The one line on stderr of a command that fails before it writes anything."""
    assert bench(*flags(changed), "--quiet") == 2
    assert not out.exists()
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(("changed", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_name_value_and_remedy(capsys, settings, changed, parts):
    line = complaint(capsys, settings | changed, settings["--out"])
    assert [part for part in parts if part not in line] == []


def test_an_empty_corpus_is_a_mistake(capsys, settings, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    assert "holds no text" in complaint(capsys, settings | {"--dataset": tmp_path / "empty.jsonl"}, settings["--out"])


def test_a_model_that_computes_nan_is_a_mistake(capsys, settings, broken_model):
    line = complaint(capsys, settings | {"--model": broken_model}, settings["--out"])
    assert "not all finite" in line
    assert "float32" in line


def test_activations_that_overflow_are_a_mistake(capsys, settings, monkeypatch):
    """Sound logits, but the site itself carries an infinity."""
    monkeypatch.setattr("sae_bench.lm.model.LanguageModel.check_logits", lambda lm: None)
    monkeypatch.setattr("sae_bench.lm.sites.run_until_seen", poisoned_run)
    monkeypatch.setattr("sae_bench.lm.model.run_until_seen", poisoned_run)
    assert "layer_1.resid_post: activations" in complaint(capsys, settings, settings["--out"])


def poisoned_run(model, tokens, points):
    seen = {key: torch.ones(*tokens.shape, 32) for key in points}
    for x in seen.values():
        x[:, -1, 7] = torch.inf
    return seen


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("tokens = = 3", "not valid TOML"),
        ("token = 3", 'did you mean "tokens"?'),
        ("archz = []", 'did you mean "arch"?'),
        ("arch = ['topk']\narchs = ['relu']", '"arch" and "archs" are one setting: give it once'),
        ("plugins = [3]", "plugin: write a text or a list of texts (given: [3])"),
        ("sae = [3]", "sae: write a text or a list of texts (given: [3])"),
        ("l0 = []", "l0: give a value, or leave it out"),
        (None, "No such file"),
    ],
)
def test_a_suite_that_cannot_be_read_is_a_mistake(capsys, settings, tmp_path, text, part):
    suite = tmp_path / "suite.toml"
    if text is not None:
        suite.write_text(text)
    line = complaint(capsys, settings | {"--config": suite}, settings["--out"])
    assert str(suite) in line
    assert part in line


def test_a_file_or_a_strange_folder_is_no_place_for_a_run(capsys, settings, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    before = files(tmp_path)
    for out in (tmp_path / "file", tmp_path / "folder", tmp_path / "file" / "below"):
        assert bench(*flags(settings | {"--out": out}), "--quiet") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(out) in line
    assert files(tmp_path) == before


def test_an_unknown_verb_and_an_unknown_list_are_mistakes(capsys):
    assert bench("tabel", "runs") == 2
    assert 'unknown verb "tabel" (did you mean "table"?' in capsys.readouterr().err
    assert bench("ls", "arch") == 2
    assert "archs" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["--l0"], "--l0: give a value, or leave it out"),
        (["--tasks"], "--tasks: give a value, or leave it out"),
        (["--l0", "16,,32"], "--l0: a value is missing beside a comma"),
        (["--layer", ",all"], "--layer: a value is missing beside a comma"),
        (["--l0", "4,x"], "--l0: should be a valid number, unable to parse string as a number (given: 'x')"),
        (["--model", "demo", "pythia-70m"], '"pythia-70m" is too much: --model takes one value'),
        (["tabel"], 'unknown verb "tabel" (did you mean "table"?'),
    ],
)
def test_what_is_missing_or_too_much_is_named(capsys, command, says):
    assert bench(*command) == 2
    assert f"error: {says}" in capsys.readouterr().err


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


class FakeWriter:
    rows: dict[str, list[tuple[str, int]]]

    def __init__(self, log_dir: str) -> None:
        self.name = Path(log_dir).name
        self.rows[self.name] = []

    def add_scalar(self, name: str, value: float, global_step: int) -> None:
        self.rows[self.name].append((name, global_step))

    def close(self) -> None:
        self.rows[self.name].append(("closed", -1))


def test_the_training_log_is_shown_in_tensorboard_row_by_row(monkeypatch, settings):
    fake = type("fake", (), {"SummaryWriter": FakeWriter})
    monkeypatch.setattr(FakeWriter, "rows", {}, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    assert bench(*flags(settings), "--quiet", "--log-to", "tensorboard") == 0
    ((sae, rows),) = FakeWriter.rows.items()
    log = (settings["--out"] / "saes" / sae / "metrics.jsonl").read_text().splitlines()
    logged = [(name, json.loads(line)["step"]) for line in log for name in json.loads(line)]
    assert sorted(rows) == sorted([*logged, ("closed", -1)])


def test_wandb_gets_a_run_for_every_sae(monkeypatch, settings):
    seen = []

    class Run:
        def __init__(self, **about):
            self.name = about["name"]

        def log(self, row, step):
            seen.append((self.name, step))

        def finish(self):
            seen.append((self.name, "finished"))

    monkeypatch.setitem(sys.modules, "wandb", type("fake", (), {"init": Run}))
    assert bench(*flags(settings | {"--l0": (4, 8)}), "--quiet", "--log-to", "wandb") == 0
    names = {name for name, _ in seen}
    assert len(names) == 2
    assert {name for name, step in seen if step == "finished"} == names
    assert {step for _, step in seen} == {*range(7), "finished"}


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
