"""How well x_hat reproduces x, and how many latents it takes."""

import math

import torch

from sae_bench import (
    DocumentSums,
    EvalBatch,
    EvalSetting,
    Metric,
    OctaveSums,
    Result,
    Score,
    Task,
    ratio_stderr,
    register_task,
)

UNRELATED = 1e-5
"""A correlation of x_hat with x below this is the rounding of their mean: x_hat does not vary with x."""

FAR = 1 / 1000
"""The share of the tokens, those furthest from the mean, that `fve_without_far` leaves out."""

MOST_FAR = 1 << 14
"""So many of them are kept at most: of more than 16 million tokens it is a smaller share."""

WORTH_SAYING = 0.2
"""The share of the variance that they may hold before a table says so."""


@register_task("reconstruction")
class Reconstruction(Task):
    """FVE and its relatives (docs/formulas.md), all pooled over tokens.

    Where most of E||x||^2 is the mean's, as on residual streams, what is taken about zero cannot show what happens to
    the deviations from the mean: `gamma`, `cosine` and `l2_ratio` are kept because others publish them, and none leads.
    """

    version = "2"
    metrics = (
        Metric("fve", "up", "", "fraction of variance explained: 1 - fvu", headline=True),
        Metric("fvu", "down", "", "sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, mean over the whole evaluation set"),
        Metric("l0", None, "latents", "mean number of active latents on a token", headline=True),
        Metric(
            "gamma_centred",
            None,
            "",
            "E||x_hat - m||^2 / E[(x - m) . (x_hat - m)], m = mean(x) over the evaluation set; below 1 is shrinkage",
            headline=True,
        ),
        Metric("gamma", None, "", "E||x_hat||^2 / E[x . x_hat]: about zero, so that a large mean hides shrinkage"),
        Metric("cosine_centred", "up", "", "mean cosine similarity of x - m and x_hat - m"),
        Metric("cosine", "up", "", "mean cosine similarity of x and x_hat"),
        Metric("l2_ratio", None, "", "mean ||x_hat|| / ||x||"),
        Metric("fve_without_far", "up", "", "fve without the 0.1% of tokens furthest from mean(x); mean(x) is of all"),
        Metric("far_variance", None, "", "their share of sum ||x - mean(x)||^2: how much of fve is about so few"),
    )

    def start(self, setting: EvalSetting) -> None:
        self.mean = setting.mean
        self.sums = DocumentSums(setting.n_documents, setting.device)
        self.by_position = OctaveSums(setting.device)  # the BOS is 0, the first token of text 1
        self.far = torch.empty(3, 0, dtype=torch.float64, device=setting.device)

    def update(self, batch: EvalBatch) -> None:
        x, x_hat = batch.x.double(), batch.x_hat.double()
        error = (x - x_hat).square().sum(1)
        norm, norm_hat, inner = x.norm(dim=1), x_hat.norm(dim=1), (x * x_hat).sum(1)
        deviation, deviation_hat = x - self.mean, x_hat - self.mean
        variance, variance_hat = deviation.square().sum(1), deviation_hat.square().sum(1)
        inner_centred = (deviation * deviation_hat).sum(1)
        self.sums.add_count(batch.document, "tokens")
        self.sums.add(
            batch.document,
            {
                "squared_error": error,
                "variance": variance,
                "active": batch.f.active_per_token(),
                "norm_hat_squared": norm_hat.square(),
                "inner": inner,
                "deviation_hat_squared": variance_hat,
                "inner_centred": inner_centred,
                # A zero reconstruction has no direction: its cosine counts as 0.
                "cosine": inner / (norm * norm_hat).clamp(min=1e-300),
                "cosine_centred": inner_centred / (variance.sqrt() * variance_hat.sqrt()).clamp(min=1e-300),
                "norm_ratio": norm_hat / norm.clamp(min=1e-300),
            },
        )
        if batch.position is not None:
            of_token = {"squared_error": error, "variance": variance}
            self.by_position.add(batch.position, of_token, "tokens")

        self.far = torch.cat([self.far, torch.stack([variance, error, batch.document.double()])], dim=1)
        if self.far.shape[1] > 2 * MOST_FAR:
            self.far = self._furthest(MOST_FAR)

    def _furthest(self, n: int) -> torch.Tensor:
        """Variance, squared error and document, [3, n], of the n tokens furthest from the mean."""
        return self.far[:, self.far[0].topk(n).indices]

    def finish(self) -> Result:
        ratio = self.sums.ratio
        scores = {
            "fve": ratio("squared_error", "variance", "tokens", one_minus=True),
            "fvu": ratio("squared_error", "variance", "tokens"),
            "l0": ratio("active", "tokens", "tokens"),
            "gamma_centred": self._gamma_centred(),
            "gamma": ratio("norm_hat_squared", "inner", "tokens"),
            "cosine_centred": ratio("cosine_centred", "tokens", "tokens"),
            "cosine": ratio("cosine", "tokens", "tokens"),
            "l2_ratio": ratio("norm_ratio", "tokens", "tokens"),
        }
        scores["fve_without_far"], scores["far_variance"], of_far = self._far()
        caption, share = None, scores["far_variance"].value
        if share is not None and share > WORTH_SAYING:
            caption = (
                f"{share:.0%} of the variance is that of {FAR:.1%} of the tokens: so are fve, fvu and gamma_centred; "
                "fve_without_far leaves them out"
            )
        details = {"far": of_far, "by_position": self.by_position.details()}
        return Result(scores, by_document=self.sums.by_document(), details=details, caption=caption)

    def _far(self) -> tuple[Score, Score, dict[str, list[float]]]:
        """FVE without the tokens furthest from the mean, what they hold of the variance, and their documents' sums.

        The sums are no part of `by_document`: which tokens are among the furthest depends on all the others. Errors
        are those of ratios, as if these tokens were known beforehand.
        """
        n_tokens = int(self.sums.total("tokens"))
        far = self._furthest(min(math.ceil(FAR * n_tokens), MOST_FAR)).cpu()
        documents = far[2].long()
        found = self.sums.by_document()
        variance, error = (torch.tensor(found[name], dtype=torch.float64) for name in ("variance", "squared_error"))
        far_variance, far_error = (torch.zeros_like(variance).index_add_(0, documents, of) for of in far[:2])

        def score(above: torch.Tensor, below: torch.Tensor, n: int, *, one_minus: bool) -> Score:
            if below.sum() <= 1e-12 * variance.sum():
                return Score(None, None, n, note="undefined: the other tokens do not vary")
            value = float(above.sum() / below.sum())
            seen = torch.tensor(found["tokens"]) > 0
            return Score(1 - value if one_minus else value, ratio_stderr(above[seen].numpy(), below[seen].numpy()), n)

        n_rest = n_tokens - far.shape[1]
        which = documents.unique()
        return (
            score(error - far_error, variance - far_variance, n_rest, one_minus=True),
            score(far_variance, variance, n_tokens, one_minus=False),
            {
                "document": which.tolist(),
                "tokens": documents.bincount()[which].tolist(),
                "variance": far_variance[which].tolist(),
                "squared_error": far_error[which].tolist(),
            },
        )

    def _gamma_centred(self) -> Score:
        """Undefined where x_hat does not vary with x, as if all latents are dead: its denominator is 0, but rounded."""
        total = self.sums.total
        least = UNRELATED * (total("variance") * total("deviation_hat_squared")) ** 0.5
        if abs(total("inner_centred")) <= least:
            return Score(None, None, int(total("tokens")), note="undefined: x_hat does not vary with x")
        return self.sums.ratio("deviation_hat_squared", "inner_centred", "tokens")
