"""A study's results as records of its runs: task `human`, one for every SAE of the study, beside those of other tasks.

A record repeats the answers that its numbers are made of, raters as numbers, without what they wrote. It says which
weights, which collected latents and which answers it is made from (`records.lineage`). A study may cover several runs;
each gets the records of its SAEs, and its tables are drawn anew.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_bench.errors import UserError
from sae_bench.leaderboard.frequency_claim import FEWEST, within_saes
from sae_bench.leaderboard.tables import write_board
from sae_bench.records import lineage
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import BY_RATERS, Record, Score, write_record
from sae_bench.study.crossed import LEVEL
from sae_bench.study.ratings import CATEGORIES, Ratings
from sae_bench.study.results import METRICS, Found, values_of

TASK, VERSION = "human", "1"
STUDY = "studies, raters or latents"
"""What records of raters' answers must share to stand in one table."""


def runs_of(ratings: Ratings, moved: Sequence[Path] = ()) -> tuple[dict[int, RunFolder], list[str]]:
    """The run of each SAE of a study, by its place in the key, and what is wrong where there is none.

    Runs are where they were when the study was made, or among those that are given; an SAE is known by its weights.
    """
    found, problems = {}, []
    for place, one in enumerate(ratings.study.saes):
        folders = [RunFolder(path) for path in (*moved, Path(one.run))]
        there = [folder for folder in folders if _weights(folder, one.sae.id)]
        same = [folder for folder in there if one.sae.weights_sha256 in _weights(folder, one.sae.id)]
        if same:
            found[place] = same[0]
        elif there:
            problems.append(f"{one.sae.id} of {there[0].path} was trained again since: make a new study")
        else:
            problems.append(f"{one.run} holds no records of {one.sae.id}: name its run behind the study's folder")
    return found, problems


def _weights(folder: RunFolder, sae_id: str) -> set[str]:
    """Which weights the records of an SAE are of; none where there are no records."""
    records = (folder.record(sae_id, path.name.split(".")[-2]) for path in folder.record_paths(sae_id))
    return {record.sae.weights_sha256 for record in records if record and record.sae.id == sae_id}


def with_judges(results: Found, ratings: Ratings, runs: Mapping[int, RunFolder]) -> Found:
    """The results, with how raters and judges agree on the latents that both have seen."""
    by_scorer: dict[str, list[Any]] = {}
    for place, folder in runs.items():
        items = ratings.of_sae(place)
        for scorer, scores in _judged(folder, ratings.study.saes[place].sae.id).items():
            both = zip(items, _by_latent(ratings.rating, items), strict=True)
            scored = [(said, scores.get(ratings.study.items[i].latent)) for i, said in both if said is not None]
            pairs = [pair for pair in scored if pair[1] is not None]
            by_scorer.setdefault(scorer, []).append(np.array(pairs).reshape(-1, 2))
    return results | {"judge": [_correlation(scorer, of) for scorer, of in sorted(by_scorer.items())]}


def _judged(folder: RunFolder, sae_id: str) -> dict[str, dict[int, float | None]]:
    """What a judge made of an SAE's latents, by scorer and latent."""
    record = folder.record(sae_id, "autointerp")
    if record is None or record.failure or not record.details.get("judge"):
        return {}
    latents = record.details["latents"]
    return {scorer: dict(zip(latents, of, strict=True)) for scorer, of in record.details["values"].items()}


def _correlation(scorer: str, saes: Sequence[Any]) -> Found:
    usable = [of for of in saes if len(of) >= FEWEST and all(np.ptp(of, axis=0) > 0)]
    about = {"scorer": scorer, "n_latents": sum(map(len, usable)), "n_saes": len(usable)}
    if not usable:
        why = f"no SAE has {FEWEST} latents with both that are not all alike"
        return about | {"spearman": None, "interval": None, "note": why}
    found = within_saes(usable)
    return about | {"spearman": found.value, "interval": found.interval(LEVEL), "note": None}


def write_records(results: Found, ratings: Ratings, runs: Mapping[int, RunFolder]) -> list[Path]:
    """Write the record of each SAE whose run is there, and draw the tables of these runs anew; the records' paths.

    Raises:
        UserError: somebody works in a run's folder, or it cannot be written.
    """
    written = []
    for path in sorted({folder.path for folder in runs.values()}):
        folder = RunFolder(path)
        with folder.locked():
            for place in (place for place, run in runs.items() if run.path == path):
                record = record_of(results, ratings, place)
                written.append(folder.record_path(record.sae.id, TASK))
                write_record(written[-1], record)
            write_board(folder.path, folder.records())
    return written


