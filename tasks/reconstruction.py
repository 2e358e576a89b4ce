"""How well x_hat reproduces x, and how many latents it takes."""

from sae_bench import DocumentSums, EvalBatch, EvalSetting, Metric, Result, Score, Task, register_task

UNRELATED = 1e-5
"""A correlation of x_hat with x below this is the rounding of their mean: x_hat does not vary with x."""


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
    )

    def start(self, setting: EvalSetting) -> None:
        self.mean = setting.mean
        self.sums = DocumentSums(setting.n_documents, setting.device)

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
        return Result(scores, by_document=self.sums.by_document())

    def _gamma_centred(self) -> Score:
        """Undefined where x_hat does not vary with x, as if all latents are dead: its denominator is 0, but rounded."""
        total = self.sums.total
        least = UNRELATED * (total("variance") * total("deviation_hat_squared")) ** 0.5
        if abs(total("inner_centred")) <= least:
            return Score(None, None, int(total("tokens")), note="undefined: x_hat does not vary with x")
        return self.sums.ratio("deviation_hat_squared", "inner_centred", "tokens")
