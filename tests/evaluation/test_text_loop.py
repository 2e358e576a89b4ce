"""Tasks that bring text of their own: what is captured of it, who shares it, and what becomes of a run with one."""

import pytest
import torch
from command import bench, flags
from tiny import FAMILIES, tiny_tokenizer

import sae_bench.evaluation.text_loop as text_loop
from sae_bench import ARCHITECTURES, TASKS, Metric, OwnText, Passages, Result, SAEConfig, Score, TextSettings, TextTask
from sae_bench.evaluation.loop import Candidate
from sae_bench.evaluation.task import default_tasks
from sae_bench.evaluation.text_loop import measure_texts, positions_of
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import find_site
from sae_bench.progress import Progress
from sae_bench.records.schema import read_record
from sae_bench.registry import load_plugin
from sae_bench.testing import check_task

QUIET = Progress(quiet=True)

PLUGIN = '''
"""The norm of what is decoded at the ends of two texts."""
from pathlib import Path
from sae_bench import *

class Ends(OwnText):
    calls = []

    def __init__(self, words):
        self.words = words

    @property
    def identity(self):
        return {"words": self.words}

    def describe(self):
        return f"the ends of {self.words}"

    def passages(self, tokenizer, max_context):
        ids = tokenizer(self.words, add_special_tokens=False)["input_ids"]
        yield Passages([[tokenizer.bos_token_id, *ids], [tokenizer.bos_token_id, *ids[:2]]])

    def of_site(self, passages, x):
        Ends.calls.append(x)
        return len(x)

@register_task("ends")
class AtEnds(TextTask):
    version = "1"
    metrics = (Metric("norm_at_ends", None, "", "norm"),)

    @classmethod
    def read(cls, settings):
        from sae_bench.errors import UserError
        file = Path("words.txt")
        if not file.exists():
            raise UserError("words.txt: no such file; write some words into it")
        return Ends(file.read_text())

    def update(self, passages, x, sae, of_site):
        self.n = of_site
        self.on = float(sae.decode(sae.encode(x)).norm())

    def finish(self):
        return Result({"norm_at_ends": Score(self.on / self.n, None, self.n)})
'''


@pytest.fixture(scope="module")
def lm():
    return LanguageModel(FAMILIES["gemma2"](), tiny_tokenizer("gemma2"), "gemma2")


@pytest.fixture
def passages():
    draw = torch.Generator().manual_seed(0)
    lengths = [9, 3, 20, 1, 5, 5, 14]
    contexts = [[2, *torch.randint(4, 200, (n,), generator=draw).tolist()] for n in lengths]
    return Passages(contexts, [[1], [3, 1], [20], [], [5, 4, 3], [1], [14, 0]])


class Plain(OwnText):
    """Passages as they are given, and a note of every x."""

    def __init__(self, *passages: Passages) -> None:
        self.given, self.seen = passages, []
        self.identity_ = {"plain": "1"}

    @property
    def identity(self):
        return self.identity_

    def describe(self):
        return "plain"

    def passages(self, tokenizer, max_context):
        return iter(self.given)

    def of_site(self, passages, x):
        self.seen.append(x)
        return len(self.seen)


class Sums(TextTask):
    """The sum of what it is fed."""

    version = "1"
    metrics = (Metric("sum", None, "", "sum of x"),)
    total, shared = 0.0, ()

    @classmethod
    def read(cls, settings: TextSettings) -> OwnText:
        return Plain(Passages([[257, 40, 41], [257, 50]]))

    def update(self, passages, x, sae, of_site):
        self.total += float(x.double().sum())
        self.shared = (*self.shared, of_site)

    def finish(self):
        return Result({"sum": Score(self.total, None, 1)})


