"""Ablations worked out once for all contexts against running them on every batch."""

import pytest
import torch
from tiny import FAMILIES, tiny_tokenizer
from torch import Tensor
from torch.nn import functional

from sae_bench.lm.ablations import Ablations
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site, find_site

N, S = 3, 12


@pytest.fixture(scope="module", params=["gemma2", "llama", "gpt_neox", "gpt2"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(FAMILIES[request.param](), tiny_tokenizer(request.param), request.param)


def tokens_of(lm: LanguageModel, seed: int) -> Tensor:
    """Contexts that begin alike; no other token is special."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(10, lm.n_vocab, (N, S), generator=draw)
    tokens[:, 0] = 2
    return tokens


def by_hand(lm: LanguageModel, site: Site, tokens: Tensor, constant: Tensor) -> Tensor:
    """Cross-entropies of every prediction from a counted position, from whole logits in float64."""
    clean = lm.clean_pass(tokens, [site])
    x = clean.activations[site].clone()
    x[:, 1:] = constant
    logits = lm.logits(clean.replay(site, x)).double()
    return functional.cross_entropy(logits[:, 1:-1].flatten(0, 1), tokens[:, 2:].flatten(), reduction="none")


@pytest.mark.parametrize("opening", [2, None], ids=["once for all", "in full"])
@pytest.mark.parametrize("kind", ["resid_post", "mlp_out", "attn_out"])
def test_ablations_equal_those_run_on_the_batch(lm: LanguageModel, kind: str, opening: int | None) -> None:
    site = find_site(lm.model, kind, 1)
    mean = torch.randn(site.d_in, generator=torch.Generator().manual_seed(1)).double()
    ablations = Ablations(lm, {site: mean})
    position = torch.arange(N * S).view(N, S)
    for seed in (3, 4):  # the second batch finds the first one's work done
        tokens = tokens_of(lm, seed)
        places = position[:, 1:].flatten(), position[:, 1:-1].flatten(), tokens[:, 2:].flatten(), opening
        found = ablations.losses(lm.clean_pass(tokens, [site]), *places)[site]
        for ours, constant in zip(found, (torch.zeros_like(mean), mean), strict=True):
            expected = by_hand(lm, site, tokens, constant.float())
            torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)


def test_only_what_ends_alike_is_shared(lm: LanguageModel) -> None:
    """Behind resid_post nothing tells contexts apart; past mlp_out and attn_out goes the residual stream."""
    sites = {kind: find_site(lm.model, kind, 1) for kind in ("resid_post", "mlp_out", "attn_out")}
    means = {site: torch.ones(site.d_in, dtype=torch.float64) for site in sites.values()}
    shared = Ablations(lm, means)._shared_ends(2, tokens_of(lm, 3)[0])
    assert set(shared) == {sites["resid_post"]}
