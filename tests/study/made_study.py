"""A study made by hand: SAEs, items, assignments, and raters who follow a script; no excerpts, no language model."""

import json
from collections.abc import Callable
from pathlib import Path

import synthetic

from sae_bench.study.schema import Answer, Assignment, Item, Settings, Showing, Study, StudyFolder, StudySAE

Script = Callable[[int, str, int], tuple[str, list[bool] | None] | None]
"""What a rater says of a latent of an architecture: an answer and what activates; None: nothing."""
TRUTH = [True, False] * 5


def records_of(labels):
    return synthetic.typed(synthetic.record(label, 16.0, 0, "reconstruction") for label in labels)


def make(path: Path, runs: dict[str, Path], n_latents=12, n_raters=4, overlap=3, repeats=2) -> StudyFolder:
    """A study of one SAE of each architecture, in the run that is given for it."""
    folder = StudyFolder(path)
    settings = Settings(seed=0, n_latents=n_latents, n_raters=n_raters, overlap=overlap, repeats=repeats, n_excerpts=10,
                        detection=True)  # fmt: skip
    saes = [
        StudySAE(run=str(runs[one.sae.label]), sae=one.sae, provenance=one.provenance, n_alive=99, n_collected=50,
                 n_passed_over=10)
        for one in records_of(runs)
    ]  # fmt: skip
    items = [
        Item(id=f"item{sae:02d}{n:04d}", sae=sae, latent=10 * n + sae, density=0.01, truth=TRUTH, shown=[], mixed=[],
             collected_sha256=f"{sae}{n}")
        for sae in range(len(saes)) for n in range(n_latents)
    ]  # fmt: skip
    study = Study(id="study0000000", made="2026-11-27T00:00:00Z", settings=settings, saes=saes, items=items)
    study.write(folder.key_path)
    for rater in range(n_raters):
        mine = [item for i, item in enumerate(items) if (rater - i) % n_raters < overlap]
        shown = [(item, 0) for item in mine] + [(item, 1) for item in mine[:repeats]]
        showings = [Showing(item=item.id, showing=showing, excerpts=[], mixed=[]) for item, showing in shown]
        Assignment(study=study.id, rater=rater + 1, n_raters=n_raters, showings=showings).write(
            folder.assignment_path(rater + 1)
        )
    return folder


def answer(folder: StudyFolder, script: Script) -> None:
    """Have the raters answer, each what the script says."""
    study = folder.study()
    items = {item.id: item for item in study.items}
    for rater in range(1, study.settings.n_raters + 1):
        lines = []
        for n, showing in enumerate(folder.assignment(rater).showings):
            item = items[showing.item]
            said = script(rater, study.saes[item.sae].sae.label, item.latent)
            if said is None:
                continue
            event = Answer(id=f"event{rater:02d}{n:04d}", item=item.id, showing=showing.showing, interpretable=said[0],
                           detection=said[1], seconds=20 + rater, time=f"2026-11-27T10:{n:02d}:00Z")  # fmt: skip
            lines.append(json.dumps(event.model_dump(mode="json")) + "\n")
        if lines:
            folder.answers_path(rater).parent.mkdir(exist_ok=True)
            folder.answers_path(rater).write_text("".join(lines))
