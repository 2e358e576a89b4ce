"""Feature absorption: does the latent of a first letter fall silent where the latent of the word speaks for it?"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.sparse import csr_array, vstack
from torch import Tensor

from sae_bench import (
    LETTERS,
    Active,
    FirstLetters,
    LetterProbes,
    LetterWords,
    Metric,
    Result,
    Score,
    SparseAutoencoder,
    TextSettings,
    TextTask,
    mean_stderr,
    register_task,
)

DEFINITIONS = "SAEBench 0.6.0"

MIN_F1 = 0.6
"""A letter is scored if its probe on x has a larger F1."""
USUAL_LETTERS = 20

L1_DECAY = 0.01
"""Weight of the L1 norm beside the mean loss, where a letter's latents are sought."""
MAX_SPLIT = 10
F1_RISE = 0.03

FIRES = 1e-8
SHARE = 0.4
"""Share of the projection on the probe that absorbing latents carry, at least."""
FULL_COSINE = 0.025
FRACTION_COSINE = 0.1
ABSORBERS = 3

ENCODED_AT_ONCE = 256

ABSORBED = (
    "mean_absorption_fraction",
    "mean_full_absorption",
    "absorption_fraction_centred",
    "full_absorption_centred",
)
"""The metrics that `absorption` gives: its two, of x and of x - b_dec."""


@dataclass(frozen=True)
class Letter:
    """What an SAE makes of a letter: its split latents, their F1, and for each word found what is absorbed of it."""

    split: Sequence[int]
    f1: float
    absorbed: Mapping[str, Float[ndarray, " m"]]
    """By metric."""


@register_task("absorption")
class Absorption(TextTask):
    """First letters absorbed (Chanin et al. 2024, arXiv 2409.14507), by the definitions of SAEBench 0.6.0.

    docs/absorption.md has them, and what is done otherwise here. Standard errors are clustered by letter.
    """

    version = "1"
    chosen_units = True  # letters whose probe is good enough
    metrics = (
        Metric("mean_absorption_fraction", "down", "", "share of a first letter that latents of words carry", True),
        Metric("mean_full_absorption", "down", "", "share of words whose first letter one other latent carries alone"),
        Metric("absorption_fraction_centred", "down", "", "the first, out of x - b_dec instead of x", True),
        Metric("full_absorption_centred", "down", "", "the second, out of x - b_dec instead of x"),
        Metric("num_split_latents", None, "", "latents that stand for one letter, mean over letters"),
        Metric("split_latents_f1", "up", "", "F1 of a letter's latents at telling its words, mean over letters", True),
        Metric("letters_scored", None, "", f"letters whose probe on x has an F1 above {MIN_F1}"),
        Metric("probe_f1", None, "", "F1 of the probes on x, mean over all letters"),
    )

    @classmethod
    def read(cls, settings: TextSettings) -> FirstLetters:
        return FirstLetters(settings.absorption_words, DEFINITIONS)

    def update(
        self, passages: LetterWords, x: Float[Tensor, "n D"], sae: SparseAutoencoder, of_site: LetterProbes
    ) -> None:
        self.words, self.probes = passages, of_site
        self.letters = letters_of(sae, x, passages, of_site)

    def finish(self) -> Result:
        found, note = list(self.letters.values()), None
        if len(found) < USUAL_LETTERS:
            note = f"probes on x find {len(found)} letters; SAEBench wants {USUAL_LETTERS}"
        n_words = int(self.probes.found[list(self.letters)].sum())

        by_letter = {name: [float(one.absorbed[name].mean()) for one in found] for name in ABSORBED}
        by_letter["num_split_latents"] = [float(len(one.split)) for one in found]
        by_letter["split_latents_f1"] = [one.f1 for one in found]
        scores = {
            name: Score(float(np.mean(of)), mean_stderr(np.array(of)), n_words, f"{name} / letters", note)
            if found
            else Score(None, None, 0, note=note)
            for name, of in by_letter.items()
        }
        by_letter["letters"] = [1.0] * len(found)
        tested = self.words.letter[~self.words.trained]
        f1 = self.probes.f1[np.unique(tested)]
        scores["letters_scored"] = Score(float(len(found)), None, n_words)
        scores["probe_f1"] = Score(float(f1.mean()), mean_stderr(f1), len(tested))
        words = hashlib.sha256("\n".join(self.words.words).encode()).hexdigest()
        return Result(
            scores,
            by_letter if found else {},
            details={
                "words": len(self.words.words),
                "words_sha256": words,
                "letters": {LETTERS[i]: self._row(i, letter) for i, letter in self.letters.items()},
            },
            caption=(
                f"absorption of {len(found)} first letters, ± over letters; probes on x have an F1 of "
                f"{scores['probe_f1'].value:.2f}. It is low, too, where split_latents_f1 is: nothing is there to absorb"
            ),
        )

    def _row(self, i: int, letter: Letter) -> dict[str, Any]:
        """What the record says of a letter."""
        return {
            "probe_f1": float(self.probes.f1[i]),
            "words": int(self.probes.found[i].sum()),
            "split_latents": list(letter.split),
            "split_latents_f1": letter.f1,
            **{name: float(values.mean()) for name, values in letter.absorbed.items()},
        }


