"""Do other tools read our files, do we read theirs, and does SAEBench measure what we measure?

    make parity        # or: python tests/parity/run.py

Makes the peers' environments where they are missing, trains every architecture for a few steps on Gemma 3 270M, and
compares: latents and reconstructions on real activations, both ways (`files.py`, `places.py`); then SAEBench's core
evaluation on the very contexts of our records (`scores.py`). Prints the tables, writes RESULTS.md beside this file with
--write, and fails where a bound does not hold.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import torch  # noqa: E402
from common import CONTEXT_SIZE, LAYER, application, machine, scratch  # noqa: E402
from files import FILES_SAY, compare_files  # noqa: E402
from places import WIDTH, K, parts_of  # noqa: E402
from rows import Row, as_table, say  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from scores import N_CONTEXTS, SCORES_SAY, compare_scores  # noqa: E402

from sae_bench.lm.contexts import Contexts  # noqa: E402
from sae_bench.lm.load import load_language_model  # noqa: E402
from sae_bench.lm.losses import token_losses  # noqa: E402
from sae_bench.lm.sites import find_site  # noqa: E402
from sae_bench.records.files import read_json, read_sealed, write_json  # noqa: E402
from sae_bench.runs.config import RunConfig  # noqa: E402
from sae_bench.runs.provenance import own_version  # noqa: E402
from sae_bench.runs.sources import token_stream  # noqa: E402

app = application(__doc__)


@app.default
def main(*, write: bool = False, again: bool = False) -> int:
    """Run everything.

    Parameters
    ----------
    write
        Write RESULTS.md.
    again
        Compare the SAEs that were trained the last time.
    """
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "setup_peers.py", "sae_bench", "dictionary_learning", "llamascopium"],
        check=True,
    )
    work = scratch() / "parity"
    if not again:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        say("training ours")
        trained(work)
        measure(work / "run", work)
    run = work / "run"
    for folder in ("theirs", "ours"):
        shutil.rmtree(work / folder, ignore_errors=True)
    facts = read_json(work / "facts.json")
    say("reading each other's files")
    files, versions = compare_files(run, work)
    scores, more = compare_scores(run, work, facts)
    return report(files, scores, versions | more, write=write)


def trained(work: Path) -> None:
    """Make a run of ours: every architecture, for a few steps, evaluated on the contexts that SAEBench will get."""
    settings = {
        "--arch": "all", "--model": "demo", "--layer": LAYER, "--width": WIDTH, "--l0": K, "--tokens": 1024,
        "--reuse": 16, "--batch-size": 256, "--context-size": CONTEXT_SIZE, "--device": "cpu",
        "--eval-tokens": N_CONTEXTS * (CONTEXT_SIZE - 1), "--out": work / "run", "--emit": "saebench",
        "--dtype": "float32",
    }  # fmt: skip
    arguments = [str(part) for pair in settings.items() for part in pair]
    subprocess.run([sys.executable, ROOT / "bench.py", *arguments], check=True, cwd=ROOT)


@torch.no_grad()
def measure(run: Path, work: Path) -> None:
    """Save the contexts and their raw activations; and what zero ablation costs if the BOS is ablated, too."""
    config = RunConfig(**read_sealed(run / "run.json")["config"])
    lm = load_language_model("demo", device="cpu", dtype=torch.float32)
    site = find_site(lm.model, "resid_post", LAYER)
    (batch,) = token_stream(lm, config, "eval", config.n_held_out).batches(N_CONTEXTS)
    save_file({"contexts": batch.tokens}, work / "contexts.safetensors")
    contexts = Contexts.of(batch, lm.special_ids, lm.device)
    clean = lm.clean_pass(contexts.tokens, [site])
    x = clean.activations[site].flatten(0, 1)[contexts.counted].contiguous()
    save_file({"x": x}, work / "x.safetensors")
    save_file(parts_of(x), work / "parts.safetensors")
    ablated = clean.replay(site, torch.zeros_like(clean.activations[site])).flatten(0, 1)[contexts.predicts]
    losses = token_losses(lm, clean.hidden.flatten(0, 1)[contexts.predicts], [ablated], contexts.targets)
    write_json(work / "facts.json", {"ce_zero_with_bos": float(losses.ce[0].double().mean())})


def report(files: Sequence[Row], scores: Sequence[Row], versions: dict[str, str], *, write: bool) -> int:
    """Print the tables; 1 if a bound does not hold."""
    used = ", ".join(f"{name} {number}" for name, number in (own_version() | versions).items())
    parts = [
        "# Parity",
        f"Gemma 3 270M, residual stream after layer {LAYER}, float32; {N_CONTEXTS} contexts of {CONTEXT_SIZE} tokens "
        f"of the embedded corpus; width {WIDTH}. Written by `python tests/parity/run.py --write`.",
        "## Files",
        FILES_SAY,
        as_table(files, ["L0", "latents", "reconstruction", "flips"]),
        "## SAEBench's core evaluation",
        SCORES_SAY,
        as_table(scores, ["ours", "SAEBench", "difference", "bound"]),
        "## Setting",
        f"{machine()}. {used}.",
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if write:
        (Path(__file__).parent / "RESULTS.md").write_text(text)
    broken = [row.what for row in (*files, *scores) if not row.holds]
    for what in broken:
        print(f"DIFFERS: {what}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(app())
