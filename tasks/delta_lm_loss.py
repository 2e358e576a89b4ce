"""What splicing the SAE into the language model costs: the primary metric."""

from sae_bench import DocumentSums, EvalBatch, EvalSetting, Metric, OctaveSums, Result, Score, Task, register_task


@register_task("delta_lm_loss")
class DeltaLMLoss(Task):
    """Cross-entropy of the spliced model against the clean one, in nats per predicted token (docs/formulas.md).

    Special positions keep the clean activation and are not counted. `loss_recovered` compares with zero ablation,
    which costs 12-30 nats at a residual site: it stays near 1 whatever the SAE does, and is kept because others publish
    it. The difference itself leads, and of shares the one of mean ablation.
    """

    version = "1"
    needs_lm_loss = True
    metrics = (
        Metric("delta_lm_loss", "down", "nats", "CE(spliced) - CE(clean)", headline=True),
        Metric(
            "loss_recovered_mean", "up", "",
            "1 - (CE(spliced) - CE(clean)) / (CE(mean-ablated) - CE(clean))", headline=True,
        ),
        Metric("loss_recovered", "up", "", "the same with zero ablation, which flatters"),
        Metric("kl", "down", "nats", "KL(clean || spliced) between next-token distributions", headline=True),
        Metric("ce_clean", None, "nats", "cross-entropy of the clean model"),
        Metric("ce_spliced", "down", "nats", "cross-entropy with the SAE spliced in"),
        Metric("ce_zero", None, "nats", "cross-entropy with the site's activations set to zero"),
        Metric("ce_mean", None, "nats", "cross-entropy with the site's activations set to their mean"),
    )  # fmt: skip

    def start(self, setting: EvalSetting) -> None:
        self.sums = DocumentSums(setting.n_documents, setting.device)
        self.by_frequency = OctaveSums(setting.device)  # how often the predicted word occurs in the evaluation text

    def update(self, batch: EvalBatch) -> None:
        losses = batch.losses
        assert losses is not None, "needs_lm_loss"
        clean = losses.clean.double()
        self.sums.add_count(losses.document, "predictions")
        self.sums.add(
            losses.document,
            {
                "clean": clean,
                "spliced": losses.spliced,
                "zero": losses.zero_ablated,
                "mean": losses.mean_ablated,
                "kl": losses.kl,
                "added": losses.spliced - clean,
                "added_by_zero": losses.zero_ablated - clean,
                "added_by_mean": losses.mean_ablated - clean,
            },
        )

        if losses.frequency is not None:
            added = {"clean": clean, "added": losses.spliced - clean}
            self.by_frequency.add(losses.frequency, added, "predictions")

    def finish(self) -> Result:
        def mean(name: str) -> Score:
            return self.sums.ratio(name, "predictions", "predictions")

        scores = {
            "delta_lm_loss": mean("added"),
            "loss_recovered": self.sums.ratio("added", "added_by_zero", "predictions", one_minus=True),
            "loss_recovered_mean": self.sums.ratio("added", "added_by_mean", "predictions", one_minus=True),
            "kl": mean("kl"),
            "ce_clean": mean("clean"),
            "ce_spliced": mean("spliced"),
            "ce_zero": mean("zero"),
            "ce_mean": mean("mean"),
        }
        details = {"by_frequency": self.by_frequency.details()}
        return Result(scores, by_document=self.sums.by_document(), details=details)
