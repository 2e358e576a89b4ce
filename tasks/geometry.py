"""How a dictionary lies in space: what its decoder rows have to do with each other, and with the activations."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench import DocumentSums, EvalBatch, EvalSetting, Metric, Result, Score, Task, register_task

ROWS_AT_ONCE = 1024

MAX_ROWS = 4096
"""Of wider SAEs so many rows, evenly spread, are compared with all: their order has no meaning."""

PROJECTIONS_AT_ONCE = 1 << 22

ANTIPODAL = -0.9

SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2)
"""The n of the nth projection, as shares of the width."""


@register_task("geometry")
class Geometry(Task):
    """Cosines between decoder rows, and the nth decoder projection (Chanin and Garriga-Alonso, arXiv 2508.16560).

    c_dec, the mean |cosine| of two rows, is high where an L0 that is too low makes latents of mixed features. The nth
    projection looks for the same in the data: the nth largest of (x - b_dec) . d_i over the latents. Of SAEs that
    differ in L0 alone the one near the right L0 has the least, if n is well above it. The paper pools all tokens before
    it counts; here each token has its own nth, and the mean is taken, so that batches do not matter and the error is
    known. Rows are taken at norm one.
    """

    version = "1"
    metrics = (
        Metric("c_dec", "down", "", "mean |cosine| of two decoder rows"),
        Metric("max_decoder_cosine", None, "", "mean over latents of the largest cosine with another latent's row"),
        Metric(
            "antipodal_share", "down", "", f"share of latents with a row opposed to another's: cosine below {ANTIPODAL}"
        ),
        Metric("nth_projection", None, "", "nth largest (x - b_dec) . d_i, n = 3/8 of the width, per ||x - b_dec||"),
    )  # fmt: skip

    def start(self, setting: EvalSetting) -> None:
        sae = setting.sae
        self.rows, self.b_dec = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1), sae.b_dec.detach()
        self.places = [round(share * (len(self.rows) - 1)) for share in SHARES]
        self.sums = DocumentSums(setting.n_documents, setting.device)

    def update(self, batch: EvalBatch) -> None:
        size = max(1, PROJECTIONS_AT_ONCE // len(self.rows))
        for x, document in zip(batch.x.split(size), batch.document.split(size), strict=True):
            x = x - self.b_dec
            ordered = (x @ self.rows.T).sort(dim=1, descending=True).values
            self.sums.add_count(document, "tokens")
            nth = {f"nth_{share:g}": ordered[:, place] for share, place in zip(SHARES, self.places, strict=True)}
            self.sums.add(document, {**nth, "norm": x.double().norm(dim=1)})

    def finish(self) -> Result:
        mean, largest, least = cosines(self.rows)
        n_latents = len(self.rows)

        def of_rows(value: Tensor) -> Score:
            if n_latents < 2:
                return Score(None, None, 0, note="undefined: one latent has no other")
            return Score(float(value), 0.0, 0)  # no token is behind it, and nothing was sampled

        return Result(
            {
                "c_dec": of_rows(mean),
                "max_decoder_cosine": of_rows(largest.mean()),
                "antipodal_share": of_rows((least < ANTIPODAL).double().mean()),
                "nth_projection": self.sums.ratio("nth_0.375", "norm", "tokens"),
            },
            by_document=self.sums.by_document(),
            details={"rows": len(largest)},
        )


def cosines(rows: Float[Tensor, "F D"]) -> tuple[Float[Tensor, ""], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Mean |cosine| of two different rows of norm one, and each row's largest and least cosine with another's."""
    some = torch.arange(0, len(rows), -(-len(rows) // MAX_ROWS), device=rows.device)
    total, largest, least = rows.new_zeros((), dtype=torch.float64), [], []
    for chunk in some.split(ROWS_AT_ONCE):
        cosine = rows[chunk] @ rows.T
        own = torch.arange(len(chunk), device=rows.device), chunk
        total += cosine.abs().sum(dtype=torch.float64) - cosine[own].abs().sum(dtype=torch.float64)
        largest.append(cosine.index_put(own, rows.new_tensor(-torch.inf)).amax(1))
        least.append(cosine.index_put(own, rows.new_tensor(torch.inf)).amin(1))
    return total / max(1, len(some) * (len(rows) - 1)), torch.cat(largest), torch.cat(least)
