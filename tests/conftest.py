"""Fixtures shared by the tests: everything is tiny, made on the spot, and stays in a temporary folder."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "a sparse autoencoder writes an activation as a sum of a few features",
    "numbers 0 1 2 3 4 5 6 7 8 9 and punctuation . , : ; ! ?",
]


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 300 tokens; `special` are its special tokens, numbered in order from 0."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = list(dict.fromkeys(special.values()))
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose BOS has the id 0, which any test on truthiness mistakes for none."""
    return make_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
