"""sparsify's training step, topk only, with Adam: on a CPU its own path for that, on a GPU its Triton kernels.

Its `Trainer.fit` is one function around a language model's forward pass. These are the lines of it that concern one
sparse coder, with its defaults (no AuxK, no Multi-TopK), from its forward hook and from its training loop.
"""

import torch
from sparsify import SparseCoder, SparseCoderConfig  # type: ignore[import-not-found]
from torch import Tensor

from workers.protocol import LR, Spec, serve_steps


class Sparsify:
    """A sparse coder, its optimiser and its counters."""

    def __init__(self, x: Tensor, spec: Spec) -> None:
        assert spec.arch == "topk", "sparsify trains topk"
        self.coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=spec.d_sae, k=round(spec.l0)), x.device)
        self.coder.b_dec.data = x.mean(0)
        self.optimiser = torch.optim.Adam([{"params": self.coder.parameters(), "lr": LR}])
        self.num_tokens_since_fired = torch.zeros(spec.d_sae, dtype=torch.long, device=x.device)
        self.did_fire = torch.zeros(spec.d_sae, dtype=torch.bool, device=x.device)
        self.fvu = 0.0

    def step(self, x: Tensor) -> None:
        coder = self.coder
        coder.set_decoder_norm_to_unit_norm()
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = coder(x=x, y=x, dead_mask=None, total_variance=total_variance)
        self.did_fire[out.latent_indices.flatten()] = True
        self.fvu += float(out.fvu.detach())
        (out.fvu + 0.0 * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.num_tokens_since_fired += len(x)
        self.num_tokens_since_fired[self.did_fire] = 0
        self.did_fire.zero_()

    def l0(self, x: Tensor) -> float:
        return float((self.coder.encode(x).top_acts > 0).sum(1).float().mean())


if __name__ == "__main__":
    torch.manual_seed(0)
    serve_steps(Sparsify, ["eai-sparsify", "torch"])
