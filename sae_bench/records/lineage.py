"""What is made from what, stated once, with the hash of each: so that nothing is rebuilt without what depends on it.

    weights     saes/<sae>/             from the run's settings, model and data
    latents     collections/<sae>.json, and in latents/<sae>/ what was collected: from weights
    answers     in latents/<sae>/ what a judge said, explanations and scores: from latents
    ratings     in a study's folder, what people said of latents that they were shown: from latents
    records     records/<sae>.<task>.json: from the weights; those about latents, from latents and answers as well; that
                of a study, from latents and ratings, which it repeats

A collection says which weights it was made from, and holds the hash of what was collected of every latent; a record
about latents says the hashes of all three (`made_from`). What no longer matches is made again, or says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sae_bench.records.files import digest_of
from sae_bench.records.schema import BY_RATERS, Record

MADE_FROM: Mapping[str, Sequence[str]] = {
    "weights": (),
    "latents": ("weights",),
    "answers": ("latents",),
    "ratings": ("latents",),
    "records": ("weights", "latents", "answers", "ratings"),
}

JUDGED = ("explanation", "explainer", "answers", "scores", "judge")
"""What a judge adds to a latent's file; the rest was collected."""

Latent = Mapping[str, Any]


def collected_hash(latent: Latent) -> str:
    """Of what was collected of a latent."""
    return digest_of({key: value for key, value in latent.items() if key not in JUDGED})


def hashes(collection: Mapping[str, Any], latents: Sequence[Latent]) -> dict[str, str]:
    """What a record about latents is made from, by the artefacts of `MADE_FROM`."""
    return {
        "weights": str(collection["settings"]["weights_sha256"]),
        "latents": digest_of({str(latent["latent"]): collected_hash(latent) for latent in latents}),
        "answers": digest_of({str(latent["latent"]): [latent.get(key) for key in JUDGED] for latent in latents}),
    }


def changed_since(record: Record, now: Mapping[str, str], latents: Sequence[Latent]) -> list[str]:
    """The artefacts that are not those a record about latents was made from; none if nobody judged them.

    A record from before these were kept is held against whether its latents were judged at all.
    """
    if record.details.get("judge") is None or record.failure is not None:
        return []
    if (then := record.details.get("made_from")) is None:
        return ["answers"] if any(latent.get("judge") is None for latent in latents) else []
    return [name for name in now if then.get(name) != now[name]]


def rated_hashes(weights: str, latents: Mapping[int, str], ratings: Sequence[Any]) -> dict[str, str]:
    """What a study's record is made from, by the artefacts of `MADE_FROM`.

    Args:
        weights: their hash.
        latents: the `collected_hash` of each latent that was shown.
        ratings: what the record repeats of them.
    """
    shown = {str(latent): of for latent, of in sorted(latents.items())}
    return {"weights": weights, "latents": digest_of(shown), "ratings": digest_of(ratings)}


def rated_from_others(record: Record, weights: str, latents: Sequence[Latent]) -> list[str]:
    """The artefacts that are not those a study's record was made from; none of another record."""
    if record.measured_on != BY_RATERS:
        return []
    shown = {int(of["latent"]): collected_hash(of) for of in latents if of["latent"] in record.details["latents"]}
    now = rated_hashes(weights, shown, record.details["answers"])
    return [name for name in now if record.details["made_from"].get(name) != now[name]]


def lost(changed: Sequence[str]) -> str:
    """What a record says that nobody can make again at present."""
    return f"its {' and '.join(changed)} are no longer those that it was made from: give --judge-model to judge anew"
