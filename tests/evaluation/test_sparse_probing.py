"""Sparse probing: dictionaries whose probes are known beforehand, what must change nothing, and labelled sets."""

import importlib.util
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import bench, flags, write_labelled

from sae_bench import SAEConfig, SparseAutoencoder, TextSettings
from sae_bench.errors import UserError
from sae_bench.evaluation.task import Passages
from sae_bench.probing.probe import Split, fit_probe
from sae_bench.probing.sets import SHORT, SMALL, ProbeSet, own_set, package_sets
from sae_bench.probing.sparse import ranked_latents, standardised
from sae_bench.probing.texts import LabelledPassages, ProbeTexts
from sae_bench.records.schema import read_record
from sae_bench.registry import TASKS
from sae_bench.testing import check_task

N = 400


class Given(SparseAutoencoder):
    """Its latents are what a matrix makes of x: none is left to chance."""

    def __init__(self, W: torch.Tensor, top: int | None = None) -> None:
        super().__init__(SAEConfig(d_in=W.shape[0], d_sae=W.shape[1], l0=2))
        self.W, self.top, self.folded = W, top, True

    def encode(self, x):
        z = x @ self.W
        if self.top is None:
            return torch.relu(z)
        value, latent = z.topk(self.top, dim=1)
        return torch.zeros_like(z).scatter(1, latent, value.relu())

    def loss(self, x, step):
        raise NotImplementedError


@pytest.fixture(scope="module")
def passages():
    labels = np.arange(N) % 2
    one = ProbeSet("one", [f"text {i}" for i in range(N)], labels, "0" * 64)
    return LabelledPassages([[0, 1]] * N, set=one, split=Split.of(labels))


@pytest.fixture(scope="module")
def x(passages):
    """Coordinate 0 is the label, coordinate 1 its opposite with noise, the others are noise; column means are not 0."""
    draw = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(N, 12, generator=draw)
    labels = torch.from_numpy(passages.set.labels).float()
    x[:, 0] = labels
    x[:, 1] = 1 - labels + 0.7 * torch.randn(N, generator=draw)
    return x


def measured(passages, x, sae):
    task = TASKS["sparse_probing"](ProbeTexts([passages.set]))
    task.update(passages, x, sae, passages.dense_probe(x))
    result = task.finish().checked()
    return {name: score.value for name, score in result.scores.items()}, result.details["sets"]["one"]


def test_a_latent_that_is_the_label_has_an_auc_of_1_alone(passages, x):
    W = torch.eye(12)[:, torch.arange(12).roll(5)]  # the label's latent is number 5
    W[:, 5] *= 7.0
    scores, details = measured(passages, x, Given(W))
    assert details["latents"][0] == 5
    assert [scores[f"{what}_k1"] for what in ("auc", "accuracy", "f1")] == [1.0, 1.0, 1.0]
    assert [scores[f"auc_{of}"] for of in ("k2", "k5", "k16", "dense")] == [1.0] * 4


def test_the_best_latent_may_be_one_that_is_off_where_the_label_is_1(passages, x):
    scores, details = measured(passages, x, Given(torch.eye(12)[:, 1:]))
    assert details["latents"][0] == 0
    assert 0.65 < scores["auc_k1"] < 1.0  # cut at 0, the opposite loses some of what noise leaves


def test_latents_of_noise_have_an_auc_of_about_a_half(passages, x):
    scores, _ = measured(passages, x[:, 2:].clone(), Given(torch.eye(10)))
    for name in ("auc_k1", "auc_k5", "auc_k16", "auc_dense"):
        assert abs(scores[name] - 0.5) < 0.15, name  # 99 test texts: its standard deviation is .06


def test_labels_that_are_shuffled_are_not_found(x):
    aucs = []
    for seed in range(8):
        labels = np.random.default_rng(seed).permutation(np.arange(N) % 2)
        some = LabelledPassages([[0, 1]] * N, set=ProbeSet("one", ["a"] * N, labels, ""), split=Split.of(labels))
        aucs.append(measured(some, x, Given(torch.eye(12)))[0]["auc_k5"])
    assert abs(np.mean(aucs) - 0.5) < 0.05


def test_neither_order_nor_scale_of_latents_changes_anything(passages, x):
    draw = torch.Generator().manual_seed(1)
    W = torch.randn(12, 40, generator=draw)
    order, scale = torch.randperm(40, generator=draw), 10 ** (4 * torch.rand(40, generator=draw) - 2)
    scores, details = measured(passages, x[:, 1:], Given(W[1:], top=9))
    permuted, of_permuted = measured(passages, x[:, 1:], Given(W[1:][:, order], top=9))
    assert scores == pytest.approx(permuted, abs=1e-6)
    assert [order[i] for i in of_permuted["latents"]] == details["latents"]
    plain, scaled = (measured(passages, x[:, 1:], Given(of)) for of in (W[1:], W[1:] * scale))
    assert plain[1]["latents"] == scaled[1]["latents"]
    assert plain[0] == pytest.approx(scaled[0], abs=1e-6)


