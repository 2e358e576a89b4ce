"""Standard errors that know that the tokens of one document are alike."""

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def ratio_stderr(numerator: Float[ndarray, " G"], denominator: Float[ndarray, " G"]) -> float | None:
    """Standard error of sum(numerator) / sum(denominator) over G documents, by linearisation.

    sqrt(G / (G - 1) sum_g (num_g - r den_g)^2) / sum(den), the ratio estimator's usual variance (Cochran, Sampling
    Techniques, section 6.4) with documents as the sampled units. None for fewer than two documents, where the data do
    not say.
    """
    if len(numerator) < 2:
        return None
    total = denominator.sum()
    residuals = numerator - numerator.sum() / total * denominator
    n = len(residuals)
    return float(math.sqrt(n / (n - 1) * np.square(residuals).sum()) / abs(total))


def jackknife_stderr(leave_one_out: Float[ndarray, " G"]) -> float | None:
    """Standard error from the G values obtained by leaving one group of documents out at a time."""
    n = len(leave_one_out)
    if n < 2:
        return None
    return float(math.sqrt((n - 1) / n * np.square(leave_one_out - leave_one_out.mean()).sum()))


def mean_stderr(values: Float[ndarray, " G"]) -> float | None:
    """Standard error of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    return float(values.std(ddof=1) / math.sqrt(len(values)))
