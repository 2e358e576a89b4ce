"""Control: a trained topk SAE whose decoder rows are shuffled in the end: latents write each other's directions.

It is trained exactly as `topk` is; then one permutation, drawn from its seed, moves the rows of W_dec. Latents, their
frequencies and the decoder's directions are those of the trained SAE, only which belongs to which is lost. A metric
that it does as well in as `topk` does not look at what a latent writes, as scores of single latents by their
activations do not.
"""

import torch

from sae_bench import ARCHITECTURES, register_architecture

TopK = ARCHITECTURES["topk"]


@register_architecture("permuted")
class Permuted(TopK):  # type: ignore[misc, valid-type]
    is_control = True
    tuned_as = "topk"  # its own reconstruction says nothing of how it was trained

    def after_training(self) -> None:
        order = torch.randperm(self.config.d_sae, generator=torch.Generator().manual_seed(self.config.seed))
        self.W_dec.copy_(self.W_dec[order.to(self.W_dec.device)])
