"""`verify` on latents: is every file what was collected and judged, and are these what the records were made from?"""

from collections.abc import Iterator, Sequence

from sae_bench.autointerp.latents import whole_latents
from sae_bench.errors import UserError
from sae_bench.records import lineage
from sae_bench.records.files import check_bytes, read_sealed
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import BY_RATERS, Record


def verify_latents(folder: RunFolder, records: Sequence[Record]) -> Iterator[tuple[str, str | None]]:
    """For every SAE that latents were collected of, what was looked at, and what is wrong with it; None: nothing."""
    names = {path.stem for path in (folder.path / "collections").glob("*.json")}
    names |= {path.name for path in (folder.path / "latents").glob("*") if path.is_dir()}
    judged = [record for record in records if _is_about_latents(record) and not record.failure]
    for sae_id in sorted(names | {record.sae.id for record in judged}):
        yield (f"latents of {sae_id}", _problem(folder, sae_id, [one for one in records if one.sae.id == sae_id]))


def _is_about_latents(record: Record) -> bool:
    return bool(record.details.get("judge")) or record.measured_on == BY_RATERS


def _problem(folder: RunFolder, sae_id: str, records: Sequence[Record]) -> str | None:
    try:
        path = folder.collection_path(sae_id)
        collection = read_sealed(path)
        check_bytes(path, collection)
        latents = whole_latents(folder, sae_id, collection)
        for latent in latents:
            check_bytes(folder.latents_path(sae_id) / f"{latent['latent']}.json", latent)
    except UserError as error:
        return str(error)
    now = lineage.hashes(collection, latents)
    for record in records:
        if record.sae.weights_sha256 != now["weights"]:
            return "they were collected from other weights than the records are of"
        rated = lineage.rated_from_others(record, now["weights"], latents)
        if rated:
            return f"{record.task} was made from other {' and '.join(rated)}: run `study results`, or make a new study"
        if changed := lineage.changed_since(record, now, latents):
            return f"{record.task} was made from other {' and '.join(changed)}: run the same command again"
    return None
