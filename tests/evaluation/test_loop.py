"""The evaluation pass: autoencoders whose scores are known before they are measured, and a plain second computation."""

import pytest
import torch
from command import write_corpus
from tiny import FAMILIES, tiny_tokenizer
from torch.nn import functional

import sae_bench.evaluation.loop
from sae_bench import TASKS, SAEConfig, SparseAutoencoder
from sae_bench.evaluation.loop import Candidate, evaluate
from sae_bench.evaluation.task import token_tasks
from sae_bench.lm.hooks import intercept
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import find_site
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress

QUIET = Progress(quiet=True)
N_TOKENS = 500


class Known(SparseAutoencoder):
    """x_hat = c x + shift, with two of four latents active: its scores can be worked out by hand."""

    def __init__(self, d_in: int, c: float = 1.0, shift: torch.Tensor | float = 0.0) -> None:
        super().__init__(SAEConfig(d_in=d_in, d_sae=4, l0=2))
        self.c, self.shift, self.folded = c, shift, True

    def encode(self, x):
        self.x = x
        return torch.tensor([1.0, 0.0, 2.0, 0.0]).expand(len(x), -1)

    def decode(self, f):
        return self.c * self.x + self.shift

    def loss(self, x, step):
        raise NotImplementedError


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory, at_work):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module", params=["gemma2", "gpt_neox"])
def lm(request):
    return LanguageModel(FAMILIES[request.param](), tiny_tokenizer(request.param), request.param)


@pytest.fixture(scope="module", params=["resid_post", "mlp_out", "attn_out"])
def site(request, lm):
    return find_site(lm.model, request.param, 1)


@pytest.fixture
def stream(lm, corpus_path):
    return stream_of(lm, corpus_path)


def stream_of(lm, corpus_path):
    return TokenStream(
        str(corpus_path), lm.tokenizer, split="eval", context_size=32, n_tokens=N_TOKENS, order_seed=0, max_context=128
    )


def scores_of(lm, stream, site, *saes):
    tasks = token_tasks(TASKS)
    candidates = [Candidate(sae, site, {name: task() for name, task in tasks.items()}) for sae in saes]
    evaluate(lm, stream, candidates, QUIET)
    return [
        {name: score for result in candidate.results.values() for name, score in result.scores.items()}
        for candidate in candidates
    ]


def mean_of(lm, stream, site):
    """Mean activation over all tokens but the BOS of each context."""
    rows = [lm.capture(batch.tokens, [site])[site][:, 1:].flatten(0, 1) for batch in stream.batches(4)]
    return torch.cat(rows).double().mean(0).float()


def test_an_identity_costs_exactly_nothing(lm, site, stream):
    (scores,) = scores_of(lm, stream, site, Known(site.d_in))
    assert scores["delta_lm_loss"].value == 0
    assert scores["kl"].value == 0
    assert scores["loss_recovered"].value == scores["loss_recovered_mean"].value == 1
    assert (scores["fve"].value, scores["fvu"].value) == (1, 0)
    assert scores["gamma"].value == pytest.approx(1, abs=1e-12)
    assert scores["gamma_centred"].value == pytest.approx(1, abs=1e-12)
    assert scores["cosine"].value == pytest.approx(1, abs=1e-12)
    assert scores["l2_ratio"].value == 1
    assert scores["ce_clean"].value == scores["ce_spliced"].value > 0


def test_a_zero_sae_recovers_nothing(lm, site, stream):
    (scores,) = scores_of(lm, stream, site, Known(site.d_in, c=0.0))
    assert scores["loss_recovered"].value == 0
    assert scores["ce_spliced"].value == scores["ce_zero"].value != scores["ce_clean"].value
    assert scores["delta_lm_loss"].value == pytest.approx(scores["ce_zero"].value - scores["ce_clean"].value, abs=1e-6)
    assert scores["fvu"].value > 1
    assert scores["gamma"].value is None, "0 / 0 is undefined, not a number"
    assert "undefined" in scores["gamma"].note


