"""Detection by rank: is "true" likelier of the excerpts that the latent fires in? Area under the ROC curve.

The questions are those of detection, asked once for both.
"""

from sae_bench import register_scorer
from sae_bench.autointerp.scorer import Ranked
from sae_bench.autointerp.scorers.detection import Detection


@register_scorer("detection_auc")
class DetectionAUC(Ranked, Detection):
    description = "detection by how likely the judge finds it: area under the ROC curve"
