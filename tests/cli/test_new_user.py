"""A new user's first session: thirty commands and ten calls from Python, right and wrong, and what each answers.

One after the other in one folder, as they would be typed, on a toy world: what is right does what it says, what is
wrong is one line that names the thing, the value and the remedy, and changes nothing.
"""

import re
import shlex
from pathlib import Path

import pytest
import torch
from command import bench, files

import sae_bench as sb

WORLD = "n_features = 48\nd_in = 16\nn_roots = 4\ndepth = 1\n"
SUITE = """
model = "synthetic:toy.toml"
width = 24
tokens = 3000
reuse = 2
batch_size = 130
buffer_tokens = 1000
eval_tokens = 1000
context_size = 257
"""
FIRST = "--config world.toml --arch topk relu --l0 3 --seed 0,1 --out runs/first"
ONE = "--config world.toml --arch topk --l0 3 --out runs/other"

SESSION = [
    # what there is
    ("--version", 0, ["0.1.0"]),
    ("ls suites", 0, ["demo ", "The first leaderboard"]),
    ("ls arch", 2, ["arch", "archs"]),
    ("tabel runs/first", 2, ['unknown verb "tabel"', 'did you mean "table"?']),
    # a run, misspelt
    ("--config world.toml --arch topkk", 2, ['unknown architecture "topkk"', 'did you mean "topk"?']),
    ("--wdith 24", 2, ["--wdith", "--width"]),
    ("--l0", 2, ["--l0: give a value, or leave it out"]),
    ("--config world.toml --arch topk --l0 0 --out runs/other", 2, ["--l0:", "greater than 0", "'0'"]),
    ("--config worlds.toml --arch topk", 2, ["worlds.toml", "No such file"]),
    ("--model pythia70m --arch topk --out runs/other", 2, ['"pythia70m"', 'did you mean "pythia-70m"?']),
    (f"{ONE} --layer 3", 2, ["--layer is for language models: leave it out with --model synthetic:toy"]),
    (f"{ONE} --l0 30", 2, ["topk", "30", "24"]),
    (f"{ONE} --device gpu", 2, ['--device "gpu"', "--device cpu"]),
    # a run
    (f"{FIRST} --dry-run", 0, ["4 SAEs", "topk.synthetic.w24.l0_3.seed0", "relu.synthetic.w24.l0_3.seed1"]),
    (f"{FIRST} --quiet", 0, ["architecture", "topk", "relu", "f1", "Seeds 0, 1"]),
    (f"{FIRST} --quiet", 0, ["architecture", "topk", "relu", "f1", "Seeds 0, 1"]),
    (f"{FIRST} --tokens 4000", 2, ["runs/first", "tokens", "--overwrite"]),
    # what it says
    ("table runs/first --columns l0 fve f1 --over-seeds", 0, ["l0", "fve", "f1", "topk"]),
    ("table runs/frist", 2, ["runs/frist"]),
    ("table runs/first --columns fev", 2, ['"fev"', 'did you mean "fvu"? known: ']),
    ("compare runs/first --metric f1 --at-l0 30", 0, ["Nothing to compare", "an L0 of 30", "--l0 16 32"]),
    ("report runs/first", 0, []),
    ("power runs/first --metric f1 --at-l0 30", 2, ["on both sides of an L0 of 30", "give another --at-l0"]),
    ("verify runs/first", 0, ["run.json: as recorded", "102 as recorded, 0 not"]),
    # its SAEs elsewhere, and back
    ("export runs/first --format dictionary_learning --out exported", 0, []),
    ("export runs/first --format pickle --out elsewhere", 2, ["pickle", "dictionary_learning"]),
    ("explain runs/first topk --latent 3", 2, ["--latents"]),
    ("publish runs/first --repo me/mine --dry-run", 0, ["me/mine"]),
    (
        "--sae exported --model synthetic:toy.toml --out runs/second",
        2,
        ["folders in it do: write --sae", '"exported/*"'],
    ),
    ("--sae exported/* --model synthetic:toy.toml --eval-tokens 1000 --out runs/second --quiet", 0, ["relu", "f1"]),
]


@pytest.fixture(scope="module")
def session(at_work):
    """A folder with what the user brings along: a world, and a suite."""
    (at_work / "toy.toml").write_text(WORLD)
    (at_work / "world.toml").write_text(SUITE)
    return at_work


def made(session: Path) -> dict[str, bytes]:
    """SAEs and records of the first run."""
    return {name: content for name, content in files(session).items() if re.match("runs/first/(saes|records)", name)}


def test_thirty_commands(session, capsys):
    assert len(SESSION) == 30
    before = {}
    for command, code, parts in SESSION:
        there, known = files(session), made(session)
        assert bench(*shlex.split(command)) == code, (command, capsys.readouterr())
        said = capsys.readouterr()
        answer = said.err if code else said.out
        assert [part for part in parts if part not in answer] == [], (command, answer)
        if code:
            assert re.fullmatch(r"((loading|making the world) .+\n)?error: .+\n", said.err), (command, said.err)
            assert said.out == "", command
            assert files(session) == there, f"{command} changed something"
        if command in before:
            assert (said.out, made(session)) == (before[command], known), "done is done"
        before[command] = said.out
    assert (session / "runs/first/report.html").read_text().startswith("<!doctype html>")


def test_ten_calls(session):
    here = {"config": "world.toml", "arch": ["topk", "relu"], "l0": 3}
    run = sb.run(**here, seed=[0, 1], out="runs/first")
    assert sb.load_run("runs/first").saes == run.saes
    assert len(run.saes) == 4
    assert run.failures == {}

    table = run.to_dataframe()
    topk = table.query("architecture == 'topk' and metric == 'l0'")
    assert topk["value"].between(2.9, 3.1).all()
    assert len(topk) == 2
    assert set(sb.compare(run, metric="f1", at_l0=[3]).to_dataframe()["architecture"]) == {"topk", "relu"}

    sae = sb.load_sae(f"runs/first/saes/{run.saes[-1]}")
    assert sae.encode(torch.zeros(2, 7, 16)).shape == (2, 7, 24)
    weights = {"W_enc": sae.W_dec.T, "W_dec": sae.W_dec, "b_enc": torch.zeros(24), "b_dec": sae.b_dec}
    mine = sb.SAE.of_weights("topk", weights, k=3)
    measured = sb.evaluate(mine, model="synthetic:toy.toml", eval_tokens=1000, context_size=257, tasks="ground_truth")
    assert measured.to_dataframe().query("metric == 'mcc'")["value"].item() > 0.3

    wrong = [
        (lambda: sae.encode(torch.zeros(2, 7)), "the last dimension of [2, 7] must be d_in = 16"),
        (lambda: sb.run(**here, widht=24), 'unknown setting "widht" (did you mean "width"?'),
        (lambda: sb.load_run("runs/frist"), "runs/frist"),
        (lambda: sb.load_sae("runs/first"), "holds 4 SAEs"),
    ]
    for call, says in wrong:
        with pytest.raises(sb.UserError, match=re.escape(says)):
            call()
