"""The evaluation pass on a fake CUDA device: it mixes no devices, and reads no number before the last batch."""

import pytest
import torch
from command import write_corpus
from fake_cuda import FakeCuda, fake_language_model
from test_loop import Known
from tiny import save_tiny

from sae_bench import TASKS
from sae_bench.evaluation import loop as evaluate
from sae_bench.evaluation.loop import Candidate
from sae_bench.evaluation.task import Result, token_tasks
from sae_bench.lm import ablations, contexts, passes
from sae_bench.lm.sites import find_site
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress


class OnDevice(Known):
    """Its latents stand where its input does."""

    def encode(self, x):
        self.x = x
        return torch.ones(len(x), 4, device=x.device)


ON_A_LANGUAGE_MODEL = [name for name, task in token_tasks(TASKS).items() if not task.needs_truth]


def unread(name):
    """A task that does everything but finish, where numbers are read at last."""
    return type(name, (TASKS[name],), {"finish": lambda self: Result({})})()


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "gpt2"])
def test_nothing_in_a_batch_waits_for_the_device(family, tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / family, family)
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    with FakeCuda() as cuda:
        lm = fake_language_model(folder)
        sites = [find_site(lm.model, kind, 1) for kind in ("resid_post", "mlp_out", "attn_out")]
        lm._replayable |= dict.fromkeys(sites, True)  # tried out once, at the first batch
        with torch.device("cuda"):
            saes = [OnDevice(site.d_in) for site in sites]
        stream = TokenStream(str(corpus), lm.tokenizer, split="eval", context_size=16, n_tokens=200, order_seed=0)
        stream.read()
        sent = []

        def announced(x, device):
            sent.append(x)
            with cuda.border(closed=False):
                return torch.empty(x.shape, dtype=x.dtype, device="cuda")

        for module in (contexts, ablations, passes):
            monkeypatch.setattr(module, "send", announced)
        monkeypatch.setattr(contexts, "check_finite", lambda site, finite, dtype: None)  # once, before the batches
        monkeypatch.setattr(ablations, "_alike", lambda a, b: True)  # once, at the first batch
        candidates = [
            Candidate(sae, site, {name: unread(name) for name in ON_A_LANGUAGE_MODEL})
            for sae, site in zip(saes, sites, strict=True)
        ]
        with cuda.border(closed=True):
            evaluate.evaluate(lm, stream, candidates, Progress(quiet=True))
    assert sent
    assert all(set(candidate.results) == set(ON_A_LANGUAGE_MODEL) for candidate in candidates)
