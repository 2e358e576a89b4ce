"""`publish`: a run as a repository of the hub: weights that SAELens loads, records, the board, and a model card.

Nothing is uploaded but what the run made, regular files that a seal covers and that are as they were written, what the
records give, and the card. What the records say of models and corpora goes along, paths included.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from sae_bench.errors import UserError, one_line
from sae_bench.formats.export import saes_of
from sae_bench.leaderboard.render import escape_markdown
from sae_bench.leaderboard.tables import board_files, markdown
from sae_bench.records.files import inside, read_sealed
from sae_bench.records.names import file_name
from sae_bench.records.ownership import regular_file
from sae_bench.records.redact import redact
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Record

TABLES = ("leaderboard.md", "leaderboard.csv", "leaderboard.tex")

CARD = """---
library_name: saelens
{base}tags:
- sparse-autoencoder
- sae-arch-bench
{tag}---

# Sparse autoencoders on {title}

{n_saes} SAEs, evaluated by sae-arch-bench on the same held-out tokens; {n_own} of them are here.
{of_board}
{table}
## Use

They take raw activations: the input's scale and the pre-encoder bias are folded into the weights.

    from sae_lens import SAE
    from huggingface_hub import snapshot_download
    folder = snapshot_download({repo_text}, allow_patterns={pattern})
    sae = SAE.load_from_disk(folder + {path})

To put one beside your own SAEs:

    {command}

`records/` holds every number with its standard error, its count of tokens and what it was measured on.
"""


def collect(run: Path, repo: str, board: str | None = None) -> dict[str, Path | bytes]:
    """Everything to upload, by its path in the repository; `board`: which one under results/ these SAEs are of.

    Raises:
        UserError: the run is not finished, or holds something that is damaged.
    """
    if board is not None and board != file_name(board):
        raise UserError(f'--board "{one_line(board)}" is no name of a board: give that of its folder in results')
    folder = RunFolder(run)
    for path in (run / "records").glob("*.json"):
        regular_file(run, path)
    records = folder.records()
    if not records or not all((run / name).is_file() for name in TABLES):
        raise UserError(f"{run} holds no board: give the folder of a finished run")
    files: dict[str, Path | bytes] = {name: text.encode() for name, text in board_files(records).items()}
    names = ["run.json", *(f"records/{path.name}" for path in sorted((run / "records").glob("*.json")))]
    read_sealed(run / "run.json")
    for sae in saes_of(run):
        if sae.own["description"].get("origin"):
            continue  # somebody else's, to publish or not
        sae_id = sae.own["description"]["id"]
        if not folder.has_sae(sae_id, sae.own["config_hash"]):
            raise UserError(f"{sae.source.name} is damaged: run the same command again")
        names += [f"saes/{sae_id}/{name}" for name in ("sae_bench.json", *sae.own["files"])]
    if not any(name.startswith("saes/") for name in names):
        raise UserError(f"{run} has no SAE of its own to publish: give the folder of a run that trained one")
    files |= {name: regular_file(run, inside(run, name)) for name in names}
    return files | {"README.md": redact(card(records, repo, board)).encode()}


def card(records: Sequence[Record], repo: str, board: str | None = None) -> str:
    """The model card."""
    saes = {record.sae.id: record.sae for record in records}
    own = [sae_id for sae_id, sae in saes.items() if not sae.origin]
    model, config = records[0].provenance.model, records[0].provenance.config
    is_random = config.get("random_lm")
    named = "/" in model and not model.startswith(("/", ".")) and not is_random
    base, title = f"base_model: {json.dumps(model)}\n" if named else "", escape_markdown(model)
    about = ["--random-lm", "--seed", str(config["seeds"][0])] if is_random else []
    sae = f"saes/{own[0]}"
    command = [
        "python",
        "bench.py",
        "--sae",
        f"hf:{repo}/{sae}",
        "--model",
        config["model"] if about else model,
        *about,
    ]
    return CARD.format(
        base=base,
        title=title,
        n_saes=len(saes),
        n_own=len(own),
        tag=f"- sae-arch-bench-board-{board}\n" if board else "",
        of_board=f"\nThey are those of sae-arch-bench's board `results/{board}`.\n" if board else "",
        table=markdown(records).partition("\n\n")[2],
        repo_text=json.dumps(repo),
        pattern=json.dumps(f"{sae}/*"),
        path=json.dumps(f"/{sae}"),
        command=one_line(shlex.join(command)),
    )