def test_copies_of_a_latent_add_nothing(passages, x):
    W = torch.eye(12)[:, 1:]
    single, _ = measured(passages, x, Given(W[:, :1]))
    copies, details = measured(passages, x, Given(W[:, :1].expand(-1, 16)))
    assert len(set(details["latents"])) == 16
    assert copies["auc_k16"] == single["auc_k1"]


def test_latents_are_ranked_in_units_of_what_they_are_where_they_fire():
    """By hand: latent 0 fires on one text of each four, at 8 or 4; latent 1 on all, at 2 or 1; latent 2 never."""
    labels = np.arange(16) % 2
    f = torch.zeros(16, 3)
    f[:, 1] = torch.tensor([1.0, 2.0]).repeat(8)
    f[::8, 0], f[1::8, 0] = 4.0, 8.0
    split = Split(np.arange(16), np.arange(16))
    ranked = ranked_latents(Given(torch.eye(3)), f, labels, split, 3)
    # |difference| / mean of nonzero: latent 0 (2 * 8 - 2 * 4) / 8 / 6 = 1/6, latent 1 (2 - 1) / 1.5 = 2/3.
    assert ranked.latents.tolist() == [1, 0, 2]
    np.testing.assert_allclose(ranked.columns[:2], [[1 / 1.5, 4 / 6, 0], [2 / 1.5, 8 / 6, 0]])


def test_ranking_in_pieces_is_ranking_at_once(passages, x, monkeypatch):
    import sae_bench.probing.sparse as sparse

    sae = Given(torch.randn(12, 40, generator=torch.Generator().manual_seed(2)), top=5)
    whole = ranked_latents(sae, x, passages.set.labels, passages.split, 16)
    monkeypatch.setattr(sparse, "NUMBERS_AT_ONCE", 40 * 7)
    pieces = ranked_latents(sae, x, passages.set.labels, passages.split, 16)
    assert whole.latents.tolist() == pieces.latents.tolist()
    np.testing.assert_allclose(whole.columns, pieces.columns, rtol=1e-5)


def test_test_texts_teach_nothing(passages, x):
    """Whatever stands in the rows that a probe is tested on, it learns the same: ranking, scales and weights."""
    spoilt = x.clone()
    spoilt[torch.from_numpy(passages.split.test)] *= -50.0
    of = [ranked_latents(Given(torch.eye(12)), one, passages.set.labels, passages.split, 12) for one in (x, spoilt)]
    train = passages.split.train
    assert of[0].latents.tolist() == of[1].latents.tolist()
    np.testing.assert_array_equal(of[0].columns[train], of[1].columns[train])
    np.testing.assert_array_equal(standardised(x, passages.split)[train], standardised(spoilt, passages.split)[train])


@pytest.mark.parametrize(("n", "n_train", "n_test"), [(3000, 1024, 1975), (728, 628, 99), (60, 40, 19)])
def test_a_split_is_balanced_and_has_no_text_on_both_sides(n, n_train, n_test):
    split = Split.of(np.arange(n) % 2)
    assert (len(split.train), len(split.test)) == (n_train, n_test)
    assert not {*split.train} & {*split.test}
    assert (split.train % 2).mean() == 0.5
    assert abs((split.test % 2).sum() - n_test / 2) <= 0.5


def test_a_set_keeps_its_own_proportion():
    labels = (np.arange(1000) % 10 == 0).astype(int)
    split = Split.of(labels)
    assert labels[split.train].mean() == pytest.approx(0.1, abs=0.01)
    assert labels[split.test].mean() == pytest.approx(0.1, abs=0.01)
    assert fit_probe(labels[:, None] + 0.0, labels, split, "l1").auc == 1.0


def test_a_set_is_the_same_in_every_kind_of_file(tmp_path):
    sets = [own_set(str(write_labelled(tmp_path / f"mine{kind}"))) for kind in (".csv", ".jsonl", ".parquet")]
    for one in sets:
        assert (one.name, one.texts) == ("mine", sets[0].texts)
        assert one.labels.tolist() == [i % 2 for i in range(60)]  # "no" is 0
    assert len({one.sha256 for one in sets}) == 3


def test_bad_sets_are_told_what_is_wrong(tmp_path):
    bad = {
        "no.csv": (None, "no such file"),
        "notes.txt": ("a", "no such file of a kind among .csv"),
        "column.csv": ("words,label\na,1\n", 'no column "text" among: words, label'),
        "three.csv": ("text,label\n" + "a,1\nb,2\nc,3\n" * 12, "3 labels (1, 2, 3); a set has two"),
        "few.csv": ("text,label\n" + "a,1\n" * 30 + "b,2\n" * 5, '5 texts of label "2"; at least 12'),
        "gap.csv": ("text,label\na,1\n ,2\n", "row 2 has no text"),
        "empty.csv": ("", "cannot be read as csv"),
        "broken.jsonl": ("{", "cannot be read as jsonl"),
    }
    for name, (content, message) in bad.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(UserError) as caught:
            own_set(str(tmp_path / name))
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value)