def test_predicting_the_mean_explains_no_variance(lm, site, stream):
    mean = mean_of(lm, stream, site)
    (scores,) = scores_of(lm, stream, site, Known(site.d_in, c=0.0, shift=mean))
    assert scores["fvu"].value == pytest.approx(1, abs=1e-6)
    assert scores["fve"].value == pytest.approx(0, abs=1e-6)
    assert scores["loss_recovered_mean"].value == pytest.approx(0, abs=1e-5)
    assert scores["ce_spliced"].value == pytest.approx(scores["ce_mean"].value, abs=1e-6)
    assert scores["explained_variance_legacy"].value < 0.01


def test_shrinkage_by_c_gives_gamma_c_and_a_constant_is_not_free(lm, site, stream):
    shrunk, shifted = scores_of(lm, stream, site, Known(site.d_in, c=0.7), Known(site.d_in, shift=3.0))
    assert shrunk["gamma"].value == pytest.approx(0.7, rel=1e-6)
    assert shrunk["l2_ratio"].value == pytest.approx(0.7, rel=1e-6)
    assert shrunk["cosine"].value == pytest.approx(1, abs=1e-6)
    assert shifted["fvu"].value > 0.1


def test_shrinkage_towards_the_mean_by_c_gives_gamma_centred_c(lm, site, stream):
    mean = mean_of(lm, stream, site)
    (shrunk,) = scores_of(lm, stream, site, Known(site.d_in, c=0.7, shift=0.3 * mean))
    assert shrunk["gamma_centred"].value == pytest.approx(0.7, rel=1e-4)
    assert shrunk["cosine_centred"].value == pytest.approx(1, abs=1e-6)


def test_latents_are_counted_on_every_counted_token(lm, site, stream):
    (scores,) = scores_of(lm, stream, site, Known(site.d_in))
    n = stream.n_contexts * 31  # whole contexts, their BOS not counted
    assert scores["l0"].value == 2
    assert scores["l0"].n == scores["dead_share"].n == n > N_TOKENS
    assert scores["kl"].n == stream.n_contexts * 30  # the first word is predicted from the BOS: not counted
    assert scores["dead_share"].value == 0.5
    assert scores["dense_10pct_share"].value == 0.5


def same(one, other, rel):
    """Two values up to rounding; a value that cannot be had is the same as another."""
    return one is other is None or one == pytest.approx(other, rel=rel, abs=1e-6)


def test_results_do_not_depend_on_the_batch_size(lm, corpus_path, monkeypatch):
    site = find_site(lm.model, "resid_post", 1)
    noise = torch.randn(site.d_in, generator=torch.Generator().manual_seed(3))
    found = []
    for size in (1, 5, 16):  # 17 contexts: neither divides
        monkeypatch.setattr(sae_bench.evaluation.loop, "MAX_CONTEXTS", size)
        (scores,) = scores_of(lm, stream_of(lm, corpus_path), site, Known(site.d_in, c=0.9, shift=noise))
        found.append(scores)
    for scores in found[1:]:
        for name, score in scores.items():
            assert score.n == found[0][name].n
            assert same(score.value, found[0][name].value, rel=1e-5), name
            assert same(score.stderr, found[0][name].stderr, rel=1e-3), name


def test_company_does_not_change_a_result(lm, site, corpus_path):
    sae = Known(site.d_in, c=0.9, shift=0.5)
    (alone,) = scores_of(lm, stream_of(lm, corpus_path), site, sae)
    _, together, _ = scores_of(lm, stream_of(lm, corpus_path), site, Known(site.d_in), sae, Known(site.d_in, c=0.1))
    assert together == alone


def test_special_positions_keep_the_clean_activation(lm, site, stream, monkeypatch):
    """Every replay is given the clean activation at the BOS, whose id is 0 in one of the families."""
    assert lm.tokenizer.bos_token_id == {"gemma2": 2, "gpt_neox": 0}[lm.name]
    replayed = []
    replay = sae_bench.evaluation.loop.CleanPass.replay

    def watched(self, site, x_new):
        bos = self.tokens == lm.tokenizer.bos_token_id
        assert bos[:, 0].all()
        assert bos.sum() == len(bos)
        assert torch.equal(x_new[bos], self.activations[site][bos])
        replayed.append(bool((x_new[~bos] != self.activations[site][~bos]).any()))
        return replay(self, site, x_new)

    lm.clean_pass(next(stream.batches(2)).tokens, [site])  # the check that a replay is exact is behind us
    monkeypatch.setattr(sae_bench.evaluation.loop.CleanPass, "replay", watched)
    scores_of(lm, stream, site, Known(site.d_in, c=0.5))
    assert replayed
    assert all(replayed)


