"""Studies as tests have them: a run by hand with planted latents, and events of raters."""

from pathlib import Path

from synthetic import records, seal, write_run
from toy_latents import toy_latent

from sae_bench.records.lineage import collected_hash
from sae_bench.study.make import make_study
from sae_bench.study.schema import Answer, Settings, Undo

LABELS = ("topk", "jumprelu", "random")
TIME = "2026-11-27T12:00:00Z"


def write_collected_run(folder: Path, n_latents: int = 12, extra: str = "", labels=LABELS) -> Path:
    """A run of SAEs, the random one a control, each with so many collected latents, `extra` in every excerpt."""
    of = records(labels, targets=(16.0,), seeds=(0,))
    for one in of:
        one["sae"]["control"] = one["sae"]["arch"] == "random"
    write_run(folder, of)
    for sae in {one["sae"]["id"] for one in of}:
        hashes = {}
        for number in range(n_latents):
            # Somewhere in the text it is far more active than in any excerpt.
            latent = toy_latent(number, extra=extra) | {"sae": sae, "n_fired": 30 + 7 * number, "max": 1000.0}
            seal(folder / "latents" / sae / f"{number}.json", latent)
            hashes[str(number)] = collected_hash(latent)
        made_by = {"weights_sha256": next(one["sae"]["weights_sha256"] for one in of if one["sae"]["id"] == sae)}
        content = {"settings": made_by, "latents": [*range(n_latents)], "sha256": hashes, "n_eligible": 300}
        seal(folder / "collections" / f"{sae}.json", content | {"fingerprint": "f" * 64})
    return folder


def settings(**changed) -> Settings:
    usual = {"seed": 7, "n_latents": 6, "n_raters": 3, "overlap": 2, "repeats": 2, "n_excerpts": 8, "detection": True}
    return Settings(**usual | changed)


def write_study(folder: Path, *, extra: str = "", **changed):
    """A study of such a run: its folder, and its key."""
    run = write_collected_run(folder / "run", extra=extra)
    study, _ = make_study([run], [], settings(**changed), folder / "study")
    return folder / "study", study


def answer(showing, number: int = 0, **changed) -> Answer:
    said = {"interpretable": "yes", "meaning": "rivers", "seconds": 12.5, "time": TIME}
    return Answer(**{"id": f"event{number:07d}", "item": showing.item, "showing": showing.showing} | said | changed)


def undo(showing, number: int) -> Undo:
    return Undo(id=f"event{number:07d}", item=showing.item, showing=showing.showing, time=TIME)
