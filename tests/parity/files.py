"""Latents and reconstructions of every SAE: ours read by other tools, and theirs read by us.

A latent within rounding of its threshold may be on for one side and off for the other. Such flips are counted, at most
one pair in a hundred thousand, and tokens that have one are left out of the differences.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from common import Worker
from places import compare_places
from rows import Row, say
from safetensors.torch import load_file

from sae_bench.formats.export import export, saes_of
from sae_bench.formats.open import find_sources, open_sae
from sae_bench.lm.load import load_language_model
from sae_bench.saes.convert import to_built_in

BOUND = 1e-5
"""Largest difference of a latent or a reconstruction, relative to the largest one."""

SAELENS = {
    "relu": "standard", "gated": "gated", "topk": "topk", "jumprelu": "jumprelu", "abs_topk": "abstopk",
    "matching_pursuit": "matching_pursuit",
}  # fmt: skip
DL = {
    "relu": "AutoEncoderNew", "gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder"
}  # fmt: skip
WRITTEN = {
    ("SAELens", "saelens"): SAELENS,
    ("dictionary_learning", "dictionary_learning"): DL,
    ("sparsify", "sparsify"): {"topk": "sparsify"},
    ("SAELens", "gemma-scope"): {"jumprelu": "gemma_scope"},
    ("SAELens", "gemma-scope-2"): {"jumprelu": "gemma_scope_2"},
}
"""Who reads which of our formats, and what a nonlinearity is called there."""

THEIRS = (
    *(("SAELens", kind) for kind in (*SAELENS.values(), "batchtopk", "matryoshka_batchtopk")),
    *(
        ("dictionary_learning", kind)
        for kind in ("AutoEncoder", *DL.values(), "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
    ),
    ("sparsify", "sparsify"),
    *(("llamascopium", kind) for kind in ("relu", "topk", "jumprelu")),
    *(("SAELens", kind) for kind in ("gemma_scope_2", "qwen_scope", "goodfire", "llama_scope")),
)
NAMES = {
    ("sparsify", "sparsify"): "sparsify", ("SAELens", "batchtopk"): "SAELens's batchtopk, a checkpoint of training",
    ("SAELens", "gemma_scope_2"): "Gemma Scope 2, as SAELens reads it",
    ("SAELens", "qwen_scope"): "Qwen Scope, as SAELens reads it",
    ("SAELens", "goodfire"): "Goodfire, as SAELens reads it",
    ("SAELens", "llama_scope"): "Llama Scope, as SAELens reads it",
}  # fmt: skip
"""What a row is called that is not "TOOL's CLASS"."""

FILES_SAY = (
    f"Largest difference relative to the largest value, which has to stay below {BOUND:g}. Flips are latents within "
    "rounding of their threshold that are on for one side only: at most 1e-5 of all pairs, left out with their tokens."
)


def compare_files(run: Path, work: Path) -> tuple[list[Row], dict[str, str]]:
    """Latents and reconstructions of every SAE, ours read by them and theirs read by us."""
    rows: list[Row] = []
    with (
        Worker("sae_lens_files", {}) as lens, Worker("dictionary_learning_files", {}) as dl,
        Worker("llamascopium_files", {}) as scope,
    ):  # fmt: skip
        workers = {"SAELens": lens, "dictionary_learning": dl, "sparsify": dl, "llamascopium": scope}
        for tool, kind, folder, ours, name in written_by_us(run, work):
            workers[tool].ask(
                do="load", folder=str(folder), kind=kind, x=str(work / "x.safetensors"), out=str(work / "out")
            )
            rows.append(compared(f"our {name}, read by {tool}", run / "saes" / ours, work))
        for tool, kind in THEIRS:
            leaf = "SAE-Res-Qwen3-1.7B-Base-W1K-L0_32" if kind == "qwen_scope" else "layers.9"
            folder = work / "theirs" / f"{tool}.{kind}" / leaf
            workers[tool].ask(do="make", folder=str(folder), kind=kind, x=str(work / "x.safetensors"),
                              out=str(work / "out"), parts=str(work / "parts.safetensors"))  # fmt: skip
            name = NAMES.get((tool, kind), f"{tool}'s {kind}")
            rows.append(compared(f"{name}, read by us", folder, work))
        lm = load_language_model("demo", device="cpu", dtype=torch.float32)
        tokens = load_file(work / "contexts.safetensors")["contexts"]
        for what, mine, theirs, holds in compare_places(lm, tokens, workers, work):
            rows.append(Row(f"{what}: FVE", ("", f"{mine:.6f}", f"{theirs:.6f}", ""), holds))
        return rows, lens.versions | dl.versions | scope.versions


def written_by_us(run: Path, work: Path) -> Iterator[tuple[str, str, Path, str, str]]:
    """Tool, its name for the class, folder, the SAE's id and what to call it, of everything that others shall read."""
    for sae in saes_of(run):
        sae_id, built = str(sae.own["description"]["id"]), to_built_in(sae.build())
        name = sae.arch if sae.arch == built.name else f"{sae.arch}, as {built.name}"
        for (tool, form), kinds in WRITTEN.items():
            if built.nonlinearity not in kinds:
                continue
            folder = run / "saes" / sae_id
            if form != "saelens" or not (folder / "cfg.json").exists():
                (path,) = export(run, form, work / "ours" / form, [sae_id])
                folder = path if path.is_dir() else path.parent
            layout = {"gemma-scope": ", in Gemma Scope's layout", "gemma-scope-2": ", in Gemma Scope 2's layout"}
            yield tool, kinds[built.nonlinearity], folder, sae_id, name + layout.get(form, "")


@torch.no_grad()
def compared(what: str, folder: Path, work: Path) -> Row:
    """Ours against what a worker has just put out."""
    (source,) = find_sources(str(folder))
    sae = open_sae(source).build()
    x, theirs = load_file(work / "x.safetensors")["x"], load_file(work / "out")
    f, x_hat = sae.encode(x).to_dense(), sae(x)  # type: ignore[operator]
    flipped = (f != 0) != (theirs["f"] != 0)
    same = ~flipped.any(1)
    latents, reconstruction = (
        float((a[same] - b[same]).abs().max() / b.abs().max()) for a, b in ((f, theirs["f"]), (x_hat, theirs["x_hat"]))
    )
    share = float(flipped.float().mean())
    holds = latents < BOUND and reconstruction < BOUND and share <= 1e-5
    l0 = float((f != 0).sum(1).float().mean())
    say(f"{what}: L0 {l0:.1f}, latents {latents:.1e}, reconstruction {reconstruction:.1e}, {int(flipped.sum())} flips")
    return Row(what, (f"{l0:.1f}", f"{latents:.1e}", f"{reconstruction:.1e}", str(int(flipped.sum()))), holds)