def plain_losses(lm, stream, site, change):
    """Cross-entropies and KL from whole logits in float64, the site's output replaced by a hook in a whole pass."""
    clean_ce, ce, kl = [], [], []
    for batch in stream.batches(3):
        bos = batch.tokens == lm.tokenizer.bos_token_id

        def splice(x, bos=bos):
            return torch.where(bos[..., None], x, change(x))

        clean = lm.model(batch.tokens).logits.double()
        with intercept(lm.model.get_submodule(site.path), site.side, splice):
            spliced = lm.model(batch.tokens).logits.double()
        for row in range(len(batch.tokens)):
            targets = batch.tokens[row, 2:]
            before, after = clean[row, 1:-1], spliced[row, 1:-1]
            clean_ce.append(functional.cross_entropy(before, targets, reduction="none"))
            ce.append(functional.cross_entropy(after, targets, reduction="none"))
            kl.append((before.softmax(1) * (before.log_softmax(1) - after.log_softmax(1))).sum(1))
    return tuple(float(torch.cat(values).mean()) for values in (clean_ce, ce, kl))


@torch.no_grad()
def test_losses_are_those_of_a_plain_implementation(lm, site, stream):
    mean = mean_of(lm, stream, site)
    (scores,) = scores_of(lm, stream, site, Known(site.d_in, c=0.8, shift=0.3))
    clean, spliced, kl = plain_losses(lm, stream, site, lambda x: 0.8 * x + 0.3)
    _, zero, _ = plain_losses(lm, stream, site, torch.zeros_like)
    _, ablated, _ = plain_losses(lm, stream, site, lambda x: mean.expand_as(x))
    measured = {name: scores[name].value for name in ("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "kl")}
    expected = {"ce_clean": clean, "ce_spliced": spliced, "ce_zero": zero, "ce_mean": ablated, "kl": kl}
    assert kl > 1e-3
    assert measured == pytest.approx(expected, rel=2e-5, abs=1e-6)
    assert scores["delta_lm_loss"].value == pytest.approx(spliced - clean, abs=1e-5)
    assert scores["loss_recovered"].value == pytest.approx(1 - (spliced - clean) / (zero - clean), abs=1e-4)
    assert scores["loss_recovered_mean"].value == pytest.approx(1 - (spliced - clean) / (ablated - clean), abs=1e-3)


def test_working_through_saes_in_groups_changes_nothing(lm, site, stream, monkeypatch):
    saes = [Known(site.d_in, c=c) for c in (0.5, 0.7, 0.9)]
    together = scores_of(lm, stream, site, *saes)
    monkeypatch.setattr(sae_bench.evaluation.loop, "BATCH_BYTES", 1)  # one context and one SAE at a time
    apart = scores_of(lm, stream, site, *saes)
    for one, other in zip(together, apart, strict=True):
        for name in one:
            assert same(other[name].value, one[name].value, rel=1e-5), name


@pytest.mark.parametrize(("task", "at_once"), [("delta_lm_loss", [3]), ("reconstruction", [1, 1, 1])])
def test_what_an_sae_answers_is_held_for_the_losses_alone(lm, site, corpus_path, monkeypatch, task, at_once):
    """Several SAEs share a pass over the vocabulary; where no task asks for losses there is none to wait for."""
    scored, score = [], sae_bench.evaluation.loop._score
    monkeypatch.setattr(
        sae_bench.evaluation.loop, "_score", lambda replies, *rest: scored.append(len(replies)) or score(replies, *rest)
    )
    stream = stream_of(lm, corpus_path)
    candidates = [Candidate(Known(site.d_in, c=c), site, {task: TASKS[task]()}) for c in (0.5, 0.7, 0.9)]
    evaluate(lm, stream, candidates, QUIET)
    n_batches = len(scored) // len(at_once)
    assert n_batches > 0
    assert scored == at_once * n_batches