def letters_of(
    sae: SparseAutoencoder, x: Float[Tensor, "n D"], words: LetterWords, probes: LetterProbes
) -> dict[int, Letter]:
    """What an SAE makes of every letter that is scored."""
    f = activations(sae, x)
    scaled, W_dec = csr_array(f / probes.scale), sae.W_dec.detach()
    projection, offset = (of.detach().cpu().double().numpy() @ probes.direction.T for of in (x, sae.b_dec))
    directions = torch.from_numpy(probes.direction).to(W_dec)
    cosine = (W_dec @ directions.T / W_dec.norm(dim=1, keepdim=True).clamp(min=1e-30)).cpu().double().numpy()
    letters = {}
    for i in np.flatnonzero((probes.f1 > MIN_F1) & probes.found.any(1)):
        split, f1 = split_latents(scaled, words.letter == i, words.trained, signed=sae.signed)
        found = probes.found[i]
        of_words = projection[found, i]
        absorbed = [
            values.astype(float)
            for out_of in (of_words, of_words - offset[i])
            for values in absorption(f[found].toarray(), cosine[:, i], out_of, split)
        ]
        letters[int(i)] = Letter(split, f1, dict(zip(ABSORBED, absorbed, strict=True)))
    return letters


@torch.no_grad()
def activations(sae: SparseAutoencoder, x: Float[Tensor, "n D"]) -> csr_array:
    """Activations of an SAE's latents [n, F], in units in which every decoder row has norm one."""
    norms = sae.W_dec.norm(dim=1)
    parts = []
    for some in x.split(ENCODED_AT_ONCE):
        f = sae.encode(some)
        dense = f.to_dense() if isinstance(f, Active) else f
        parts.append(csr_array((dense * norms).cpu().double().numpy()))
    return vstack(parts, format="csr")


def split_latents(
    f: csr_array, own: Bool[ndarray, " n"], trained: Bool[ndarray, " n"], *, signed: bool = False
) -> tuple[list[int], float]:
    """The latents that stand for a letter, and the test F1 of a logistic probe on them.

    They are those of largest weight in a logistic probe with an L1 penalty: one, two and so on up to ten, as long as
    each raises F1 by more than .03. Where no weight is above zero there are none, and F1 is 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    n, n_others = trained.sum(), (~own[trained]).sum()
    c = 2 * n_others / n**2 / L1_DECAY  # what L1_DECAY beside the mean loss is to scikit-learn, which balances a sum
    sought = LogisticRegression(l1_ratio=1, C=c, class_weight="balanced", solver="liblinear", random_state=0)
    weight = sought.fit(f[trained], own[trained]).coef_[0]
    weight = np.abs(weight) if signed else weight
    order = [int(i) for i in np.argsort(-weight, kind="stable")[:MAX_SPLIT] if weight[i] > 0]

    def f1_of(latents: Sequence[int]) -> float:
        some = f[:, latents].toarray()
        probe = LogisticRegression(class_weight="balanced", max_iter=500).fit(some[trained], own[trained])
        return float(f1_score(own[~trained], probe.predict(some[~trained]), zero_division=0.0))

    k, f1 = rising(f1_of(order[: k + 1]) for k in range(len(order)))
    return order[:k], f1


def rising(f1: Iterable[float]) -> tuple[int, float]:
    """How many values stand before the first that is not .03 above the one before it, and the last of them."""
    n, best = 0, 0.0
    for value in f1:
        if n and value <= best + F1_RISE:
            break
        n, best = n + 1, value
    return n, best


def absorption(
    f: Float[ndarray, "m F"], cosine: Float[ndarray, " F"], projection: Float[ndarray, " m"], split: Sequence[int]
) -> tuple[Float[ndarray, " m"], Bool[ndarray, " m"]]:
    """Share of a letter that latents beside its own carry, word by word; and whether a single one carries it instead.

    Args:
        f: activations times the norms of the latents' decoder rows.
        cosine: of the decoder rows with the letter's direction.
        projection: of the words' activations on that direction, at its norm one.
        split: the letter's own latents.
    """
    carried = f * cosine
    aligned = np.sign(f) * cosine  # of what a latent writes: f may have a sign
    own = carried[:, split].sum(1)
    others = np.where((aligned >= FRACTION_COSINE) & (carried > 0), carried, 0.0)
    others[:, split] = 0.0
    absorbers = np.sort(others, axis=1)[:, -ABSORBERS:].sum(1)
    some = (projection > 0) & (own < projection) & (absorbers >= SHARE * projection)
    fraction = np.zeros(len(f))
    fraction[some & (own <= 0)] = 1.0
    partly = some & (own > 0)
    absorbed = np.minimum(absorbers, projection - own)[partly]
    fraction[partly] = absorbed / (absorbed + own[partly])

    largest = np.arange(len(f)), carried.argmax(1)
    silent = (np.abs(f[:, split]) < FIRES).all(1)
    enough = (projection > 0) & (carried[largest] >= SHARE * projection)
    return fraction, silent & enough & (aligned[largest] >= FULL_COSINE)
