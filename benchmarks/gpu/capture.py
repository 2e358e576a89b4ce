"""(c) How fast are activations captured, against the bare forward pass of the layers that it takes?"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu.model import Text, language_model, make_text, stream
from gpu.report import Report, median_ms, peak_gb, wait
from gpu.scale import Scale
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import find_site
from sae_bench.progress import Progress
from sae_bench.training.buffer import ActivationBuffer
from sae_bench.training.serving import Serving

ABOUT = "(c) Capture"


def run(report: Report, scale: Scale) -> None:
    """Every row."""
    text = make_text(scale)
    start = time.perf_counter()
    lm = language_model(scale, text)
    wait(scale.device)
    report.facts |= {
        "about": ABOUT, "model GB": lm.n_bytes / 1e9, "model made in s": time.perf_counter() - start,
        "layers run": scale.layer + 1, "context": scale.context,
    }  # fmt: skip
    found: dict[str, float] = {}
    tokens = next(stream(lm, text, scale, "train", scale.contexts * scale.context).batches(scale.contexts)).tokens
    tokens = tokens.to(scale.device)
    report.run("capture", "bare forward pass", partial(bare, lm, scale, tokens, found, "eager"))
    report.run("capture", "lm.capture", partial(captured, lm, scale, tokens, found))
    report.run("capture", "buffer filled", partial(filled, lm, scale, text, found), seconds=20)
    report.run("other ways", "bare forward pass, 1/4 of the tokens at once",
               partial(bare, lm, scale, tokens[: max(1, len(tokens) // 4)], found, "eager"))  # fmt: skip
    report.run("other ways", "bare forward pass, sdpa without the soft-cap: not this model, but what eager costs",
               partial(bare, lm, scale, tokens, found, "sdpa"))  # fmt: skip
    if scale.device.type == "cuda":  # it has to be compiled
        report.run("other ways", "bare forward pass, flex attention, soft-capped",
                   partial(bare, lm, scale, tokens, found, "flex_attention"), seconds=15)  # fmt: skip


def flops_per_token(lm: LanguageModel, scale: Scale) -> float:
    """Operations of the layers' matrix products and of attention scores, for one token."""
    layers = list(lm.model.model.layers)[: scale.layer + 1]
    weights = sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.ndim > 1)
    heads = scale.model["num_attention_heads"] * scale.model["head_dim"]
    return 2 * weights + len(layers) * 4 * heads * scale.context  # eager attention computes the whole square


@contextmanager
def shortened(lm: LanguageModel, n_layers: int, attention: str) -> Iterator[Any]:
    """The model without its head and its last layers, with one of transformers' kernels for attention."""
    backbone = lm.model.model
    layers, before = backbone.layers, backbone.config._attn_implementation
    n_before = backbone.config.num_hidden_layers
    backbone.layers, backbone.config.num_hidden_layers = layers[:n_layers], n_layers
    backbone.config._attn_implementation = attention
    capped = [layer.self_attn for layer in layers]
    caps = [module.attn_logit_softcapping for module in capped]
    if attention == "sdpa":
        for module in capped:
            module.attn_logit_softcapping = None
    try:
        yield backbone
    finally:
        backbone.layers, backbone.config.num_hidden_layers = layers, n_before
        backbone.config._attn_implementation = before
        for module, cap in zip(capped, caps, strict=True):
            module.attn_logit_softcapping = cap


@torch.no_grad()
def bare(lm: LanguageModel, scale: Scale, tokens: Tensor, found: dict[str, float], attention: str) -> dict[str, Any]:
    """The layers up to the site, and the final norm, which costs nothing beside them."""
    if scale.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with shortened(lm, scale.layer + 1, attention) as backbone:
        ms = median_ms(lambda: backbone(input_ids=tokens, use_cache=False), scale.device, rounds=min(5, scale.rounds),
                       discard=2)  # fmt: skip
    rate = 1000 * tokens.numel() / ms
    found.setdefault("bare", rate)
    return {"tokens/s": rate, "TFLOP/s": rate * flops_per_token(lm, scale) / 1e12, "peak GB": peak_gb(scale.device)}


def captured(lm: LanguageModel, scale: Scale, tokens: Tensor, found: dict[str, float]) -> dict[str, Any]:
    """One pass with the site's activations read."""
    site = find_site(lm.model, "resid_post", scale.layer)
    ms = median_ms(lambda: lm.capture(tokens, [site], check=False), scale.device, rounds=min(5, scale.rounds),
                   discard=2)  # fmt: skip
    rate = 1000 * tokens.numel() / ms
    return {"tokens/s": rate, "TFLOP/s": rate * flops_per_token(lm, scale) / 1e12, "of the bare": rate / found["bare"],
            "peak GB": peak_gb(scale.device)}  # fmt: skip


def filled(lm: LanguageModel, scale: Scale, text: Text, found: dict[str, float]) -> dict[str, Any]:
    """A buffer's whole stream: text read and tokenised, passes, activations counted, written and checked."""
    site = find_site(lm.model, "resid_post", scale.layer)
    tokens = stream(lm, text, scale, "train", scale.n_captured)
    next(tokens.batches(1))  # reads the corpus once, which is kept
    start = time.perf_counter()
    serving = Serving(scale.batch, buffer_tokens=2 * scale.n_captured, reuse=1, seeds=[0])
    buffer = ActivationBuffer(lm, tokens, [site], serving, Progress(quiet=True))
    wait(scale.device)
    seconds = time.perf_counter() - start
    rate = buffer.n_captured / seconds
    return {"tokens/s": rate, "of the bare": rate / found["bare"], "tokens": buffer.n_captured,
            "peak GB": peak_gb(scale.device)}  # fmt: skip
