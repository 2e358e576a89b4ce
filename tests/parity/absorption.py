"""Does SAEBench find the same absorption in our SAEs, on the same words, activations, probes and split latents?

    python tests/parity/run.py            # trains the SAEs
    python tests/parity/absorption.py     # or both: make parity

Prints a table, writes ABSORPTION.md beside this file with --write, and fails where a bound does not hold.
"""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import torch
from common import LAYER, Worker, application, machine, scratch
from rows import Row, as_table, say
from safetensors.torch import save_file
from scores import folder_of, score_row
from torch import Tensor

from sae_bench import TASKS, LetterProbes, LetterWords
from sae_bench.evaluation.text_loop import positions_of
from sae_bench.lm.load import load_language_model
from sae_bench.lm.sites import find_site
from sae_bench.probing.first_letters import EXAMPLES, LETTERS, LINE, FirstLetters
from sae_bench.runs.provenance import own_version
from sae_bench.saes.save import load_sae

PER_LETTER = 40
SCORED = ("relu", "topk", "jumprelu")
BOUND = 1e-4
N_LISTS = 200

app = application(__doc__)


@app.default
def main(*, write: bool = False) -> int:
    """Compare."""
    work = scratch() / "parity"
    words, x = captured()
    save_file({f" {word}": row.clone() for word, row in zip(words.words, x, strict=True)}, work / "words.safetensors")
    probes = LetterProbes.fit(x.double().numpy(), words.letter, words.trained)
    rows = []
    with Worker("sae_bench_absorption", {"threads": os.cpu_count() or 1}) as worker:
        rows += [*prompts(worker, words), *split_counts(worker)]
        for arch in SCORED:
            say(f"SAEBench's absorption of {arch}")
            rows += compared(worker, work, arch, words, x, probes)
        versions = own_version() | worker.versions
    return report(rows, versions, write=write)


@torch.no_grad()
def captured() -> tuple[LetterWords, Tensor]:
    """Words of the demo model's vocabulary, and their activations."""
    lm = load_language_model("demo", device="cpu", dtype=torch.float32)
    site = find_site(lm.model, "resid_post", LAYER)
    (words,) = FirstLetters(PER_LETTER, "parity").passages(lm.tokenizer, lm.max_context)
    return words, positions_of(lm, words, [site])[site]


def prompts(worker: Worker, words: LetterWords) -> Iterator[Row]:
    """A prompt of SAEBench's is one of ours, with what follows the word."""
    *examples, word = words.words[: EXAMPLES + 1]
    theirs = worker.ask(word=f" {word}", examples=[f" {example}" for example in examples])["prompt"]
    ours = "".join(LINE.format(word=one, letter=one[0].upper()) for one in (*examples, word)).removesuffix(
        f" {word[0].upper()}"
    )
    yield Row("the prompt of a word", ("", "the same" if ours == theirs else "another", "", ""), ours == theirs)


def split_counts(worker: Worker) -> Iterator[Row]:
    """How many latents are a letter's, of lists of F1 that rise and fall."""
    draw, rising = random.Random(0), task_module().rising
    lists = [[0.4 + 0.02 * k + 0.1 * draw.random() for k in range(10)] for _ in range(N_LISTS)]
    same = sum(rising(f1)[0] == worker.ask(f1=f1)["n"] for f1 in lists)
    cells = (f"{same}", f"of {N_LISTS} alike", "", "all")
    yield Row("numbers of split latents", cells, same == N_LISTS)


def compared(
    worker: Worker, work: Path, arch: str, words: LetterWords, x: Tensor, probes: LetterProbes
) -> Iterator[Row]:
    """Every word of an SAE, and its means over letters."""
    folder = work / "run" / "saes" / folder_of(work / "run", arch)
    letters = task_module().letters_of(load_sae(folder, torch.device("cpu")), x, words, probes)
    asked = {
        LETTERS[i]: {
            "words": [f" {words.words[j]}" for j in probes.found[i].nonzero()[0]],
            "direction": probes.direction[i].tolist(), "split": list(letter.split),
        }
        for i, letter in letters.items()
    }  # fmt: skip
    theirs = worker.ask(sae=str(folder), words=str(work / "words.safetensors"), letters=asked)
    for ours, name, mean in (
        ("mean_absorption_fraction", "fraction", "mean_absorption_fraction"),
        ("mean_full_absorption", "full", "full_absorption_rate"),
    ):
        found = {
            word: float(value)
            for i, letter in letters.items()
            for word, value in zip(asked[LETTERS[i]]["words"], letter.absorbed[ours], strict=True)
        }
        differ = sum(abs(found[word] - float(value)) > BOUND for word, value in theirs[name].items())
        cells = (f"{len(found)}", f"{len(theirs[name])}", f"{differ}", "0")
        yield Row(f"{arch}: {ours}, words that differ", cells, differ == 0 and set(found) == set(theirs[name]))
        value = sum(float(letter.absorbed[ours].mean()) for letter in letters.values()) / len(letters)
        yield score_row(f"{arch}: {ours}", value, theirs["means"][mean], BOUND)


def task_module() -> Any:
    """The module of the task, whose functions are compared."""
    return sys.modules[TASKS["absorption"].__module__]


def report(rows: list[Row], versions: dict[str, str], *, write: bool) -> int:
    """Print the table; 1 if a bound does not hold."""
    used = ", ".join(f"{name} {number}" for name, number in versions.items())
    text = "\n\n".join(
        [
            "# Absorption beside SAEBench's",
            f"Gemma 3 270M, residual stream after layer {LAYER}, float32; {PER_LETTER} words of each letter, SAEs of "
            "`make parity`. Words, activations, probes and split latents are ours on both sides; what is made of them "
            "is each side's own. Written by `python tests/parity/absorption.py --write`.",
            as_table(rows, ["ours", "SAEBench", "difference", "bound"]),
            f"{machine()}. {used}.",
        ]
    )
    print(text)
    if write:
        (Path(__file__).parent / "ABSORPTION.md").write_text(text + "\n")
    broken = [row.what for row in rows if not row.holds]
    for what in broken:
        print(f"DIFFERS: {what}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(app())
