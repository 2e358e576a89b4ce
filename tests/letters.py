"""A tokenizer that knows made-up words by their first letters, and lines that name these in four tokens."""

import itertools
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ASKED = "ĠhasĠtheĠfirstĠletter:"


def made_up(letters: str, n: int) -> list[str]:
    """So many words of each letter."""
    ends = ["".join(end) for end in itertools.islice(itertools.product("aeiou", "bdgklmnrst", "aeiou"), n)]
    return [letter + end for letter in letters for end in ends]


def letter_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Whole words are its tokens, with the space before them; unknown is what is neither word, capital nor prompt."""
    tokens = ["<bos>", "<unk>", "\n", ASKED, *(f"Ġ{word}" for word in words)]
    tokens += [f"Ġ{chr(i)}" for i in range(ord("A"), ord("Z") + 1)]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(dict.fromkeys(tokens))}, "<unk>"))
    backend.normalizer = normalizers.Replace(" ", "Ġ")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{ASKED}|\n|Ġ[^Ġ\n]+"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", unk_token="<unk>")
