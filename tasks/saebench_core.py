"""What SAEBench's core evaluation measures and `reconstruction` does not, for comparison with its numbers."""

import torch

from sae_bench import DocumentSums, EvalBatch, EvalSetting, Metric, Result, Task, register_task


@register_task("saebench_core")
class SAEBenchCore(Task):
    """SAEBench's published variance explained, and the sums that its other definitions take (docs/formulas.md).

    Its variance is a mean of tokens' own shares, to the mean of a batch; here the whole set is the one batch that no
    memory limit decides. `--emit saebench` writes its files from this.
    """

    version = "1"
    metrics = (
        Metric(
            "explained_variance_legacy", "up", "",
            "SAEBench's published variance: mean over tokens of 1 - ||x - x_hat||^2 / ||x - mean(x)||^2",
        ),
    )  # fmt: skip

    def start(self, setting: EvalSetting) -> None:
        self.mean = setting.mean
        self.sums = DocumentSums(setting.n_documents, setting.device)

    def update(self, batch: EvalBatch) -> None:
        x, x_hat, f = batch.x.double(), batch.x_hat.double(), batch.f
        variance = (x - self.mean).square().sum(1)
        varies = variance > 0  # a token at the mean has no value
        self.sums.add(
            batch.document,
            {
                "explained": torch.where(varies, 1 - (x - x_hat).square().sum(1) / variance, 0.0),
                "varying": varies,
                "norm": x.norm(dim=1),
                "norm_hat": x_hat.norm(dim=1),
                "norm_squared": x.square().sum(1),
                "l1": f.sum_of_each_token(f.values.abs()),
            },
        )

    def finish(self) -> Result:
        score = self.sums.ratio("explained", "varying", "varying")
        return Result({"explained_variance_legacy": score}, by_document=self.sums.by_document())
