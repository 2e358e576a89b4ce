"""Which positions count, and which predict, by hand."""

import torch
from conftest import make_tokenizer
from tiny import tiny_llama

from sae_bench.lm.contexts import Contexts
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.tokens import TokenBatch, special_ids

CPU = torch.device("cpu")


def contexts(tokens: list[list[int]], special: set[int]) -> Contexts:
    document = torch.arange(10 * len(tokens)).view(len(tokens), -1)[:, : len(tokens[0])]
    return Contexts.of(TokenBatch(torch.tensor(tokens), document), frozenset(special), CPU)


def test_a_special_token_does_not_count_nor_predict_nor_is_predicted() -> None:
    found = contexts([[0, 5, 6, 0, 7], [0, 8, 9, 5, 6]], {0})
    assert found.counted.tolist() == [1, 2, 4, 6, 7, 8, 9]
    assert found.document.tolist() == [1, 2, 4, 11, 12, 13, 14]
    assert found.predicts.tolist() == [1, 6, 7, 8], "the last position of a context predicts nothing of the next one"
    assert found.targets.tolist() == [6, 9, 5, 6]
    assert found.target_document.tolist() == [2, 12, 13, 14]


def test_an_opening_is_one_token_for_all_and_the_only_special_one() -> None:
    assert contexts([[3, 5, 6], [3, 7, 8]], {3, 4}).opening == 3
    assert contexts([[3, 5, 6], [4, 7, 8]], {3, 4}).opening is None
    assert contexts([[3, 5, 4], [3, 7, 8]], {3, 4}).opening is None
    assert contexts([[5, 5, 6], [5, 7, 8]], {3, 4}).opening is None


def test_the_model_and_the_streams_agree_on_what_is_special() -> None:
    """A token may be flagged as special in the tokenizer's file and have no role that a list of roles would name."""
    tokenizer = make_tokenizer(bos_token="<bos>", eos_token="<eos>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["fox"]})
    tokenizer._extra_special_tokens = []  # as a file has it that flags the token and names no role
    fox = tokenizer.convert_tokens_to_ids("fox")
    assert fox not in tokenizer.all_special_ids
    assert LanguageModel(tiny_llama(), tokenizer, "tiny").special_ids == special_ids(tokenizer) >= {0, 1, fox}
