"""`submit`: a stranger's board, looked at as a reviewer would, measured again on a sample, and put under results/.

What nobody measures again can say anything: a seal shows accidents, not lies. So some SAEs, drawn by a seed that the
submitter did not know, are evaluated again by `verify`'s own code, on all the held-out tokens; whoever edited some SAEs
is found unless the sample is of others. The board is then drawn by the writer of `board`, beside a sealed statement
of what was looked at, which the same seed gives again with the same bytes.
"""

import logging
import random
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_bench._version import __version__
from sae_bench.errors import UserError, one_line
from sae_bench.evaluation.task import text_tasks, token_tasks
from sae_bench.formats.hub import fetch
from sae_bench.formats.open import HUB
from sae_bench.leaderboard.board_folder import draw_board
from sae_bench.leaderboard.compare import comparisons
from sae_bench.progress import Progress
from sae_bench.records.files import read_sealed, sha256, write_sealed
from sae_bench.records.names import file_name
from sae_bench.records.ownership import is_linked, regular_file, sealed
from sae_bench.records.run_folder import SAE_DESCRIPTION, RunFolder
from sae_bench.runs.differences import TOLERANCE
from sae_bench.runs.submission import Submission, read_submission
from sae_bench.runs.verify import weights_problem
from sae_bench.runs.verify_numbers import measurable, verify_numbers
from sae_bench.saes.save import description_of

log = logging.getLogger(__name__)

STATEMENT = "submission.json"
WEIGHTS = (SAE_DESCRIPTION, "sae_weights.safetensors", "cfg.json", "metrics.jsonl")
"""What is fetched of an SAE on the hub."""


