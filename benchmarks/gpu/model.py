"""A language model made from its configuration with random weights, a tokenizer and a text that are on every machine.

The tokenizer is trained on the docstrings of Python's standard library, which are the text, too.
"""

import ast
import json
import os
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from gpu.scale import Scale
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.tokens import Split, TokenStream

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
N_WORDS = 8192
ENOUGH = 2000
"""Docstrings that will do."""
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


@dataclass(frozen=True)
class Text:
    """The corpus as a file, and the tokenizer made for it."""

    corpus: Path
    tokenizer: PreTrainedTokenizerFast


def make_text(scale: Scale) -> Text:
    """The docstrings of the standard library, one in a line, and a byte-level BPE trained on them; made once."""
    scale.scratch.mkdir(parents=True, exist_ok=True)
    corpus, file = scale.scratch / "docstrings.jsonl", scale.scratch / "tokenizer.json"
    if not corpus.exists():
        texts = standard_library(scale.n_texts)
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    if not file.exists():
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(
            vocab_size=min(N_WORDS, scale.model["vocab_size"]),
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator((json.loads(line)["text"] for line in corpus.open()), trainer)
        bos = ("<bos>", SPECIAL.index("<bos>"))
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])  # type: ignore[assignment]
        backend.save(str(file))
    names: dict[str, Any] = {f"{token.strip('<>')}_token": token for token in SPECIAL}
    longest = scale.model["max_position_embeddings"]
    return Text(corpus, PreTrainedTokenizerFast(tokenizer_file=str(file), model_max_length=longest, **names))


def standard_library(most: int, min_characters: int = 200) -> list[str]:
    """The distinct docstrings of Python's standard library, in order of path and line, up to a number of them.

    Where it is installed in part only, torch's come after them.
    """
    found: dict[str, None] = {}
    roots = Path(sysconfig.get_paths()["stdlib"]), Path(torch.__file__).parent
    for path in chain.from_iterable(map(source_files, roots)):
        if len(found) >= ENOUGH and path.is_relative_to(roots[1]):
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue  # templates, and syntax of other versions
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) >= min_characters:
                    found.setdefault(text)
        if len(found) >= most:
            break
    return list(found)[:most]


def source_files(root: Path) -> Iterator[Path]:
    """Python files below a folder, without those of other people's packages."""
    for folder, below, names in os.walk(root):
        below[:] = sorted(set(below) - LEFT_OUT)
        yield from (Path(folder) / name for name in sorted(names) if name.endswith(".py"))


def random_model(scale: Scale, *, layers: int | None = None, dtype: torch.dtype | None = None) -> Any:
    """A Gemma 2 with the weights that its configuration draws, made on the device; `layers`: as many and no more."""
    ids = {f"{token.strip('<>')}_token_id": i for i, token in enumerate(SPECIAL)}
    del ids["unk_token_id"]
    config = AutoConfig.for_model(
        **(dict(scale.model) | ids | ({} if layers is None else {"num_hidden_layers": layers}))
    )
    torch.manual_seed(0)
    with scale.device:
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype or scale.model_dtype,
            attn_implementation="eager",  # the other kernels cannot soft-cap
        )
    return model.eval().requires_grad_(False)


def language_model(
    scale: Scale, text: Text, *, layers: int | None = None, dtype: torch.dtype | None = None
) -> LanguageModel:
    """The model as the harness has it."""
    return LanguageModel(random_model(scale, dtype=dtype), text.tokenizer, "random Gemma 2")


def stream(lm: LanguageModel, text: Text, scale: Scale, split: Split, n_tokens: int) -> TokenStream:
    """Tokens of the text."""
    return TokenStream(
        str(text.corpus), lm.tokenizer, split=split, context_size=scale.context, n_tokens=n_tokens, order_seed=0
    )
