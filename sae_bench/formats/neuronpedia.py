"""Neuronpedia's bundle of one source: what was collected of an SAE's latents, as its importer reads it.

    MODEL/LAYER-SET/model.jsonl, release.jsonl, sourceset.jsonl, source.jsonl
                    features/batch-0.jsonl.gz, activations/..., explanations/...

A line is a row of Neuronpedia's database. The importer takes a file's columns from its first line, so all lines have
the same. docs/formats.md says which version of it this is, and what of our latents has no place there.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from sae_bench.errors import UserError, did_you_mean
from sae_bench.records.files import read_sealed, write_bytes
from sae_bench.records.names import TRUE_NAMES, file_name
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Record

FORMAT = "neuronpedia"

CREATOR = "clkht01d40000jv08hvalcvly"
"""The user that exports and imports of Neuronpedia name where there is no other."""
BATCH = 1024
"""Latents in a file."""
HOOKS = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_add": "hook_attn_out", "attn_out": "hook_z"}
SHORT = {"resid_post": "res", "mlp_out": "mlp", "attn_add": "att", "attn_out": "att-z"}
TOP = -1.0
"""What stands for an interval of the strongest activations, which are of none."""
DECILE = 0.1

Row = dict[str, Any]


def export(run: Path, out: Path, wanted: Sequence[str] = ()) -> list[Path]:
    """Write a bundle for every SAE of a run that has collected latents, or for those that are wanted.

    Raises:
        UserError: there is no run, no such SAE, none with latents, or one whose site has no layer.
    """
    folder = RunFolder(run)
    by_sae = {record.sae.id: record for record in folder.records()}
    if not by_sae:
        raise UserError(f"{run} holds no records: give the folder of a finished run")
    for name in wanted:
        if name not in by_sae:
            raise UserError(f'{run} has no SAE "{name}"{did_you_mean(name, by_sae)}')
    bundles = {}
    for name, record in by_sae.items():
        if wanted and name not in wanted:
            continue
        if paths := sorted(folder.latents_path(name).glob("*.json"), key=lambda path: int(path.stem)):
            bundles[name] = _Bundle(record, (folder.collection(name) or {}).get("tokens")), paths
        elif wanted:
            raise UserError(f"{name} has no collected latents: run the same command again with --latents 100")
    if not bundles:
        raise UserError(f"{run} holds no latents: run the same command again with --latents 100")
    return [bundle.write(out, map(read_sealed, paths)) for bundle, paths in bundles.values()]


class _Bundle:
    """One SAE as a source of Neuronpedia, and its rows."""

    def __init__(self, record: Record, n_tokens: int | None) -> None:
        sae, made = record.sae, record.provenance
        if sae.site.layer is None:
            raise UserError(f"{sae.id} sits at {sae.site.name}, which has no layer, as ids of Neuronpedia do: leave it "
                            "out by naming others with --sae")  # fmt: skip
        self.record, self.layer, self.n_tokens = record, sae.site.layer, n_tokens
        known = TRUE_NAMES.get(made.model, made.model).rpartition("/")[2]
        self.model = file_name(known.replace(" ", "-").lower())
        kind = SHORT.get(sae.site.kind, sae.site.kind)
        target = "" if sae.target is None else f"-l0-{sae.target:g}"
        seed = "" if sae.seed is None else f"-s{sae.seed}"
        name = f"{sae.label}-{kind}-{sae.d_sae}{target}{seed}"
        self.set = "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in name).split())
        self.source = f"{self.layer}-{self.set}"
        self.release = f"sae-arch-bench-{made.config_hash[:8]}"
        self.when = made.time or "1970-01-01T00:00:00+00:00"
        self.place = {"modelId": self.model, "layer": self.source}

    def write(self, out: Path, latents: Iterable[Mapping[str, Any]]) -> Path:
        """Write the bundle; returns its folder."""
        folder = out / self.model / self.source
        for name, row in self._about().items():
            write_bytes(folder / f"{name}.jsonl", _lines([row]))
        everything = list(latents)
        for start in range(0, len(everything), BATCH):
            batch = everything[start : start + BATCH]
            rows = {
                "features": [self._feature(latent) for latent in batch],
                "activations": [row for latent in batch for row in self._activations(latent)],
                "explanations": [self._explanation(latent) for latent in batch if latent["explanation"]],
            }
            for name, of in rows.items():
                if of:
                    packed = gzip.compress(_lines(of), mtime=0)
                    write_bytes(folder / name / f"batch-{start // BATCH}.jsonl.gz", packed)
        return folder

    def _about(self) -> dict[str, Row]:
        sae, made = self.record.sae, self.record.provenance
        creator = {"creatorId": CREATOR, "createdAt": self.when}
        what = f"{sae.label} SAE at {sae.site.name}, {sae.d_sae} latents"
        size = made.config.get("context_size")
        return {
            "model": {"id": self.model, "instruct": self.model.endswith("-it"), "displayNameShort": self.model,
                      "displayName": self.model, "defaultSourceSetName": self.set, "inferenceEnabled": False,
                      "visibility": "PUBLIC", "updatedAt": self.when, **creator},
            "release": {"name": self.release, "description": f"SAEs of one run of sae-arch-bench ({made.preset})",
                        "descriptionShort": "sae-arch-bench", "creatorName": "sae-arch-bench", "urls": [],
                        "creatorNameShort": "sae-arch-bench", "defaultSourceSetName": self.set,
                        "visibility": "PUBLIC", **creator},
            "sourceset": {"modelId": self.model, "name": self.set, "description": what, "type": "",
                          "creatorName": "sae-arch-bench", "urls": [], "releaseName": self.release,
                          "hasDashboards": True, "visibility": "PUBLIC", **creator},
            "source": {"id": self.source, "modelId": self.model, "setName": self.set, "dataset": made.dataset,
                       "num_prompts": self.n_tokens // (size - 1) if self.n_tokens and size else None,
                       "num_tokens_in_prompt": size,
                       "hasDashboards": True, "inferenceEnabled": False, "visibility": "PUBLIC",
                       "notes": f"sae-arch-bench: {sae.id}, weights {sae.weights_sha256[:12]}", **creator},
        }  # fmt: skip

    def _feature(self, latent: Mapping[str, Any]) -> Row:
        logits = latent["logits"] or {"top": [], "bottom": []}
        edges = latent["histogram"]["edges"]
        hook = HOOKS.get(self.record.sae.site.kind)
        return {
            **self.place, "index": str(latent["latent"]), "creatorId": CREATOR, "createdAt": self.when,
            "sourceSetName": self.set, "maxActApprox": latent["max"],
            "frac_nonzero": latent["n_fired"] / latent["n_tokens"] if latent["n_tokens"] else 0.0,
            "freq_hist_data_bar_heights": latent["histogram"]["counts"],
            "freq_hist_data_bar_values": [(low + high) / 2 for low, high in pairwise(edges)],
            "pos_str": [word for word, _ in logits["top"]], "pos_values": [value for _, value in logits["top"]],
            "neg_str": [word for word, _ in logits["bottom"]], "neg_values": [value for _, value in logits["bottom"]],
            "hasVector": False, "vector": [], "hookName": hook and f"blocks.{self.layer}.{hook}",
        }  # fmt: skip

    def _activations(self, latent: Mapping[str, Any]) -> Iterator[Row]:
        """The excerpts in which it fires: the strongest, and a sample of the others by decile of their peak."""
        firing = [one for one in latent["examples"] if one["kind"] in ("top", "decile")]
        peaks: dict[int | None, list[float]] = {}
        for one in firing:
            peaks.setdefault(one["decile"], []).append(max(one["activations"]))
        for i, one in enumerate(firing):
            values, decile = one["activations"], one["decile"]
            of_top = one["kind"] == "top" or decile is None
            peak = max(values)
            yield {
                "id": self._id("activation", latent["latent"], i), **self.place, "index": str(latent["latent"]),
                "tokens": one["tokens"], "values": values, "maxValue": peak, "minValue": min(values),
                "maxValueTokenIndex": values.index(peak), "qualifyingTokenIndex": values.index(peak),
                "binMin": TOP if of_top else min(peaks[decile]),
                "binMax": latent["max"] if of_top else max(peaks[decile]),
                "binContains": TOP if of_top else DECILE, "creatorId": CREATOR, "createdAt": self.when,
            }  # fmt: skip

    def _explanation(self, latent: Mapping[str, Any]) -> Row:
        scores = [f"{name} {of['value']:.3f}" for name, of in latent["scores"].items() if of["value"] is not None]
        return {
            "id": self._id("explanation", latent["latent"]), **self.place, "index": str(latent["latent"]),
            "description": latent["explanation"], "authorId": CREATOR, "createdAt": self.when, "updatedAt": self.when,
            "notes": "; ".join([f"by {latent['explainer']}", *scores]),
        }  # fmt: skip

    def _id(self, *what: object) -> str:
        """An id in the form of theirs, the same every time."""
        named = "\0".join(map(str, (self.model, self.source, self.release, *what)))
        return f"c{sha256(named.encode()).hexdigest()[:24]}"


def _lines(rows: Iterable[Row]) -> bytes:
    """JSON, a row on a line; their database takes no zero byte."""
    text = "".join(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for row in rows)
    return text.replace("\\u0000", "\\ufffd").encode()
