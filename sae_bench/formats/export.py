"""Our SAEs in the formats of other tools, one folder for each SAE, named as in the run."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from sae_bench.errors import UserError, did_you_mean
from sae_bench.formats import dictionary_learning, gemma_scope, saelens, sparsify
from sae_bench.formats.foreign import About, ForeignSAE
from sae_bench.formats.open import find_sources, open_sae
from sae_bench.records.run_folder import RunFolder
from sae_bench.saes.convert import to_built_in

WRITERS: dict[str, ModuleType] = {
    module.FORMAT: module for module in (saelens, gemma_scope, dictionary_learning, sparsify)
}


def saes_of(run: Path, wanted: Sequence[str] = ()) -> list[ForeignSAE]:
    """The SAEs in the folder of a run, or those of them that are wanted; what failed in training is passed over.

    Raises:
        UserError: there is no run, or no SAE of that name in it.
    """
    by_id = {}
    for source in find_sources(str(run)):
        sae = open_sae(source)
        if sae.own is None:
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
        WRITERS[form].check(to_built_in(sae.build()))
    written = []
    for sae in chosen:
        assert sae.own is not None, "an SAE of a run"
        description = sae.own["description"]
        record = records.get(description["id"])
        score = record.scores.get("l0") if record else None
        about = About(description["site"], sae.own["metadata"], score.value if score else None)
        written.append(WRITERS[form].write(out / description["id"], to_built_in(sae.build()), about))
    return written
