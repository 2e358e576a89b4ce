"""Probes: logistic regressions that tell two labels apart, as SAE-Probes trains them (arXiv 2502.16681, Section 3).

What differs from that package's code is said here and in docs/probing.md: the probe of an SAE sees every latent divided
by the mean of its nonzero values, as the ranking does, and the probe on x sees each coordinate standardised. A
regression with a penalty is not indifferent to scale, and architectures, as models, differ in theirs.

Shapes: n texts, m features.
"""

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sae_bench.errors import UserError

SEED = 42
MAX_TRAIN = 1024
N_TEST = 100
"""The fewest texts to test on, if there are enough in all."""

STRENGTHS = np.logspace(5, -5, 10)
"""The inverse penalties C that are tried."""

FEW = 128
"""With fewer training texts C is chosen by cross-validation in `FOLDS` parts instead of on the last of them."""

FOLDS = 6


def check_sklearn() -> None:
    """Raise UserError unless scikit-learn is installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError('probes need scikit-learn, which is not installed: pip install "sae-arch-bench[probes]"')


@dataclass(frozen=True)
class Split:
    """Which texts a probe learns from, in what order, and which it is tested on."""

    train: Int[ndarray, " n_train"]
    test: Int[ndarray, " n_test"]

    @staticmethod
    def of(labels: Int[ndarray, " n"]) -> "Split":
        """Draw label by label, in the set's own proportion: all but 100 or all but a third to train on, at most 1,024.

        Of a balanced set it is the very split of SAE-Probes, which leaves one text out.
        """
        n, share = len(labels), float(labels.mean())
        n_train = min(n - min(N_TEST, n // 3), MAX_TRAIN)
        n_test = n - n_train - 1
        draw = np.random.RandomState(SEED)
        left = {label: np.flatnonzero(labels == label) for label in (1, 0)}
        parts = []
        for size in (n_train, n_test):
            ones = min(int(np.ceil(share * size)), len(left[1]))
            sizes = {1: ones, 0: min(size - ones, len(left[0]))}
            drawn = {label: draw.choice(left[label], size=sizes[label], replace=False) for label in (1, 0)}
            left = {label: np.setdiff1d(left[label], drawn[label]) for label in (1, 0)}
            parts.append(np.concatenate([drawn[1], drawn[0]]))
        train, test = (draw.permutation(part) for part in parts)
        return Split(train, test)


@dataclass(frozen=True)
class ProbeScores:
    """How well a probe tells the test texts' labels apart."""

    auc: float
    accuracy: float
    f1: float
    """Mean over the two labels, weighted by how many texts have each."""
    C: float


def fit_probe(
    features: Float[ndarray, "n m"], labels: Int[ndarray, " n"], split: Split, penalty: Literal["l1", "l2"]
) -> ProbeScores:
    """A logistic regression on the training texts, with the C of the best AUC on those that were held out of them."""
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    train, y = features[split.train], labels[split.train]
    test, y_test = features[split.test], labels[split.test]
    folds = _folds(train, y)
    aucs = []
    for C in STRENGTHS:
        fitted = [(_fitted(train[some], y[some], C, penalty), held_out) for some, held_out in folds]
        aucs.append(np.mean([roc_auc_score(y[at], probe.decision_function(train[at])) for probe, at in fitted]))
    best = float(STRENGTHS[int(np.argmax(aucs))])
    order = np.random.RandomState(SEED).permutation(len(y))
    probe = _fitted(train[order], y[order], best, penalty)
    found = probe.predict(test)
    return ProbeScores(
        auc=float(roc_auc_score(y_test, probe.decision_function(test))),
        accuracy=float(accuracy_score(y_test, found)),
        f1=float(f1_score(y_test, found, average="weighted")),
        C=best,
    )


def _folds(train: Float[ndarray, "n m"], y: Int[ndarray, " n"]) -> list[tuple[Any, Any]]:
    """What is learnt from, and what C is chosen on: the last fifth of the training texts, 100 at most, if they do."""
    n = len(y)
    if n < FEW:
        from sklearn.model_selection import StratifiedKFold

        return list(StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(train, y))
    n_held_out = min(n // 5, N_TEST)
    return [(np.arange(n - n_held_out), np.arange(n - n_held_out, n))]


def _fitted(x: Float[ndarray, "n m"], y: Int[ndarray, " n"], C: float, penalty: Literal["l1", "l2"]) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    how: dict[str, Any] = {"l1_ratio": 1.0, "solver": "saga"} if penalty == "l1" else {}
    with warnings.catch_warnings():
        # Labels that can be told apart without error have no best weights but ever larger ones; the AUC is known then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=C, random_state=SEED, max_iter=1000, **how).fit(x, y)
