"""Does another seed find the same latents? An SAE against those that differ from it in the seed alone."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_bench import (
    Active,
    DocumentSums,
    EvalBatch,
    EvalSetting,
    Metric,
    Result,
    Score,
    SparseAutoencoder,
    Task,
    mean_stderr,
    register_task,
)

SHARED = 0.7
"""Latents of two SAEs are the same if the cosines of their decoder rows and of their encoder columns exceed this.

Where f has a sign, so has a latent: then both cosines may be below minus this instead.
"""

MAX_HUNGARIAN = 8192
"""Up to this width the best matching of all is found; wider SAEs are matched greedily, among close pairs."""

CLOSE = 64
"""How many close latents each latent of a wide SAE may be matched with."""


@register_task("stability")
class Stability(Task):
    """Latents matched one to one with those of every other seed, by |cosine| of decoder rows (docs/formulas.md).

    `pw_mcc` is the pairwise mean correlation coefficient (Song et al. 2025, arXiv 2505.20254), `shared_share` the share
    of latents that both SAEs have (Paulo and Belrose 2025, arXiv 2501.16615), and `fve_shared` the variance explained
    by these alone, the others left out of f: seeds may agree on what matters, and differ in the rest. All are means
    over the other seeds.
    """

    version = "1"
    needs_siblings = True
    metrics = (
        Metric("pw_mcc", "up", "", "mean |cosine| of decoder rows matched with those of another seed"),
        Metric("pw_mcc_alive", "up", "", "the same over the latents that fire on the evaluation tokens"),
        Metric(
            "shared_share", "up", "", f"share of latents matched with cosines above {SHARED} in decoder and encoder"
        ),
        Metric("fve_shared", "up", "", "fraction of variance that these latents alone explain"),
    )

    def start(self, setting: EvalSetting) -> None:
        sae, self.mean = setting.sae, setting.mean
        self.sae, self.sums = sae, DocumentSums(setting.n_documents, setting.device)
        matches = [Match.of(sae, other) for other in setting.siblings]
        self.cosines = torch.stack([match.decoder.abs() for match in matches]) if matches else None
        self.shared = [match.shared for match in matches]
        self.fired = torch.zeros(sae.config.d_sae, dtype=torch.bool, device=setting.device)

    def update(self, batch: EvalBatch) -> None:
        self.fired |= batch.f.count_per_latent()[0] > 0
        variance = (batch.x.double() - self.mean).square().sum(1)
        self.sums.add_count(batch.document, "tokens")
        for shared in self.shared:
            x_hat = self.sae.decode(only(batch.f, shared))
            error = (batch.x.double() - x_hat.double()).square().sum(1)
            self.sums.add(batch.document, {"squared_error": error, "variance": variance})

    def finish(self) -> Result:
        if self.cosines is None:
            alone = Score(None, None, 0, note="no other seed of this SAE: give --seed two values or more")
            return Result({metric.name: alone for metric in self.metrics})
        n_latents, n_tokens = self.cosines.shape[1], int(self.sums.total("tokens"))

        def over_seeds(values: Float[Tensor, " siblings"], n_tokens: int = 0) -> Score:
            found = values.double().cpu().numpy()
            return Score(float(found.mean()), mean_stderr(found), n_tokens)

        alive = self.cosines[:, self.fired].mean(1) if self.fired.any() else None
        return Result(
            {
                "pw_mcc": over_seeds(self.cosines.mean(1)),
                "pw_mcc_alive": Score(None, None, 0, note="no latent fires")
                if alive is None
                else over_seeds(alive, n_tokens),
                "shared_share": over_seeds(torch.stack(self.shared).double().mean(1)),
                "fve_shared": self.sums.ratio("squared_error", "variance", "tokens", one_minus=True),
            },
            by_document=self.sums.by_document(),
            details={"seeds_compared": len(self.shared), "greedy": n_latents > MAX_HUNGARIAN},
        )


def only(f: Active, latents: Tensor) -> Active:
    """f with all but some latents set to zero; a mask [F] says which stay."""
    return f.with_values(f.values * f.per_latent(latents.to(f.values.dtype)), zero_at_zero=True)


class Match:
    """An SAE's latents, each with its own of another's: cosines of their decoder rows and of their encoder columns."""

    def __init__(self, decoder: Float[Tensor, " F"], encoder: Float[Tensor, " F"], *, signed: bool = False) -> None:
        self.decoder, self.encoder = decoder, encoder
        turn = decoder.sign() if signed else 1.0  # a latent and its negative write the same
        self.shared = (turn * decoder > SHARED) & (turn * encoder > SHARED)

    @staticmethod
    def of(sae: SparseAutoencoder, other: SparseAutoencoder) -> "Match":
        """Match two SAEs of one shape. Where none is left that is close, the cosines are zero: none was found."""
        rows, others = (torch.nn.functional.normalize(one.W_dec.detach(), dim=1) for one in (sae, other))
        columns, other_columns = (
            rows_of if one.tied else torch.nn.functional.normalize(one.W_enc.detach().T, dim=1)
            for one, rows_of in ((sae, rows), (other, others))
        )
        partner = torch.tensor(_hungarian(rows, others) if len(rows) <= MAX_HUNGARIAN else _greedy(rows, others))
        partner = partner.to(rows.device)
        found = partner >= 0
        pairs = (rows, others), (columns, other_columns)
        cosines = (torch.linalg.vecdot(ours, theirs[partner]) * found for ours, theirs in pairs)
        return Match(*cosines, signed=sae.signed)


def _hungarian(rows: Float[Tensor, "F D"], others: Float[Tensor, "F D"]) -> Sequence[int]:
    """The one-to-one matching with the largest sum of |cosines|."""
    return linear_sum_assignment((rows @ others.T).abs().cpu().numpy(), maximize=True)[1].tolist()


def _greedy(rows: Float[Tensor, "F D"], others: Float[Tensor, "F D"]) -> Sequence[int]:
    """The closest pair first, then the closest of those left; -1 where a latent's close ones are all taken."""
    close = [(some @ others.T).abs().topk(CLOSE, dim=1) for some in rows.split(1024)]
    cosine, index = (torch.cat(parts) for parts in zip(*close, strict=True))
    order = cosine.flatten().sort(descending=True, stable=True).indices.cpu()
    partner, taken = np.full(len(rows), -1), np.zeros(len(others), dtype=bool)
    for one, other in zip((order // CLOSE).tolist(), index.flatten().cpu()[order].tolist(), strict=True):
        if partner[one] < 0 and not taken[other]:
            partner[one], taken[other] = other, True
    return partner.tolist()
