"""Fixtures shared by the tests: everything is tiny, made on the spot, and stays in a temporary folder."""

import dataclasses
import inspect
import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from beartype.claw import beartype_package
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
FOLDERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]


def modules_with(*words: str) -> tuple[str, ...]:
    """Our modules in whose text one of these words is."""
    return tuple(
        ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts])
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
        if any(word in path.read_text() for word in words)
    )


# Annotations are checked in tests and free in production. A float may be an int, as mypy has it. jaxtyping, which knows
# shapes, takes twenty times longer for a call than beartype. It has those modules, too, that import for mypy alone what
# they annotate, and Ray's actors, for beartype changes a class in ways that Ray does not take.
BY_JAXTYPING = (*modules_with("jaxtyping", "TYPE_CHECKING"), "sae_bench.distributed")
LIKE_MYPY = BeartypeConf(
    is_pep484_tower=True, claw_is_pep526=False, claw_skip_package_names=BY_JAXTYPING, violation_type=TypeError
)
typechecker = beartype(conf=LIKE_MYPY)
checks_shapes = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """As jaxtyping's own, of what is annotated with shapes; beartype alone checks the rest of those modules."""

    def checked(of: Any) -> Any:
        function = of.__init__ if isinstance(of, type) else getattr(of, "fget", getattr(of, "__func__", of))
        annotations = inspect.get_annotations(function).values()
        if any(isinstance(kind, str) or "jaxtyping" in str(kind) for kind in annotations):
            return checks_shapes(of, typechecker=typechecker)
        if not isinstance(of, type):
            return typechecker(of)
        if dataclasses.is_dataclass(of):
            of.__init__ = typechecker(function)
        return of

    return checked


jaxtyping.jaxtyped = jaxtyped  # by this name, what is imported asks for it
jaxtyping.install_import_hook(BY_JAXTYPING, "conftest.typechecker")
beartype_package("sae_bench", conf=LIKE_MYPY)

from command import write_corpus  # noqa: E402  (after the hook)
from fake_judge import FakeJudge, fake_judge  # noqa: E402
from hostile_judge import HostileJudge, hostile_judge  # noqa: E402
from tiny import save_tiny  # noqa: E402

from sae_bench.registry import ARCHITECTURES, CORPORA, MODELS, SCORERS, TASKS  # noqa: E402

os.environ.pop("COLUMNS", None)  # of xdist's workers, in which nothing is a terminal
torch.set_num_threads(1)  # everything is tiny, and machines are shared

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


@pytest.fixture(scope="session")
def gemma2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 2, saved as a downloaded model is."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-gemma2")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in words that the tiny models know."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJudge]:
    """A judge to ask, on a port of its own; nobody waits between two tries."""
    monkeypatch.setattr("sae_bench.autointerp.client.pause", lambda n_lost: 0.01)
    with fake_judge() as judge:
        yield judge


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge is asked twice at most, and hardly a pause between."""
    monkeypatch.setattr("sae_bench.autointerp.client.pause", lambda n_lost: 0.01)
    monkeypatch.setattr("sae_bench.autointerp.client.MAX_RETRIES", 1)


@pytest.fixture
def hostile() -> Iterator[HostileJudge]:
    """A judge that means harm; a test says how."""
    with hostile_judge(lambda request, body: None) as judge:
        yield judge


@contextmanager
def forgotten() -> Iterator[None]:
    """What is registered within this block is gone behind it.

    What is built in or installed stays where it was loaded within: it registers itself when it is imported, and that
    happens once in a process.
    """
    registries = (ARCHITECTURES, TASKS, SCORERS, MODELS, CORPORA)
    before = [{*registry._classes} for registry in registries]
    yield
    for registry, names in zip(registries, before, strict=True):
        for name in {*registry._classes} - names - registry._modules().keys():
            del registry._classes[name]


@pytest.fixture(scope="module", autouse=True)
def own_plugins() -> Iterator[None]:
    """What a module's tests register is gone with them: "all" architectures are the same for every module."""
    with forgotten():
        yield


@pytest.fixture
def own_plugins_of_a_test() -> Iterator[None]:
    """What one test registers is gone with it. To be named before `monkeypatch`, which may change what is built in."""
    with forgotten():
        yield


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A module's tests run in a folder of their own, and nothing they make enters the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.chdir(folder := tmp_path_factory.mktemp("work"))
        yield folder
