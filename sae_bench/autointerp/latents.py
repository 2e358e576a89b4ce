"""Latents' files: what was collected of each latent and, once a judge has spoken, its explanation and scores.

One sealed file per latent in `latents/<sae>/`. When all of an SAE's are written, `collections/<sae>.json` says so, with
the settings that they were collected by: collected once, they serve every judge.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.autointerp.examples import Example, LatentExamples, Pieces
from sae_bench.autointerp.sample import CollectedLatent, Collection, Subject
from sae_bench.lm.model import LanguageModel
from sae_bench.records.files import Damaged, read_sealed, write_sealed
from sae_bench.records.run_folder import RunFolder

N_LOGITS = 10
RESIDUAL_SITES = ("resid_post", "mlp_out")
"""Sites whose vectors are added to the residual stream, which is what the LM head reads."""

ROWS_AT_ONCE = 64

LatentFile = dict[str, Any]
"""The content of a latent's file."""


def write_latents(folder: RunFolder, lm: LanguageModel, collection: Collection, settings: Mapping[str, Any]) -> None:
    """Write one SAE's latents, whatever was there before."""
    subject, stream = collection.subject, collection.stream
    folder.drop_latents(subject.id)
    latents = [found.latent for found in collection.found]
    logits = logit_weights(lm, subject, latents)
    for found, words in zip(collection.found, logits, strict=True):
        content = latent_json(subject.id, found, stream.n_delivered, words)
        write_sealed(folder.latents_path(subject.id) / f"{found.latent}.json", content)
    content = {
        "settings": dict(settings),
        "latents": latents,
        "n_eligible": collection.n_eligible,
        "tokens": stream.n_delivered,
        "documents": stream.n_documents,
        "fingerprint": stream.fingerprint,
    }
    write_sealed(folder.collection_path(subject.id), content)


def read_latents(folder: RunFolder, sae_id: str, settings: Mapping[str, Any]) -> list[LatentFile] | None:
    """An SAE's latents, if they were collected by these settings and are whole."""
    collection = folder.collection(sae_id)
    if collection is None or collection["settings"] != settings:
        return None
    try:
        return [read_sealed(folder.latents_path(sae_id) / f"{latent}.json") for latent in collection["latents"]]
    except (Damaged, OSError, ValueError):
        return None


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