def record_of(results: Found, ratings: Ratings, place: int) -> Record:
    """What a study found of one SAE; a failure if nobody answered anything about it."""
    one, items = ratings.study.saes[place], ratings.of_sae(place)
    found = results["saes"][place]
    scores = {name: _score(of) for name, of in found["scores"].items()}
    answers = _answers(ratings, items)
    details = {
        "latents": [ratings.study.items[i].latent for i in items],
        "values": {name: _by_latent(given, items) for name, given in values_of(ratings).items()},
        "degrees": {name: of["degrees"] for name, of in found["scores"].items() if of and of["degrees"]},
        "interval_95": {name: of["interval"] for name, of in found["scores"].items() if of and of["interval"]},
        "answers": answers,
        "study": ratings.study.id,
        "made_from": lineage.rated_hashes(
            one.sae.weights_sha256,
            {ratings.study.items[i].latent: ratings.study.items[i].collected_sha256 for i in items},
            answers,
        ),
    }
    last = ratings.last
    time = {} if last is None else {"time": last.isoformat(timespec="seconds")}
    return Record(
        task=TASK,
        task_version=VERSION,
        failure=one.sae.training.failure or (None if found["n_rated"] else "no rater answered"),
        metrics={metric.name: metric for metric in METRICS},
        scores=scores if found["n_rated"] else {},
        by_document={},
        per_latent={},
        details=details,
        sae=one.sae,
        provenance=one.provenance.model_copy(update=time),
        measured_on=BY_RATERS,
        comparable={STUDY: ratings.study.id},
        caption=_caption(results),
        remarks=_remarks(found, results),
    )


def _score(of: Found | None) -> Score:
    if of is None:
        return Score(None, None, 0, note="no rater answered")
    return Score(of["value"], of["stderr"], of["n_latents"])


def _answers(ratings: Ratings, items: Sequence[int]) -> list[Found]:
    """Every answer about some items: latent, rater, showing, and what was said."""
    found = []
    for showing, given in enumerate((ratings.category, ratings.again)):
        for i in items:
            for r in np.flatnonzero(np.isfinite(given[i])).tolist():
                said = {"latent": ratings.study.items[i].latent, "rater": r + 1, "showing": showing,
                        "answer": CATEGORIES[int(given[i, r])]}  # fmt: skip
                detection = ratings.detection[i, r]
                asked = showing == 0 and np.isfinite(detection)
                found.append(said | ({"detection": float(detection)} if asked else {}))
    return found


def _by_latent(given: Any, items: Sequence[int]) -> list[float | None]:
    """The mean over raters of each item; None where nobody answered."""
    return [float(np.nanmean(row)) if np.isfinite(row).any() else None for row in given[items]]


def _caption(results: Found) -> str:
    alpha = results["agreement"]["ordinal"]["value"]
    settings, answers = results["settings"], results["answers"]
    answered = sum(rater["answered"] > 0 for rater in results["raters"])
    agreed = "" if alpha is None else f"; Krippendorff's alpha {alpha:.2f} (ordinal)"
    partial = "" if answers["given"] == answers["asked"] else (
        f" PARTIAL: {answers['given']} of {answers['asked']} answers are there."
    )  # fmt: skip
    return (
        f"human_*: means over up to {settings['n_latents']} latents of each SAE, by {answered} of "
        f"{settings['n_raters']} raters, who did not know the SAE; ± over latents and raters{agreed}.{partial}"
    )


def _remarks(found: Found, results: Found) -> list[str]:
    remarks = []
    if found["n_rated"] < found["n_latents"]:
        remarks.append(f"{found['n_latents'] - found['n_rated']} of {found['n_latents']} latents without an answer")
    raters = found["scores"]["human_yes"]
    if raters and raters["n_raters"] == 1 < results["settings"]["n_raters"]:
        remarks.append("one rater answered: the choice of raters is in no interval")
    return remarks


def check_runs(paths: Sequence[Path]) -> None:
    """See that folders hold runs; UserError if one does not."""
    for path in paths:
        if not (path / "run.json").is_file():
            raise UserError(f"{path} holds no run: give the folders that the study's runs were moved to")
