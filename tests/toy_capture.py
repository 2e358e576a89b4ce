"""A toy capture that any process can open: a tiny language model, two sites, two seeds, a window of few batches."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import ray
import torch
from tiny import tiny_gemma2, tiny_tokenizer

from sae_bench.distributed.capture_server import OpenBuffer
from sae_bench.distributed.shared_capture import SharedSource
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site, find_site
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.training import capture
from sae_bench.training.buffer import ActivationBuffer
from sae_bench.training.initial_values import INIT_SAMPLE
from sae_bench.training.serving import Key, Scaling, Serving

N_TOKENS, CONTEXT, SEEDS = 3000, 16, (0, 1)
SERVING = Serving(batch_size=130, buffer_tokens=600, reuse=3, seeds=SEEDS)
"""Small halves, so that there are many cycles, an odd number of uses, and batches that end nowhere near a cycle."""

N_STEPS = SERVING.n_steps(N_TOKENS)


def toy_model() -> LanguageModel:
    torch.set_num_threads(1)
    return LanguageModel(tiny_gemma2(), tiny_tokenizer(), "tiny")


def toy_sites(lm: LanguageModel) -> list[Site]:
    return [find_site(lm.model, "resid_post", 1), find_site(lm.model, "mlp_out", 2)]


def toy_buffer(
    corpus: str,
    sites: Sequence[Site] | None = None,
    seeds: Sequence[int] = SEEDS,
    *,
    scaling: Scaling | None = None,
    state: Mapping[str, Any] | None = None,
) -> ActivationBuffer:
    """The buffer of one process, with all sites and seeds or some; what it reads it compares with held-out text."""
    lm = toy_model()
    streams = {
        split: TokenStream(corpus, lm.tokenizer, split=split, context_size=CONTEXT, n_tokens=n, order_seed=0)
        for split, n in (("train", N_TOKENS), ("eval", 200))
    }
    streams["train"].watch = streams["eval"].shared_runs()
    serving = Serving(SERVING.batch_size, SERVING.buffer_tokens, SERVING.reuse, seeds)
    sites = sites or toy_sites(lm)
    with patch.dict(capture.CAPTURE_TOKENS, cpu=20 * CONTEXT):  # several passes in a half
        return ActivationBuffer(
            lm, streams["train"], sites, serving, Progress(quiet=True), scaling=scaling, state=state
        )


def opener(corpus: str) -> OpenBuffer:
    """What opens it in another process."""
    return partial(toy_buffer, corpus)


def keys_of(sites: Sequence[Site], seeds: Sequence[int]) -> list[Key]:
    return [(site, seed) for site in sites for seed in seeds]


def in_thread(work: Any) -> tuple[threading.Thread, list[Any]]:
    """Work that may have to wait, begun; and the list that its result comes into."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()
    return thread, result


def digest(batch: Mapping[Key, torch.Tensor]) -> str:
    """What tells a batch from every other, bit for bit."""
    found = hashlib.sha256()
    for (site, seed), x in batch.items():
        found.update(f"{site.name} {seed} {x.dtype} {tuple(x.shape)}".encode() + x.numpy().tobytes())
    return found.hexdigest()


def read(
    capture: Any, name: str, sites: Sequence[Site], seeds: Sequence[int], state: Any = None, until: int = N_STEPS
) -> dict[str, Any]:
    """A trainer that notes what it is served, up to batch `until`: then it ends as if it had been killed."""
    serving = Serving(SERVING.batch_size, SERVING.buffer_tokens, SERVING.reuse, seeds)
    source = SharedSource(capture, name, toy_model(), N_TOKENS, sites, serving, state=state)
    samples = [] if state else [source.sample(site, INIT_SAMPLE) for site in sites]
    digests, batches = [], source.batches()
    for batch in batches:
        digests.append(digest(batch))
        n_done = N_STEPS - source.n_left
        if n_done == until:
            _left_open.append(batches)  # or it would say that it leaves
            break
    state = source.state_dict(N_STEPS - source.n_left)
    return {"digests": digests, "state": state, "facts": source.facts(), "samples": samples, "node": node()}


_left_open: list[Any] = []


def node() -> str:
    """Where this runs."""
    return str(ray.get_runtime_context().get_node_id())
