"""Pooled metrics: numerators and denominators summed over ALL tokens, divided once.

Sums are kept per document in float64, so that a value does not depend on how tokens were batched, its standard error
is clustered by document, and a later paired comparison between SAEs needs nothing but the records.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae_bench.evaluation.stderr import ratio_stderr
from sae_bench.records.schema import Score


class DocumentSums:
    """Sums of named per-token quantities, per document."""

    def __init__(self, n_documents: int, device: torch.device) -> None:
        self.n_documents, self.device = n_documents, device
        self._sums: dict[str, Float[Tensor, " G"]] = {}

    def add(self, document: Int[Tensor, " n"], values: Mapping[str, Shaped[Tensor, " n"]]) -> None:
        """Add each token's value of each quantity to the token's document."""
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(self.n_documents, dtype=torch.float64, device=self.device)
            self._sums[name].index_add_(0, document, value.double())

    def add_count(self, document: Int[Tensor, " n"], name: str) -> None:
        """Count the tokens of each document."""
        self.add(document, {name: torch.ones(len(document), device=self.device)})

    def total(self, name: str) -> float:
        """The sum over all documents."""
        return float(self._sums[name].sum())

    def ratio(self, numerator: str, denominator: str, n: str, *, one_minus: bool = False) -> Score:
        """sum(numerator) / sum(denominator), or one minus it, with its clustered error; `n` names the token count.

        Undefined, and recorded as such, when the denominator is zero.
        """
        count = int(self.total(n))
        if self.total(denominator) == 0:
            return Score(None, None, count, note=f"undefined: the sum of {denominator} is zero")
        seen = (self._sums[n] > 0).cpu()
        num, den = (self._sums[name].cpu()[seen].numpy() for name in (numerator, denominator))
        value = num.sum() / den.sum()
        sign = "1 - " if one_minus else ""
        return Score(
            float(1 - value if one_minus else value),
            ratio_stderr(num, den),
            count,
            formula=f"{sign}{numerator} / {denominator}",
        )

    def by_document(self) -> dict[str, list[float]]:
        """Every quantity's sum per document, for the record."""
        return {name: sums.tolist() for name, sums in self._sums.items()}


class OctaveSums:
    """Sums of named per-token quantities, by the octave of a whole number that each token has.

    0 and 1, 2 and 3, 4 to 7, and so on; the last octave is open.
    """

    N_OCTAVES = 24

    def __init__(self, device: torch.device) -> None:
        self._begin = [2**octave for octave in range(self.N_OCTAVES)]
        self._sums = DocumentSums(self.N_OCTAVES, device)

    def add(self, number: Int[Tensor, " n"], values: Mapping[str, Shaped[Tensor, " n"]], count: str) -> None:
        """Add each token's value of each quantity to the octave of its number; `count` names how many tokens it has."""
        octave = number.clamp(1, self._begin[-1]).double().log2().long()
        self._sums.add_count(octave, count)
        self._sums.add(octave, values)

    def details(self) -> dict[str, list[int] | list[float]]:
        """Where octaves begin, and the sums of each."""
        return {"from": self._begin, **self._sums.by_document()}