def submit(
    folder: Path,
    results: Path,
    name: str | None,
    *,
    weights: str | None,
    sample: int,
    seed: int | None,
    without_measuring: bool,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """Check a board, measure a sample of it again, and write it; the board's folder and the statement.

    Raises:
        UserError: something is not in order, in one line that names the file and what to do.
    """
    out = _place(folder, results, name)
    found = read_submission(folder)
    there = [str(path.relative_to(out)) for path in (out / "run.json", *sorted(out.glob("records/*.json")))]
    if differs := [name for name in there if (out / name).is_file() and sha256(out / name) != found.files.get(name)]:
        raise UserError(f"{out} holds another board (its {differs[0]} differs): delete that, or give another --name")
    try:
        comparisons(list(found.records.values()), [])
    except UserError as error:  # without which there is no board: before anything long
        raise UserError(f"{folder}: {error}") from None
    progress.say(f"{len(found.records)} records of {folder}: sealed, complete, of one run")
    statement = {
        "sae-arch-bench": __version__,
        "torch": version("torch"),
        "model": found.config.model,
        "config_hash": found.config_hash,
        "files": dict(found.files),
        "failures": sum(record.failure is not None for record in found.records.values()),
        "tasks": {record.task: record.task_version for record in found.records.values()},
        "fingerprints": _of_records(found, "model_sha256", "tokenizer_sha256", "eval_fingerprint"),
        "made_by": _of_records(found, "versions")["versions"],
        "measured": None,
    }
    if not without_measuring:
        seed = secrets.randbits(32) if seed is None else seed
        statement["measured"] = _measured(found, weights, sample, seed, progress)
    draw_board([folder], None if out.resolve() == folder.resolve() else out, elsewhere="give another --name")
    for file, digest in found.files.items():
        if sha256(out / file) != digest:
            raise UserError(f"{folder / file} changed while it was looked at: leave the folder alone, and submit again")
    write_sealed(out / STATEMENT, statement)
    return out, statement


def _place(folder: Path, results: Path, name: str | None) -> Path:
    """Where the board goes: a folder right below `results`, which is no link."""
    name = folder.resolve().name if name is None else name
    if name != file_name(name):
        raise UserError(f'--name "{one_line(name)}" is no name of a board: give letters, digits and _.+-, no path')
    out = results / name
    if is_linked(results, out) or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is a link, or no folder: delete it, or give another --name")
    for other in results.glob("*") if results.is_dir() else ():
        if other.name != name and other.name.lower() == name.lower():
            raise UserError(f"{other} differs from --name {name} in case alone: give another --name")
    if (out / STATEMENT).exists() and "measured" not in (sealed(out / STATEMENT) or {}):
        raise UserError(f"{out / STATEMENT} is no statement of `submit`: move it elsewhere, or give another --name")
    if out.resolve() == folder.resolve() and any(out.glob(f"saes/*/{SAE_DESCRIPTION}")):
        raise UserError(
            f"{out} holds a run with its weights, and no board: move it elsewhere, and submit it from there"
        )
    return out


def _of_records(found: Submission, *fields: str) -> dict[str, Any]:
    """What the records say of where they come from."""
    of = next(iter(found.records.values())).provenance
    return {what: getattr(of, what) for what in fields}


def _measured(found: Submission, weights: str | None, sample: int, seed: int, progress: Progress) -> dict[str, Any]:
    """Measure SAEs drawn by the seed again, and say which."""
    measurable = sorted({sae for sae, task in found.records if _tasks(found, [sae], task)})
    if not measurable:
        raise UserError(
            f"{found.folder} has nothing that can be measured again: give --without-measuring, which says so"
        )
    drawn = sorted(random.Random(seed).sample(measurable, min(sample, len(measurable))))
    by_hash = {record.sae.weights_sha256: sae for (sae, _), record in found.records.items()}
    siblings = {by_hash[of] for (sae, _), record in found.records.items() if sae in drawn
                for of in record.siblings if of in by_hash}  # fmt: skip
    there = list(dict.fromkeys([*drawn, *sorted(siblings)]))
    with _weights(found, weights, there) as folder:
        for sae in there:
            _check_weights(found, folder, sae)
        config = found.config.model_copy(update={"activations_cache": None, "device": "auto", "compile": False})
        looked_at = []
        try:
            for what, problem in verify_numbers(folder, config, found.records, drawn, progress, siblings_of=there):
                looked_at.append(what)
                if problem is not None:
                    raise UserError(
                        f"{found.folder}: {what}, measured again: {one_line(problem)}; the board is not what its SAEs "
                        "give: run it again, and submit what that leaves"
                    )
        except UserError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {one_line(str(error)):.200}"
            raise UserError(
                f"{found.folder}: its SAEs cannot be evaluated ({why}): submit what a run leaves"
            ) from error
    tasks = sorted({task for _, task in found.records})
    again = [task for task in tasks if _tasks(found, drawn, task)]
    return {
        "seed": seed, "saes": drawn, "of": len(measurable), "tasks": again, "tolerance": TOLERANCE,
        "not_measured_again": [task for task in tasks if task not in again], "weights": weights or "in the folder",
    }  # fmt: skip


def _tasks(found: Submission, saes: Sequence[str], task: str) -> bool:
    """Whether a task's record of one of the SAEs is measured again; what judges and people say is not."""
    if not any(task in measurable(found.records, sae) for sae in saes):
        return False
    return bool(token_tasks([task]) or text_tasks([task]))


@contextmanager
def _weights(found: Submission, weights: str | None, saes: Sequence[str]) -> Iterator[RunFolder]:
    """A run's folder with the weights of these SAEs: the submission's own, another one, or what the hub has."""
    if weights is None or not weights.startswith("hf:"):
        folder = found.folder if weights is None else Path(weights)
        missing = [sae for sae in saes if not (folder / "saes" / sae / SAE_DESCRIPTION).is_file()]
        if missing:
            raise UserError(
                f"{folder}/saes/{missing[0]} has no weights, so nothing can be measured again: give --weights with the "
                "run's folder or hf:owner/repo, or --without-measuring, which the statement will say"
            )
        yield RunFolder(folder)
        return
    match = HUB.fullmatch(weights)
    if not match or match[3]:
        raise UserError(f'--weights "{weights}": write hf:owner/repo or hf:owner/repo@revision, or a folder')
    with tempfile.TemporaryDirectory() as copy:
        for sae in saes:
            files, _ = fetch(match[1], match[2], f"saes/{sae}", WEIGHTS)
            if not files:
                raise UserError(
                    f"{weights} has no saes/{sae}: publish the run that the board is of, or give its folder"
                )
            (to := Path(copy) / "saes" / sae).mkdir(parents=True)
            for file, path in files.items():
                shutil.copyfile(path, to / file)
        yield RunFolder(Path(copy))


def _check_weights(found: Submission, folder: RunFolder, sae: str) -> None:
    """See that an SAE's files are regular, whole, those of its records, and hold as much as they say."""
    path = folder.sae_path(sae)
    description = read_sealed(regular_file(folder.path, path / SAE_DESCRIPTION))
    files, config = description.get("files"), description.get("config")
    if not isinstance(files, dict) or not isinstance(config, dict) or any(name != file_name(name) for name in files):
        raise UserError(f"{path / SAE_DESCRIPTION} is of another form: submit what a run leaves")
    for name in files:
        regular_file(folder.path, path / name)
    records = [record for (of, _), record in found.records.items() if of == sae]
    if problem := weights_problem(folder, sae, records):
        raise UserError(f"{path}: {problem}: give the --weights that the records were made from")
    about, stored = records[0].sae, (path / WEIGHTS[1])
    said = description_of(path).model_dump(exclude={"training"})
    if differs := [name for name, of in about.model_dump(exclude={"training"}).items() if said.get(name) != of]:
        raise UserError(
            f"{path / SAE_DESCRIPTION} has another {differs[0]} than its records say: submit what a run leaves"
        )
    if description.get("arch") != about.arch:
        raise UserError(
            f"{path / SAE_DESCRIPTION} is of another architecture than its records: submit what a run leaves"
        )
    if {key: config.get(key) for key in ("d_in", "d_sae")} != {"d_in": about.d_in, "d_sae": about.d_sae}:
        raise UserError(f"{path / SAE_DESCRIPTION} is of another shape than its records: submit what a run leaves")
    if stored.stat().st_size < about.d_in * about.d_sae:
        raise UserError(f"{stored} is too small for {about.d_in} x {about.d_sae}: submit what a run leaves")


def next_steps(out: Path, statement: dict[str, Any]) -> str:
    """What was found, and the commands of a pull request, as text."""
    measured = statement["measured"]
    name = out.name
    lines = ["nothing was measured again: the numbers are the submitter's word"]
    if measured is not None:
        n, of = len(measured["saes"]), measured["of"]
        lines = [
            f"measured again, as recorded: {n} of {of} SAEs (seed {measured['seed']}): {', '.join(measured['saes'])}",
            f"a single edited SAE would have been found with a probability of {n / of:.0%}; --sample {of} measures all",
        ]
        if left := measured["not_measured_again"]:
            lines.append(f"not measured again: {', '.join(left)}")
    board, message = shlex.quote(str(out)), shlex.quote(f"Board {name}")
    return "\n".join(
        [
            *lines,
            f"board and statement: {out}, {STATEMENT}",
            "next, a section about it in results/README.md, and a pull request:",
            f"    git switch -c board-{name}",
            f"    git add {board} results/README.md",
            f"    git commit -m {message}",
            f"    git push -u origin board-{name}",
        ]
    )
