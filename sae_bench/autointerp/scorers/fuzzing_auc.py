"""Fuzzing by rank: is "true" likelier where the active tokens are marked? Area under the ROC curve.

The questions are those of fuzzing, asked once for both.
"""

from sae_bench import register_scorer
from sae_bench.autointerp.scorer import Ranked
from sae_bench.autointerp.scorers.fuzzing import Fuzzing


@register_scorer("fuzzing_auc")
class FuzzingAUC(Ranked, Fuzzing):
    description = "fuzzing by how likely the judge finds it: area under the ROC curve"
