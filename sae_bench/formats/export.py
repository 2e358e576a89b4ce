"""Our SAEs in the formats of other tools, one folder for each SAE, named as in the run."""

from collections.abc import Sequence
from pathlib import Path

from sae_bench.errors import UserError, did_you_mean
from sae_bench.formats.foreign import About, ForeignSAE
from sae_bench.formats.open import FORMATS, find_sources, open_sae
from sae_bench.records.run_folder import RunFolder
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.convert import to_built_in

WRITERS = {module.FORMAT: module for module in FORMATS if hasattr(module, "HOLDS")}


def saes_of(run: Path, wanted: Sequence[str] = ()) -> list[ForeignSAE]:
    """The SAEs in the folder of a run, or those of them that are wanted; what failed in training is passed over.

    Raises:
        UserError: there is no run, or no SAE of that name in it.
    """
    by_id = {}
    for source in find_sources(str(run)):
        sae = open_sae(source)
        if not sae.own:
            raise UserError(f"{source.name} is not from a run of ours: give the folder of a run")
        if not sae.own["description"].get("training", {}).get("failure"):
            by_id[str(sae.own["description"]["id"])] = sae
    for sae_id in wanted:
        if sae_id not in by_id:
            raise UserError(f'{run} has no SAE "{sae_id}"{did_you_mean(sae_id, by_id)}')
    return [sae for sae_id, sae in by_id.items() if not wanted or sae_id in wanted]


def export(run: Path, form: str, out: Path, wanted: Sequence[str] = ()) -> list[Path]:
    """Write SAEs of a run in another format; returns what was written.

    Raises:
        UserError: there is no such format, or an SAE does not fit into it; nothing is written then.
    """
    if form not in WRITERS:
        raise UserError(f'unknown format "{form}"{did_you_mean(form, WRITERS)}')
    records = {record.sae.id: record for record in RunFolder(run).records() if record.task == "reconstruction"}
    chosen = saes_of(run, wanted)
    for sae in chosen:
        _check_fits(form, to_built_in(sae.build()), str(sae.own["description"]["id"]))
    written = []
    for sae in chosen:
        description = sae.own["description"]
        record = records.get(description["id"])
        score = record.scores.get("l0") if record else None
        about = About(description["site"], sae.own["metadata"], score.value if score else None)
        written.append(WRITERS[form].write(out / description["id"], to_built_in(sae.build()), about))
    return written


def _check_fits(form: str, sae: SparseAutoencoder, sae_id: str) -> None:
    holds = WRITERS[form].HOLDS
    if sae.nonlinearity not in holds:
        how = {"relu": "exactly", "gated": "exactly", "topk": "with a calibrated threshold"}.get(sae.nonlinearity or "")
        possible = how and "jumprelu" in holds
        remedy = f"`convert --to jumprelu` makes one {how}" if possible else "choose another --format"
        raise UserError(f"{sae_id} does not fit into {form}, which holds {', '.join(holds)}, not {sae.nonlinearity}: "
                        f"{remedy}, or name those that fit with --sae")  # fmt: skip
