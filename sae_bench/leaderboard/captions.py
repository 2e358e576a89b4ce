"""What stands around a table: what it was made from, what failed, and what its reader has to know."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sae_bench.errors import one_line
from sae_bench.leaderboard import order
from sae_bench.leaderboard.bootstrap import MIN_DOCUMENTS
from sae_bench.leaderboard.load import differences, with_value_or_failure
from sae_bench.leaderboard.setting import Setting
from sae_bench.records.names import natural_order
from sae_bench.records.schema import NOT_APPLICABLE, Provenance, Record, SAEDescription

MARGIN = (
    "Controls learn less than architectures do, or nothing. A margin is by how much a value is better than the best "
    "control's of the same target and seed, paired by document."
)


def of_rows(records: Sequence[Record]) -> str:
    """What ± and * are in a table whose rows are SAEs."""
    return f"± is one standard error, clustered by document. {of_marks(records)}".rstrip()


def of_marks(records: Sequence[Record]) -> str:
    """What * and ! are, where some rows have them."""
    front = f"* is on the Pareto front of L0 and {order.primary(records)}." if order.front(records) else ""
    missed = f"! has an L0 more than {order.MISS:.0%} off its target." if order.missed(records) else ""
    return " ".join(filter(None, [front, missed]))


def _caveats(records: Sequence[Record]) -> list[str]:
    """What numbers and errors do not cover: text that was trained on, too few documents, other trainings and seeds."""
    own = [record.sae for record in records if not record.sae.origin]
    n_imported = len({record.sae.id for record in records if record.sae.origin})
    overlaps = _distinct(sae.training.eval_overlap for sae in own)
    documents = _distinct(record.provenance.eval_documents for record in records if record.measured_on == "tokens")
    seeds = _distinct(sae.seed for sae in own)
    between_seeds = "; variance between seeds is unknown." if len(seeds) == 1 else "."
    shared = f"{_range(overlaps, '.1%')} of them lie in a run of 13 tokens that the training text has too."
    return [
        *([shared] if overlaps else []),
        *([few_documents(documents[0])] if documents and documents[0] < MIN_DOCUMENTS else []),
        *([f"{n_imported} from elsewhere, trained as their origin says."] if n_imported else []),
        f"Seeds {_listed(seeds) or 'unknown'}{between_seeds}",
        *_compared_in_part(records),
    ]


def _compared_in_part(records: Sequence[Record]) -> list[str]:
    """Of how many other seeds an SAE was held against, where that was not all of them, as in a board of parts."""
    tasks = {record.task for record in records if record.siblings}
    of_others = [record for record in records if record.task in tasks and not record.sae.origin]
    seeds: dict[tuple[Setting, str, float | None], set[int | None]] = {}
    for one in of_others:
        seeds.setdefault((Setting.of(one), one.sae.label, one.sae.target), set()).add(one.sae.seed)
    compared, there = _distinct(len(one.siblings) for one in of_others), max(map(len, seeds.values()), default=1) - 1
    lacks = any(len(one.siblings) + 1 < len(seeds[Setting.of(one), one.sae.label, one.sae.target]) for one in of_others)
    return [f"An SAE was held against {_range(compared)} of {there} other seeds in {_listed(tasks)}."] if lacks else []


def _warnings(records: Sequence[Record]) -> list[str]:
    """What comes before all else: a model with random weights, and numbers that are not of one kind."""
    mixed, said = differences(records), control(records)
    return [
        *([f"MIXED: these rows were made with different {' and '.join(mixed)}; do not compare them."] if mixed else []),
        *([f"{said}."] if said else []),
    ]


def without_value(records: Sequence[Record]) -> str:
    """The headline metrics that have no column, for no SAE has a value of them, and why."""
    there = with_value_or_failure(records)
    why: dict[str, str] = {}
    for record in records:
        for name, metric in record.metrics.items():
            if metric.headline and name not in there and record.not_measured != NOT_APPLICABLE:
                reason = record.not_measured or "undefined"
                told = record.caption or ""
                why[name] = told if told.startswith(reason) else reason
    reasons = "; ".join(
        f"{', '.join(n for n in why if why[n] == reason)}: {reason}" for reason in _distinct(why.values())
    )
    return f"No column for {reasons}." if why else ""


def caption(records: Sequence[Record], error: str = "", *, paper: bool = False) -> str:
    """What the table was made from, in one sentence per fact; `error` says what ± is.

    `paper`: without what is for those alone who make the numbers again.
    """
    made = [record.provenance for record in records]
    own = [record.sae for record in records if not record.sae.origin]
    on_tokens = [record for record in records if record.measured_on == "tokens"]
    trained = _distinct(sae.training.tokens_seen for sae in own if sae.training.tokens_seen or not sae.control)
    counts = _distinct(score.n for record in on_tokens for score in record.scores.values() if score.n)
    documents = _distinct(record.provenance.eval_documents for record in on_tokens)
    datasets, presets = _listed(one.dataset for one in made), _listed(map(preset_of, made)) + added_recipes(own)
    synthetic = all(record.provenance.config.get("world") for record in records)
    inputs, tokens, of = ("samples", "samples", "blocks") if synthetic else ("activations", "tokens", "documents")
    fingerprint = f", fingerprint {_listed(one.eval_fingerprint[:12] for one in made)}"
    parts = [
        *_warnings(records),
        f"Model {_listed(one.model for one in made)}; site {_listed(record.sae.site.name for record in records)}; "
        f"width {_listed(record.sae.d_sae for record in records)}.",
        f"Trained on {_range(trained)} {inputs} of {datasets} (preset {presets});"
        if trained
        else f"Dataset {datasets};",
        f"evaluated on {_range(counts)} held-out {tokens} of {_range(documents)} {of}{'' if paper else fingerprint}.",
        *_caveats(records),
        error,
    ]
    if not paper:
        versions = _listed(f"{record.task} {record.task_version}" for record in records)
        no_column = without_value(records)
        parts += [
            f"Versions: {versions}; sae-arch-bench {made[0].versions['sae-arch-bench']}.",
            no_column,
            *dict.fromkeys(of.caption for of in records if of.caption and of.caption not in no_column),
        ]
    if any(sae.control for sae in own):
        parts.append(MARGIN)
    return " ".join(filter(None, parts))


def preset_of(made: Provenance) -> str:
    """The preset, and the recipe that tuning found for it, if the run names one."""
    tuned = made.config.get("recipe")
    return f"{made.preset}, tuned by {tuned['name']} {tuned['sha256'][:8]}" if tuned else made.preset


def added_recipes(saes: Iterable[SAEDescription]) -> str:
    """Behind the preset: which of some SAEs were tuned by recipes that were added to the run's own."""
    added: dict[str, set[str]] = {}
    for sae in saes:
        if sae.tuned_by:
            added.setdefault(sae.tuned_by, set()).add(sae.label)
    return "".join(f", {', '.join(sorted(labels))} by {title}" for title, labels in sorted(added.items()))


