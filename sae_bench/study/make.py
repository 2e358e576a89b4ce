"""`study make`: the folder of a study, from runs whose latents were collected: the key, and what each rater gets."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from sae_bench.errors import UserError
from sae_bench.records.lineage import collected_hash
from sae_bench.study.plan import plan
from sae_bench.study.sample import Chosen, choose, sources
from sae_bench.study.schema import (
    Assignment,
    Excerpt,
    Item,
    Settings,
    Showing,
    Study,
    StudyFolder,
    StudySAE,
)

ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 12


def make_study(runs: Sequence[Path], wanted: Sequence[str], settings: Settings, out: Path) -> tuple[Study, list[str]]:
    """Sample latents, plan who sees them, and write the study's folder; also what whoever runs it has to know.

    Raises:
        UserError: the folder is taken, a run's latents were not collected or are too few, or the plan cannot be.
    """
    folder = StudyFolder(out)
    _check_free(folder)
    found, remarks = sources(runs, wanted, settings.n_latents)
    if not found:
        raise UserError("no SAE is left to make a study of: give runs with SAEs that were trained")
    if not any(source.record.sae.control for source in found):
        remarks.append(
            "no control is among the SAEs: without one nobody sees what raters say of meaningless latents; add "
            "--controls or --chance to the run's command"
        )
    draw = Random(f"{settings.seed} ids")
    study_id = _new_id(draw)
    saes, items, chosen = [], [], {}
    for source in found:
        latents, n_passed_over = choose(source, settings)
        saes.append(
            StudySAE(
                run=str(source.run.resolve()),
                sae=source.record.sae,
                provenance=source.record.provenance,
                n_alive=source.n_alive,
                n_collected=len(source.collection["latents"]),
                n_passed_over=n_passed_over,
            )
        )
        for one in latents:
            items.append(_item(one, _new_id(draw), len(saes) - 1))
            chosen[items[-1].id] = one
    by_sae = [[item.id for item in items if item.sae == i] for i in range(len(saes))]
    orders = plan(by_sae, settings)
    excerpts = {item: (one.excerpts(), one.mixed_excerpts()) for item, one in chosen.items()}
    study = Study(id=study_id, made=datetime.now(UTC), settings=settings, saes=saes, items=items)
    for rater, order in enumerate(orders, start=1):
        showings = [_showing(item, showing, *excerpts[item]) for item, showing in order]
        assignment = Assignment(study=study_id, rater=rater, n_raters=settings.n_raters, showings=showings)
        assignment.write(folder.assignment_path(rater))
    study.write(folder.key_path)  # last: a folder with it is whole
    return study, remarks


def _check_free(folder: StudyFolder) -> None:
    if folder.key_path.exists():
        raise UserError(f"--out {folder.path} holds a study, whose answers may be there too: choose another --out")
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise UserError(f"--out {folder.path} is not an empty folder, and holds no study: choose another --out")


def _new_id(draw: Random) -> str:
    return "".join(draw.choices(ID_LETTERS, k=ID_LENGTH))


def _item(one: Chosen, item_id: str, sae: int) -> Item:
    return Item(
        id=item_id,
        sae=sae,
        latent=one.latent["latent"],
        density=one.latent["n_fired"] / one.latent["n_tokens"],
        truth=one.truth,
        shown=one.shown,
        mixed=one.mixed,
        collected_sha256=collected_hash(one.latent),
    )


def _showing(item: str, showing: int, excerpts: list[Excerpt], mixed: list[Excerpt]) -> Showing:
    return Showing(item=item, showing=showing, excerpts=excerpts, mixed=mixed)
