"""Memory of collecting latents at full scale, against what is stated beforehand: 1,000 latents x 16 SAEs x 2M tokens.

    python benchmarks/collection.py

The language model is a tiny one, for only what is kept of its activations counts here; excerpts, latents and tokens are
as many as in a real run. SAEs and language model are not counted, and what a pass of the model takes is measured first.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from command import write_corpus
from tiny import tiny_llama, tiny_tokenizer

from sae_bench import SAEConfig
from sae_bench.autointerp.sample import Subject, collect, collection_bytes
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import find_site
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.registry import ARCHITECTURES

N_LATENTS, N_SAES, N_TOKENS, D_SAE, K, CONTEXT_SIZE = 1000, 16, 2_000_000, 1280, 16, 128


def main(n_tokens: int) -> None:
    torch.set_num_threads(1)
    lm = LanguageModel(tiny_llama(), tiny_tokenizer("llama"), "tiny")
    site = find_site(lm.model, "resid_post", 1)
    saes = []
    for seed in range(N_SAES):
        sae = ARCHITECTURES["topk"](SAEConfig(d_in=site.d_in, d_sae=D_SAE, coefficient=K, seed=seed))
        sae.folded = True
        saes.append(Subject(f"sae{seed}", sae.requires_grad_(False), site))
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus.jsonl", 4000)

        def stream(n: int) -> TokenStream:
            # The training side: it may read its corpus again, and 2M tokens of a few hundred words are soon read.
            return TokenStream(
                str(corpus), lm.tokenizer, split="train", context_size=CONTEXT_SIZE, n_tokens=n, order_seed=0
            )

        list(collect(lm, stream(20_000), saes[:1], 10, Progress(quiet=True)))
        before = peak_bytes()
        began = time.monotonic()
        found = [len(one.found) for one in collect(lm, stream(n_tokens), saes, N_LATENTS, Progress())]
        seconds = time.monotonic() - began
    stated = collection_bytes(N_LATENTS, [D_SAE] * N_SAES, n_tokens, CONTEXT_SIZE)
    taken = peak_bytes() - before
    print(f"{min(found)} to {max(found)} latents of {N_SAES} SAEs from {n_tokens:,} tokens in {seconds:,.0f} s")
    print(f"stated {stated / 1e6:,.0f} MB, taken {taken / 1e6:,.0f} MB ({taken / stated:.2f} times)")


def peak_bytes() -> int:
    """The most memory that this process has had (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else N_TOKENS)
