"""The harness from Python: the same records as the command line's, and SAEs on tensors of any leading shape."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import bench, flags, write_corpus
from test_end_to_end import records_of, weights_of, without_times

import sae_bench as sb


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    return {
        "arch": ["topk", "relu"], "l0": 6, "seed": (0, 1), "model": gemma2_folder, "layer": 1, "dataset": corpus,
        "width": 48, "tokens": 1500, "reuse": 2, "batch_size": 100, "eval_tokens": 600, "context_size": 32,
        "tasks": ["reconstruction", "delta_lm_loss"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(settings, at_work):
    return sb.run(out=at_work / "run", **settings)


NAME = "topk.layer_1.resid_post.w48.l0_6.seed0"


def test_a_run_is_that_of_the_command_line(settings, run, tmp_path):
    as_flags = {f"--{k.replace('_', '-')}": tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    assert bench(*flags(as_flags | {"--out": tmp_path / "run"}), "--quiet") == 0
    assert weights_of(run.path) == weights_of(tmp_path / "run")
    own, other = ({k: without_times(r) for k, r in records_of(of).items()} for of in (run.path, tmp_path / "run"))
    assert own == other
    assert NAME in run.saes
    assert run.failures == {}
    assert repr(run).endswith("4 SAEs, 8 records")


def test_records_are_a_table(run):
    table = run.to_dataframe()
    assert {"sae", "architecture", "metric", "value", "stderr", "n"} <= set(table.columns)
    assert len(table.query(f"sae == '{NAME}' and metric == 'fve'")) == 1
    assert sb.load_run(run.path).to_dataframe().equals(table)
    assert "topk" in run.table()
    assert run.table(columns=["fve"], over_seeds=True).count("\n") > 3


@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 2, 5), (), (0,)])
def test_an_sae_takes_tensors_of_any_leading_shape(run, shape):
    sae = run.sae(NAME)
    x = torch.randn(*shape, sae.d_in, dtype=torch.bfloat16 if len(shape) == 2 else torch.float32)
    f = sae.encode(x)
    assert (f.shape, f.dtype) == ((*shape, 48), torch.float32)
    assert ((f != 0).sum(-1) <= 6).all()
    expected = f @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(sae.decode(f), expected)
    torch.testing.assert_close(sae(x), expected)
    assert not f.requires_grad
    assert sae.encode(x, sparse=True).to_dense().view(f.shape).equal(f)


def test_an_sae_of_another_width_is_refused(run):
    with pytest.raises(sb.UserError, match=r"the last dimension of \[2, 3\] must be d_in = "):
        run.sae(NAME).encode(torch.zeros(2, 3))


def test_an_sae_knows_where_it_reads(run):
    sae = sb.load_sae(str(run.path / "saes" / NAME))
    assert (sae.arch, sae.layer, sae.site, sae.d_sae) == ("topk", 1, "resid_post", 48)
    assert "topk" in repr(sae)


def test_training_alone_leaves_the_same_weights_and_evaluation_to_be_done(settings, run, tmp_path):
    saes = sb.train(out=tmp_path / "run", **settings)
    assert weights_of(tmp_path / "run") == weights_of(run.path)
    assert not list((tmp_path / "run" / "records").glob("*"))
    assert saes[NAME].W_dec.equal(run.sae(NAME).W_dec)
    later = sb.run(out=tmp_path / "run", **settings)
    assert later.to_dataframe()["value"].equals(run.to_dataframe()["value"])


def values(run, **of):
    table = run.to_dataframe()
    for column, value in of.items():
        table = table[table[column] == value]
    return dict(zip(table["metric"], table["value"], strict=True))


def test_an_sae_from_a_file_or_from_memory_scores_what_it_scored_in_its_run(settings, run):
    here = {key: settings[key] for key in ("model", "dataset", "eval_tokens", "context_size", "tasks")}
    expected = values(run, sae=NAME)
    assert values(sb.evaluate(run.path / "saes" / NAME, **here)) == expected
    in_memory = values(sb.evaluate(run.sae(NAME), **here))
    assert in_memory == pytest.approx(expected, rel=1e-5)
    mine = sb.SAE.of_weights("topk", run.sae(NAME).autoencoder.stored(), k=6)
    with pytest.raises(sb.UserError, match="does not say its layer"):
        sb.evaluate(mine, **here)
    assert values(sb.evaluate(mine, layer=1, site="resid_post", **here)) == in_memory


def test_an_sae_in_memory_is_called_by_what_it_is(settings, run, tmp_path):
    here = {key: settings[key] for key in ("model", "dataset", "eval_tokens", "context_size", "tasks")}
    first, again = (sb.evaluate(run.sae(NAME), out=tmp_path / "one", **here) for _ in range(2))
    assert again.records == first.records  # the same call has nothing to do
    source = first.records[0].sae.origin.source
    assert re.fullmatch("memory:[0-9a-f]{16}", source)
    with pytest.raises(sb.UserError, match=f"has --sae {source}, which cannot be had any more"):
        sb.evaluate(run.sae(NAME.replace("seed0", "seed1")), out=tmp_path / "one", **here)
    with pytest.raises(sb.UserError, match="was in the memory of a program"):
        sb.load_sae(source)
    with pytest.raises(sb.UserError, match="leave out on"):
        sb.evaluate(run.sae(NAME), on="ray", **here)


def test_weights_of_ones_own_are_an_sae():
    W_dec = torch.eye(4)[:3]
    weights = {"W_enc": W_dec.T.clone(), "W_dec": W_dec, "b_enc": -torch.ones(3), "b_dec": torch.zeros(4)}
    sae = sb.SAE.of_weights("relu", weights)
    assert sae.encode(torch.tensor([3.0, 1.0, 0.5, 9.0])).tolist() == [2, 0, 0]
    gate = sb.SAE.of_weights("jumprelu", {**weights, "b_enc": torch.zeros(3), "threshold": torch.full((3,), 0.7)})
    assert gate.encode(torch.tensor([3.0, 1.0, 0.5, 9.0])).tolist() == [3, 1, 0]
    with pytest.raises(sb.UserError, match="these are not the tensors of a relu SAE"):
        sb.SAE.of_weights("relu", {"W_dec": W_dec, "W_enc": W_dec.T})
    with pytest.raises(sb.UserError, match="unknown architecture"):
        sb.SAE.of_weights("rellu", weights)


def test_runs_are_compared(run):
    compared = sb.compare(run, metric="fve", at_l0=[6])
    table = compared.to_dataframe()
    assert set(table["architecture"]) == {"relu", "topk"}
    assert "fve" in str(compared)
    with pytest.raises(sb.UserError, match="needs a run"):
        sb.compare()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"archs_": "topk"}, 'unknown setting "archs_" (did you mean "arch'),
        ({"arch": "topkk"}, 'unknown architecture "topkk" (did you mean "topk"'),
        ({"l0": -1}, "l0: "),
        ({"archs": ["relu"]}, 'are one setting: give it once'),
        ({"model": "demmo"}, 'did you mean "demo"?'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(settings, tmp_path, wrong, says):
    with pytest.raises(sb.UserError) as error:
        sb.run(out=tmp_path / "run", **(settings | wrong))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_run_and_several_saes_are_refused(run, tmp_path):
    with pytest.raises(sb.UserError, match="holds no records"):
        sb.load_run(tmp_path)
    with pytest.raises(sb.UserError, match="holds 4 SAEs"):
        sb.load_sae(run.path)
    with pytest.raises(sb.UserError, match='has no SAE "topk"'):
        run.sae("topk")


def test_the_page_of_the_docs_runs(settings, tmp_path, monkeypatch):
    """Its code, one block after the other, with a tiny model in the place of the demo model."""
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    first, *blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    tiny = {name: settings[name] for name in ("model", "layer", "width", "tokens", "batch_size", "context_size")}
    corpus = write_corpus(tmp_path / "corpus.jsonl", 1200)  # a fifth of it is for tuning
    names = {"sb": sb, "here": tiny | {"dataset": corpus, "eval_tokens": 600}}
    assert first.splitlines()[0] == "import sae_bench as sb"
    text = (
        "\n".join(blocks).replace("l0=[16, 32]", "l0=[4, 8]").replace("l0=32", "l0=6").replace("eval_tokens=4096", DATA)
    )
    exec(compile(text.replace("at_l0=[20]", "at_l0=[5]").replace("k=16", "k=6"), "api.md", "exec"), names)
    assert list(names["fve"].index) == ["jumprelu", "topk"]
    assert len(names["intervals"]) > 0
    assert names["x_hat"].shape == (2, 7, names["sae"].d_in)
    assert list(names["saes"]) == ["topk.layer_1.resid_post.w48.l0_6.seed0"]
    assert set(names["worth"]["architecture"]) == {"jumprelu", "topk"}
    assert set(names["board"].to_dataframe()["architecture"]) == {"jumprelu", "topk"}
    assert set(names["files"].to_dataframe()["architecture"]) == {"topk"}


DATA = 'eval_tokens=600, context_size=32, dataset=here["dataset"]'


def test_the_package_is_a_command():
    done = subprocess.run([sys.executable, "-m", "sae_bench", "ls", "archs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "jumprelu" in done.stdout