def test_texts_and_labels_are_what_is_written(tmp_path):
    """Digits stay text, "NA" is a text and a label; what is no text is no text's name."""
    (tmp_path / "digits.csv").write_text("text,label\n" + "007,NA\nNA,01\n" * 20)
    rows = [{"text": "007", "label": "NA"}, {"text": "NA", "label": "01"}] * 20
    (tmp_path / "digits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for kind in (".csv", ".jsonl"):
        one = own_set(str(tmp_path / f"digits{kind}"))
        assert list(one.texts) == ["007", "NA"] * 20, kind
        assert one.labels.tolist() == [1, 0] * 20, kind
    for bad, said in (({"a": "x"}, "holds dict, not text"), (["x"], "holds list, not text"), (0.5, "holds float")):
        path = tmp_path / "bad.jsonl"
        path.write_text("\n".join(json.dumps({"text": bad, "label": i % 2}) for i in range(40)))
        with pytest.raises(UserError, match=f'row 1 of column "text" {said}'):
            own_set(str(path))
    columns = {"text": pa.array([b"\xb0bad"] * 40).view(pa.string()), "label": pa.array([0, 1] * 20)}
    pq.write_table(pa.table(columns), tmp_path / "bytes.parquet")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        own_set(str(tmp_path / "bytes.parquet"))
    path.write_text(json.dumps({"text": "x", "label": 0}) + "\nnull\n")
    with pytest.raises(UserError, match="cannot be read as jsonl"):
        own_set(str(path))


def test_texts_lose_their_beginning_where_they_are_too_long(tokenizer, tmp_path):
    (tmp_path / "long.csv").write_text("text,label\n" + "a b c d e f g h i j,1\n<eos>a,2\n" * 12)
    text = ProbeTexts([own_set(str(tmp_path / "long.csv"))])
    (passages,) = text.passages(tokenizer, 6)
    whole = tokenizer("a b c d e f g h i j", add_special_tokens=False)["input_ids"]
    assert list(passages.contexts[0]) == [tokenizer.bos_token_id, *whole[-5:]]
    assert list(passages.contexts[1]) == [
        tokenizer.bos_token_id,
        *tokenizer("a", add_special_tokens=False)["input_ids"],
    ]
    assert isinstance(passages, Passages)
    assert passages.wanted[0] == [5]


def test_the_contract_holds_and_two_sets_of_one_name_are_refused(tmp_path):
    file = write_labelled(tmp_path / "mine.csv")
    check_task("sparse_probing", probe_set=(str(file),))
    with pytest.raises(UserError, match="two sets are called"):
        ProbeTexts.chosen(TextSettings(probe_set=(str(file), str(file))))


def test_a_run_probes_a_users_set_and_a_changed_file_is_probed_again(gemma2_folder, corpus, at_work, tmp_path, capsys):
    file = write_labelled(tmp_path / "mine.csv")
    settings = {
        "--arch": ("topk", "random"), "--l0": 6, "--model": gemma2_folder, "--layer": 1, "--dataset": corpus,
        "--width": 48, "--tokens": 1200, "--reuse": 2, "--batch-size": 120, "--eval-tokens": 300,
        "--context-size": 32, "--tasks": ("reconstruction", "sparse_probing"), "--probe-set": file,
        "--out": tmp_path / "run",
    }  # fmt: skip
    assert bench(*flags(settings), "--dry-run") == 0
    assert "sparse_probing: 1 sets of 60 texts" in capsys.readouterr().out

    def records():
        assert bench(*flags(settings), "--quiet") == 0
        return {p.name: read_record(p) for p in (tmp_path / "run" / "records").glob("*.sparse_probing.json")}

    first = records()
    assert "auc_k1" in capsys.readouterr().out
    assert len(first) == 2
    assert len({record.scores["auc_dense"].value for record in first.values()}) == 1  # one probe for all SAEs
    write_labelled(file, n=64)
    for name, record in records().items():
        assert record.comparable != first[name].comparable
        assert record.details["sets"]["mine"]["n_train"] == 43


PACKAGE = importlib.util.find_spec("sae_probes") is not None
with_package = pytest.mark.skipif(
    not PACKAGE, reason="45 MB of labelled texts, under their sources' terms: pip install --no-deps sae-probes"
)


def test_without_the_package_it_is_said_how_to_have_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps sae-probes"):
        package_sets(["small"])
    with pytest.raises(UserError, match="scikit-learn"):
        ProbeTexts.chosen(TextSettings())


@with_package
def test_small_are_the_packages_20_smallest_sets_of_short_texts():
    sets = package_sets(["all"])
    assert len(sets) == 113
    assert all(one.labels.mean() == 0.5 for one in sets)
    short = [one for one in sets if np.mean([len(text) for text in one.texts]) <= SHORT]
    by_size = sorted(short, key=lambda one: (len(one.texts), int(one.name.partition("_")[0])))
    assert {one.name for one in by_size[:20]} == {*SMALL}
    with pytest.raises(UserError, match='did you mean "117_us_state_FL"'):
        package_sets(["117_us_state_F"])
