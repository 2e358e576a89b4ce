"""The labelled texts of `sparse_probing`, as the harness takes text: tokens, positions, and probes that SAEs share."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_bench.errors import UserError
from sae_bench.evaluation.settings import TextSettings
from sae_bench.evaluation.task import OwnText, Passages
from sae_bench.lm.tokens import opening_id, special_ids
from sae_bench.probing.probe import ProbeScores, Split, check_sklearn, fit_probe
from sae_bench.probing.sets import ProbeSet, own_set, package_sets
from sae_bench.probing.sparse import Ranked, ranked_latents, standardised
from sae_bench.records.files import digest_of
from sae_bench.saes.base import SparseAutoencoder

MAX_TOKENS = 1024
"""The longest context; longer texts lose their beginning."""


@dataclass(frozen=True)
class LabelledPassages(Passages):
    """The texts of a set; what is wanted of each is its last token."""

    set: ProbeSet | None = None
    split: Split | None = None

    @property
    def name(self) -> str:
        return self._both[0].name

    @property
    def _both(self) -> tuple[ProbeSet, Split]:
        assert self.set is not None
        assert self.split is not None
        return self.set, self.split

    @property
    def n_train(self) -> int:
        return len(self._both[1].train)

    @property
    def n_test(self) -> int:
        return len(self._both[1].test)

    @property
    def n_repeated(self) -> int:
        """Test texts that are among the training texts, too: the sets are taken as they are."""
        texts, split = self._both[0].texts, self._both[1]
        seen = {texts[i] for i in split.train}
        return sum(texts[i] in seen for i in split.test)

    def ranked(self, sae: SparseAutoencoder, x: Float[Tensor, "n D"], k: int) -> Ranked:
        """The k latents that tell the labels apart best."""
        return ranked_latents(sae, x, self._both[0].labels, self._both[1], k)

    def sparse_probe(self, ranked: Ranked, k: int) -> ProbeScores:
        """A probe with L1 penalty on the first k of them."""
        return fit_probe(ranked.columns[:, :k], self._both[0].labels, self._both[1], "l1")

    def dense_probe(self, x: Float[Tensor, "n D"]) -> ProbeScores:
        """A probe with L2 penalty on all of x."""
        return fit_probe(standardised(x, self._both[1]), self._both[0].labels, self._both[1], "l2")


class ProbeTexts(OwnText):
    """Some labelled sets."""

    def __init__(self, sets: Sequence[ProbeSet]) -> None:
        self.sets = sets

    @staticmethod
    def chosen(settings: TextSettings) -> "ProbeTexts":
        """Those that a run's settings name.

        Raises:
            UserError: scikit-learn or a set is missing, or a file is not what it should be.
        """
        check_sklearn()
        names = settings.probe_sets or (() if settings.probe_set else ("small",))
        sets = [*(package_sets(names) if names else ()), *map(own_set, settings.probe_set)]
        known = [one.name for one in sets]
        for name in known:
            if known.count(name) > 1:
                raise UserError(f'--probe-set: two sets are called "{name}": rename a file')
        return ProbeTexts(sets)

    @property
    def identity(self) -> Mapping[str, str]:
        return {"probe sets": digest_of({one.name: one.sha256 for one in self.sets})}

    def describe(self) -> str:
        n_texts = sum(len(one.texts) for one in self.sets)
        shown = ", ".join(one.name for one in self.sets[:3]) + (", ..." if len(self.sets) > 3 else "")
        n_words = sum(len(text) for one in self.sets for text in one.texts)
        return f"{len(self.sets)} sets of {n_texts:,} texts, {n_words / 1e6:.2g} million characters ({shown})"

    def passages(self, tokenizer: PreTrainedTokenizerBase, max_context: int) -> Iterator[LabelledPassages]:
        first, special = opening_id(tokenizer), special_ids(tokenizer)
        room = min(MAX_TOKENS, max_context) - 1
        for one in self.sets:
            encoded = tokenizer(list(one.texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
            kept = ([i for i in ids if i not in special][-room:] for ids in encoded["input_ids"])
            yield LabelledPassages([array("q", [first, *ids]) for ids in kept], set=one, split=Split.of(one.labels))

    def of_site(self, passages: Passages, x: Float[Tensor, "n D"]) -> Any:
        assert isinstance(passages, LabelledPassages)
        return passages.dense_probe(x)
