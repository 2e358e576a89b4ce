"""Whether few latents are enough to tell what a text is about: sparse probing on labelled texts"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sae_bench import (
    LabelledPassages,
    Metric,
    OwnText,
    ProbeScores,
    ProbeTexts,
    Result,
    Score,
    SparseAutoencoder,
    TextSettings,
    TextTask,
    mean_stderr,
    register_task,
)

KS = (1, 2, 5, 16)
MEASURES = {"auc": "area under the ROC curve", "accuracy": "accuracy", "f1": "F1, mean over the two labels"}


def _metrics() -> Sequence[Metric]:
    found = []
    for measure, meaning in MEASURES.items():
        for k in KS:
            of = "the latent that tells the labels apart best" if k == 1 else f"the {k} latents that do so best"
            lead = measure == "auc" and k in (1, 16)
            found.append(Metric(f"{measure}_k{k}", "up", "", f"{meaning} of a probe on {of}, mean over sets", lead))
        found.append(Metric(f"{measure}_dense", None, "", f"{meaning} of a probe on x itself, mean over sets"))
    return tuple(found)


@register_task("sparse_probing")
class SparseProbing(TextTask):
    """Probes on the activation at a text's last token (SAE-Probes: Kantamneni et al. 2025, arXiv 2502.16681).

    Latents are ranked by how far apart the two labels' means are, in units of the mean of the latent's nonzero
    |values|; a logistic regression on the first k learns from at most 1,024 texts and is tested on the others
    (docs/probing.md). Values are means over the sets, with the standard error over sets: they are the units here. What
    a probe on x itself reaches, `auc_dense`, says how much of it the latents keep.
    """

    version = "1"
    metrics = _metrics()

    def __init__(self, text: OwnText) -> None:
        super().__init__(text)
        self.sets: dict[str, dict[str, Any]] = {}

    @classmethod
    def read(cls, settings: TextSettings) -> OwnText:
        return ProbeTexts.chosen(settings)

    def update(
        self, passages: LabelledPassages, x: Float[Tensor, "n D"], sae: SparseAutoencoder, of_site: ProbeScores
    ) -> None:
        ranked = passages.ranked(sae, x, max(KS))
        probes = {f"k{k}": passages.sparse_probe(ranked, k) for k in KS} | {"dense": of_site}
        self.sets[passages.name] = {
            **{f"{measure}_{of}": getattr(probe, measure) for of, probe in probes.items() for measure in MEASURES},
            "C": {of: probe.C for of, probe in probes.items()},
            "latents": ranked.latents.tolist(),
            "n_train": passages.n_train,
            "n_test": passages.n_test,
            "n_repeated": passages.n_repeated,
        }

    def finish(self) -> Result:
        n_test = sum(of["n_test"] for of in self.sets.values())
        by_set = {metric.name: [of[metric.name] for of in self.sets.values()] for metric in self.metrics}

        def mean(name: str) -> Score:
            values = np.array(by_set[name])
            return Score(float(values.mean()), mean_stderr(values), n_test, formula=f"{name} / sets")

        scores = {metric.name: mean(metric.name) for metric in self.metrics}
        dense = scores["auc_dense"].value
        caption = (
            f"auc_k: AUC of probes on k latents, mean over {len(self.sets)} sets of labelled texts, ± over sets; a "
            f"probe on x itself has {dense:.3f}"
        )
        by_set["sets"] = [1.0] * len(self.sets)
        return Result(scores, by_set, details={"sets": self.sets}, caption=caption)
