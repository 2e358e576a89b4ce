"""Documents of any length in bounded memory: a tokenizer takes some 170 bytes for a character until it is done.

Documents are bound by characters, not by their number: one of 200 MB is taken apart where words end, which no tokenizer
of words notices. What is shorter than `LONG` stays whole, so that its tokens are what they always were.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

IdArray = NDArray[np.int64]

LONG = 2_000_000
"""Characters that are tokenised at once."""


def parts_of(text: str, longest: int | None = None) -> Iterator[str]:
    """The text in parts of at most `longest` characters, by default `LONG`; they begin with the space before a word."""
    longest, begin = longest or LONG, 0
    while len(text) - begin > longest:
        within = begin + 1, begin + longest
        end = max(text.rfind(" ", *within), text.rfind("\n", *within))
        end = end if end > 0 else begin + longest
        yield text[begin:end]
        begin = end
    yield text[begin:]


def batches_of(texts: Iterable[str], most: int) -> Iterator[list[str]]:
    """Texts, up to `most` at once and together no longer than `LONG`, if a single one is not."""
    batch: list[str] = []
    n_characters = 0
    for text in texts:
        if batch and (len(batch) == most or n_characters + len(text) > LONG):
            yield batch
            batch, n_characters = [], 0
        batch.append(text)
        n_characters += len(text)
    if batch:
        yield batch


def encoded_parts(tokenizer: PreTrainedTokenizerBase, batch: list[str], *, whole: bool) -> Iterator[list[IdArray]]:
    """The token ids of each text of a batch; those of a long one, which is alone, part by part unless `whole`."""
    parts = [[part] for part in parts_of(batch[0])] if len(batch) == 1 else [batch]
    found = (_encoded(tokenizer, part) for part in parts)
    if whole and len(parts) > 1:
        yield [np.concatenate([ids for (ids,) in found])]
    else:
        yield from found


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[IdArray]:
    # verbose=False: that a document is longer than the model's context is no reason for a warning here.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]