def sae_of(d_in):
    return ARCHITECTURES["relu"](SAEConfig(d_in=d_in, d_sae=8, l0=2))


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox"])
def test_what_is_captured_is_that_of_each_context_run_alone(family, passages, monkeypatch):
    lm = LanguageModel(FAMILIES[family](), tiny_tokenizer(family), family)
    sites = [find_site(lm.model, "resid_post", 1), find_site(lm.model, "attn_out", 2)]
    sizes = []
    capture = LanguageModel.capture

    def counted(self, tokens, *rest, **options):
        sizes.append(len(tokens))
        return capture(self, tokens, *rest, **options)

    monkeypatch.setattr(LanguageModel, "capture", counted)
    found = positions_of(lm, passages, sites)
    assert sizes == [7]  # filled up, in one pass
    for site in sites:
        alone = [
            capture(lm, torch.tensor([context]), [site])[site][0, at]
            for context, wanted in zip(passages.contexts, passages.positions, strict=True)
            for at in wanted
        ]
        torch.testing.assert_close(found[site], torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_the_last_position_of_each_context_is_wanted_unless_others_are_said(lm, passages):
    site = find_site(lm.model, "resid_post", 1)
    last = [[len(context) - 1] for context in passages.contexts]
    assert torch.equal(
        positions_of(lm, Passages(passages.contexts), [site])[site],
        positions_of(lm, Passages(passages.contexts, last), [site])[site],
    )


def test_all_saes_of_a_site_share_one_capture_and_a_site_that_does_not_fit_has_a_pass_of_its_own(
    lm, passages, monkeypatch
):
    sites = [find_site(lm.model, "resid_post", 1), find_site(lm.model, "attn_out", 2)]
    found = {}
    for held in (1 << 30, 1):
        monkeypatch.setattr(text_loop, "HELD_BYTES", held)
        text = Plain(passages, Passages(passages.contexts[:2]))
        candidates = [Candidate(sae_of(site.d_in), site, {"sums": Sums(text)}) for site in sites for _ in range(3)]
        measure_texts(lm, {"sums": text}, candidates, QUIET)
        assert len(text.seen) == 2 * len(sites)  # objects of passages times sites, however many SAEs
        found[held] = [candidate.results["sums"].scores["sum"].value for candidate in candidates]
        order = [1, 3, 2, 4] if held > 1 else [1, 2, 3, 4]
        assert [candidates[0].tasks["sums"].shared, candidates[3].tasks["sums"].shared] == [
            (order[0], order[1]),
            (order[2], order[3]),
        ]
    assert found[1] == found[1 << 30]
    assert found[1][:3] == [found[1][0]] * 3


def test_a_task_that_raises_fails_alone_and_a_text_that_raises_fails_all_of_its_tasks(lm, passages):
    class Broken(Sums):
        def update(self, passages, x, sae, of_site):
            raise RuntimeError("no")

    class NoText(Plain):
        def passages(self, tokenizer, max_context):
            raise ValueError("no words")

    site = find_site(lm.model, "resid_post", 1)
    text, none = Plain(passages), NoText()
    candidates = [
        Candidate(sae_of(site.d_in), site, {"sums": Sums(text), "other": Sums(none)}),
        Candidate(sae_of(site.d_in), site, {"sums": Broken(text), "other": Sums(none)}),
    ]
    measure_texts(lm, {"sums": text, "other": none}, candidates, QUIET)
    assert [set(candidate.results) for candidate in candidates] == [{"sums"}, set()]
    assert candidates[0].failures == {"other": "ValueError: no words"}
    assert candidates[1].failures == {"sums": "RuntimeError: no", "other": "ValueError: no words"}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends.py").write_text(PLUGIN)
    (tmp_path / "words.txt").write_text("the river came down")
    yield tmp_path / "ends.py"
    TASKS._classes.pop("ends", None)


def test_a_plugin_with_text_passes_the_contract_and_is_run_on_request_alone(plugin):
    load_plugin(str(plugin))
    check_task("ends")
    assert "ends" in TASKS
    assert "ends" not in default_tasks()


BROKEN = {
    "yields nothing": {"passages": lambda self, tokenizer, max_context: iter(())},
    "begins with 40": {"passages": lambda self, tokenizer, max_context: iter([Passages([[40, 41]])])},
    "count from 0": {"passages": lambda self, tokenizer, max_context: iter([Passages([[0, 41]], [[-1]])])},
    "of at most 64": {"passages": lambda self, tokenizer, max_context: iter([Passages([[0] * 65])])},
    "no hash|identity is empty": {"identity": property(lambda self: {})},
    "another identity": {"identity": property(lambda self: {"at": str(id(self))})},
}


@pytest.mark.parametrize(("message", "change"), BROKEN.items(), ids=list(BROKEN))
def test_a_broken_text_is_told_what_is_wrong(message, change):
    text = type("Text", (Plain,), {"passages": lambda *_: iter([Passages([[0, 5], [0, 7, 8]])])} | change)
    kept = []

    def read(cls, settings):
        kept.append(text())  # so that no two have one id
        return kept[-1]

    TASKS.register("under_test")(type("Task", (Sums,), {"read": classmethod(read)}))
    try:
        with pytest.raises(AssertionError, match=message):
            check_task("under_test")
    finally:
        TASKS._classes.pop("under_test")


def test_a_run_has_a_record_for_each_sae_and_makes_it_again_for_other_text(
    plugin, gemma2_folder, corpus, at_work, tmp_path, capsys
):
    settings = {
        "--arch": ("topk", "relu"), "--l0": 6, "--model": gemma2_folder, "--layer": 1, "--dataset": corpus,
        "--width": 48, "--tokens": 1200, "--reuse": 2, "--batch-size": 120, "--eval-tokens": 300,
        "--context-size": 32, "--plugin": plugin, "--tasks": ("reconstruction", "ends"), "--out": tmp_path / "run",
    }  # fmt: skip
    (tmp_path / "words.txt").rename(tmp_path / "hidden")
    assert bench(*flags(settings), "--quiet") == 2
    assert "words.txt: no such file; write some words into it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    (tmp_path / "hidden").rename(tmp_path / "words.txt")
    assert bench(*flags(settings), "--dry-run") == 0
    assert "ends: the ends of the river came down" in capsys.readouterr().out

    def run():
        assert bench(*flags(settings), "--quiet") == 0
        paths = sorted((tmp_path / "run" / "records").glob("*.ends.json"))
        return {path.name: (path.stat().st_mtime_ns, read_record(path)) for path in paths}

    first, second = run(), run()
    assert len(first) == 2
    assert [time for time, _ in first.values()] == [time for time, _ in second.values()]
    for _, record in first.values():
        assert (record.measured_on, record.comparable) == ("texts", {"words": "the river came down"})
        assert (record.failure, record.scores["norm_at_ends"].n) == (None, 2)
    (tmp_path / "words.txt").write_text("a boy sat on the wall")
    third = run()
    assert {record.comparable["words"] for _, record in third.values()} == {"a boy sat on the wall"}