def few_documents(n_documents: int) -> str:
    """What to know of errors from too few documents."""
    return (
        f"Errors from {n_documents} documents are too small: at least {MIN_DOCUMENTS} are needed for them to cover "
        "what they say; raise --eval-tokens."
    )


def remarks(records: Iterable[Record]) -> list[str]:
    """One line for everything that a record, or the origin of an SAE, asks its reader to know."""
    records = list(records)
    of_records = [f"{record.sae.id}: {record.task}: {remark}" for record in records for remark in record.remarks]
    saes = {record.sae.id: record.sae for record in records if record.sae.origin}.values()
    return [one_line(line) for line in (*(line for sae in saes for line in _of_origin(sae)), *of_records)]


def _of_origin(sae: SAEDescription) -> Iterator[str]:
    if sae.origin and sae.origin.site_from:
        yield f"{sae.id}: measured at {sae.site.path}, by {sae.origin.site_from}"
    yield from (f"{sae.id}: {note}" for note in (sae.origin.notes if sae.origin else ()))


def control(records: Iterable[Record]) -> str:
    """What stands above a table of SAEs of a model with random weights; nothing where there is none."""
    models = sorted({record.provenance.model for record in records if record.provenance.config.get("random_lm")})
    return f"CONTROL: {', '.join(models)}, not the trained one" if models else ""


def failed(records: Iterable[Record]) -> list[str]:
    """One line for every record of a failure."""
    return [one_line(f"{record.sae.id}: {record.task}: {record.failure}") for record in records if record.failure]


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Those that are known, sorted, each once."""
    known = {value for value in values if value is not None}
    return sorted(known, key=lambda value: natural_order(value) if isinstance(value, str) else value)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, _distinct(values)))


def _range(numbers: Sequence[float], form: str = ",") -> str:
    """From the first to the last of sorted numbers."""
    return " to ".join(format(number, form) for number in dict.fromkeys([*numbers[:1], *numbers[-1:]])) or "no"
