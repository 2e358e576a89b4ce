"""A metric of an SAE in every replicate of an experiment (`bootstrap.Design`), from its record's sums by document.

Shapes: R replicates.
"""

from collections.abc import Sequence

import numpy as np
import scipy
from jaxtyping import Float
from numpy import ndarray

from sae_bench.leaderboard.bootstrap import LEVEL, Design
from sae_bench.records.schema import ON_TEXTS, RATIO, Record


def metric_replicates(record: Record, metric: str, design: Design, architecture: int = 0) -> Float[ndarray, " R"]:
    """A metric of one SAE in every replicate; leaving seeds out is `over_seeds`' part.

    Metrics that are ratios of sums per document, or per unit of a task's own text, are worked out anew. Of others, as
    the shares of latents or what a judge said of a sample of them, the record has a value and a standard error alone:
    all SAEs of an architecture are moved by theirs together, and each architecture by itself. That is the cautious
    reading of both: a mean over seeds gets no surer by it, and nothing cancels in a difference. Where the record says
    of how few degrees of freedom an error is, as of one from five raters, it counts as so much larger as makes its 95%
    interval as wide as it is by these.

    Raises:
        KeyError: the record has no value for the metric, or no standard error of it.
    """
    score = record.scores[metric]
    if score.value is None:
        raise KeyError(metric)
    formula = RATIO.fullmatch(score.formula or "")
    if formula is None:
        if score.stderr is None:
            raise KeyError(metric)
        found = np.full(design.n_replicates, float(score.value))
        found[design.moved.start + architecture] += score.stderr * _widened(record, metric, design)
        return found
    one_minus, numerator, denominator = formula.groups()
    above, below = (np.asarray(record.by_document[name], dtype=float) for name in (numerator, denominator))
    found = np.full(design.n_replicates, above.sum() / below.sum())
    left_out = design.units if record.measured_on == ON_TEXTS else design.documents
    if left_out.stop > left_out.start:
        rows = slice(left_out.start, left_out.start + len(above))
        found[rows] = (above.sum() - above) / (below.sum() - below)
    return 1 - found if one_minus else found


def _widened(record: Record, metric: str, design: Design) -> float:
    """By how much a standard error of few degrees of freedom counts for more than one of as many as documents leave."""
    degrees = record.details.get("degrees", {}).get(metric)
    if degrees is None:
        return 1.0
    own, of_documents = (
        scipy.special.stdtrit(of, (1 + LEVEL) / 2) for of in (degrees, max(design.n_documents - 1.0, 1.0))
    )
    return max(1.0, float(own / of_documents))


def over_seeds(by_seed: Sequence[Float[ndarray, " R"]], design: Design) -> Float[ndarray, " R"]:
    """The mean over seeds, without the one that a replicate leaves out."""
    stacked = np.stack(by_seed, axis=1)
    found = stacked.mean(1)
    if design.n_seeds > 1:
        every = stacked[design.seeds]
        found[design.seeds] = (every.sum(1) - every.diagonal()) / (design.n_seeds - 1)
    return np.asarray(found)
