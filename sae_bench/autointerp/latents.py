"""Latents' files: what was collected of each latent and, once a judge has spoken, its explanation and scores.

One sealed file per latent in `latents/<sae>/`. When all of an SAE's are written, `collections/<sae>.json` says so, with
the settings that they were collected by: collected once, they serve every judge.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.autointerp.examples import Example, LatentExamples, Pieces
from sae_bench.autointerp.sample import CollectedLatent, Collection, Subject
from sae_bench.errors import UserError
from sae_bench.lm.model import LanguageModel
from sae_bench.records import lineage
from sae_bench.records.files import Damaged, as_sealed, read_sealed, write_sealed
from sae_bench.records.ownership import sealed
from sae_bench.records.run_folder import RunFolder

log = logging.getLogger(__name__)

N_LOGITS = 10
RESIDUAL_SITES = ("resid_post", "mlp_out")
"""Sites whose vectors are added to the residual stream, which is what the LM head reads."""

ROWS_AT_ONCE = 64

LatentFile = dict[str, Any]
"""The content of a latent's file."""


def write_latents(folder: RunFolder, lm: LanguageModel, collection: Collection, settings: Mapping[str, Any]) -> None:
    """Write one SAE's latents; what is whole and was collected the same stays, with all that a judge said of it."""
    subject, stream = collection.subject, collection.stream
    latents = [found.latent for found in collection.found]
    earlier = folder.collection(subject.id) or {}
    again = (earlier.get("settings"), earlier.get("latents")) == (as_sealed(settings), latents)
    whole = earlier.get("sha256", {}) if again else {}
    folder.drop_latents(subject.id, but=latents, collection=not again)
    logits = logit_weights(lm, subject, latents)
    digests = {}
    for found, words in zip(collection.found, logits, strict=True):
        name = str(found.latent)
        content = as_sealed(latent_json(subject.id, found, stream.n_delivered, words))
        path = folder.latents_path(subject.id) / f"{name}.json"
        there = (kept := sealed(path)) and lineage.collected_hash(kept)
        # Another machine rounds otherwise: what the collection says of a file counts, too.
        if there is None or there not in (lineage.collected_hash(content), whole.get(name)):
            write_sealed(path, content)
            there = lineage.collected_hash(content)
        digests[name] = there
    content = {
        "settings": dict(settings),
        "latents": latents,
        "sha256": digests,
        "n_eligible": collection.n_eligible,
        "tokens": stream.n_delivered,
        "documents": stream.n_documents,
        "fingerprint": stream.fingerprint,
    }
    write_sealed(folder.collection_path(subject.id), content)


def read_latents(folder: RunFolder, sae_id: str, settings: Mapping[str, Any]) -> list[LatentFile] | None:
    """An SAE's latents, if they were collected by these settings and are whole; a word about one that is not."""
    collection = folder.collection(sae_id)
    if collection is None or collection["settings"] != settings:
        return None
    try:
        return whole_latents(folder, sae_id, collection)
    except (UserError, OSError, ValueError) as damage:
        log.warning("%s: the latents of %s are collected again", damage, sae_id)
        return None


def whole_latents(folder: RunFolder, sae_id: str, collection: Mapping[str, Any]) -> list[LatentFile]:
    """The latents that a collection names.

    Raises:
        UserError: one is missing, damaged, or not what was collected.
    """
    found = []
    for latent in collection["latents"]:
        path = folder.latents_path(sae_id) / f"{latent}.json"
        content = read_sealed(path)
        if "sha256" in collection and lineage.collected_hash(content) != collection["sha256"][str(latent)]:
            raise Damaged(f"{path} is not what was collected: delete it and run the same command again")
        found.append(content)
    return found


def latent_json(sae_id: str, found: CollectedLatent, n_tokens: int, logits: Mapping[str, Any] | None) -> LatentFile:
    """A latent that nobody has judged."""
    return {
        "sae": sae_id,
        "latent": found.latent,
        "n_fired": found.n_fired,
        "n_tokens": n_tokens,
        "max": found.maximum,
        "histogram": {"edges": found.edges, "counts": found.counts},
        "logits": logits,
        "examples": [asdict(example) for example in found.examples],
        "explanation": None,
        "explainer": None,
        "answers": [],
        "scores": {},
        "judge": None,
    }


def examples_of(latent: LatentFile) -> LatentExamples:
    examples = [Example(**example) for example in latent["examples"]]
    return LatentExamples(latent["sae"], latent["latent"], latent["max"], examples)


@torch.no_grad()
def logit_weights(lm: LanguageModel, subject: Subject, latents: list[int]) -> list[dict[str, Any] | None]:
    """For each latent the words that its decoder row, seen by the LM head alone, raises and lowers most."""
    if subject.site.kind not in RESIDUAL_SITES or subject.site.d_in != lm.d_model:
        return [None] * len(latents)
    head = lm.model.get_output_embeddings().weight
    pieces = Pieces(lm.tokenizer)

    def most(row: Float[Tensor, " words"], *, largest: bool) -> list[list[Any]]:
        values, words = row.topk(min(N_LOGITS, len(row)), largest=largest)
        return [[pieces.of(word), value] for value, word in zip(values.tolist(), words.tolist(), strict=True)]

    found: list[dict[str, Any] | None] = []
    for rows in subject.sae.W_dec.detach()[latents].split(ROWS_AT_ONCE):
        # A model may have more rows than its tokenizer has words.
        weights = (rows.to(head.dtype) @ head.T).float()[:, : len(lm.tokenizer)]
        found += [{"top": most(row, largest=True), "bottom": most(row, largest=False)} for row in weights]
    return found
