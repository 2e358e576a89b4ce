"""What a record says, as types: one for every (SAE, task), with its values or why there are none.

Records are read by `read_record` and written by `write_record`, and nothing else knows their JSON. What is declared
here is what the rest of the harness relies on; whatever else a record holds is kept and written again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SkipValidation,
    Strict,
    ValidationError,
    model_validator,
)

from sae_bench.errors import UserError
from sae_bench.records.files import digest_of, read_sealed, write_sealed

SCHEMA_VERSION = 2
"""Of what is written. Version 1, that of records that name none, left to the reader what 2 says in general terms."""

P = TypeVar("P", bound="_Part")

Number = Annotated[float, Strict()]  # no text that looks like one
Count = Annotated[int, Strict()]


@dataclass(frozen=True)
class Metric:
    """A number that a task reports: which way is better (None: neither), its unit, what it means."""

    name: str
    better: Literal["up", "down"] | None
    unit: str
    description: str
    headline: bool = False
    """Whether the leaderboard shows it unasked."""


@dataclass(frozen=True)
class Score:
    """A measured value with its standard error (clustered by document) and the number of tokens behind it.

    A value that cannot be had is None, with a note that says why; it never enters a mean.
    """

    value: Number | None
    stderr: Number | None
    n: Count
    """0 where the weights alone decide the value."""
    formula: str | None = None
    """Which per-document sums of the record give the value, as "numerator / denominator"."""
    note: str | None = None


class _Part(BaseModel):
    """Part of a record: never changed, and what is not declared is kept."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    @classmethod
    def read(cls: type[P], content: Mapping[str, Any], where: Path) -> P:
        """Check what a file says.

        Raises:
            UserError: it is ill-typed; the message names the file and the field.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{where}: {field}: {first['msg']}, got {first['input']!r:.60}: it is of another program; delete it "
                "and run the same command again"
            ) from None

    def as_json(self) -> dict[str, Any]:
        """What a file says of it: all that was said when it was made."""
        return self.model_dump(mode="json", exclude_unset=True)


class SiteDescription(_Part):
    """Where in the language model an SAE reads: the fields of `lm.sites.Site`, and the site's name."""

    name: str
    layer: Count | None = None
    kind: str = ""
    path: str = ""


class Training(_Part):
    """What became of a training; empty but for the failure where others trained the SAE."""

    failure: str | None = None
    tokens_seen: Count | None = None
    seconds: Number | None = None
    fingerprint: str | None = None
    """Of the tokens, as a stream of them has it."""
    activations: str | None = None
    """As in `Provenance`."""
    remarks: list[str] = []
    """What a reader has to know of how it went on: on another machine, or with other versions."""
    eval_overlap: Number | None = None
    """Share of the evaluation tokens that lie in a run of 13 tokens which the training text has too."""
    overlap_of: str | None = None
    """The hash of the evaluation's settings that this is of."""


class Origin(_Part):
    """Where an SAE is from that the run did not train."""

    source: str
    format: str
    site_from: str = ""
    """Where its site was read: a file, its path, a flag."""
    notes: list[str] = []
    """What a reader has to know of the file."""


class SAEDescription(_Part):
    """What an SAE is and what trained it."""

    id: str
    arch: str
    label: str
    """The architecture with its settings, as boards name it."""
    arch_version: str
    site: SiteDescription
    d_in: Count
    d_sae: Count
    target_l0: Number | None
    coefficient: Number | None
    seed: Count | None
    control: bool = False
    """Whether it is a control, which boards show apart."""
    options: dict[str, Any]
    recipe: dict[str, Any] | None
    tuned_by: str | None = None
    """The tuned recipe that settings are from, where it was added to the run's own, which `config` names."""
    training: Training = Training()
    weights_sha256: str = ""
    """Empty until the weights are saved."""
    origin: Origin | None = None

    @model_validator(mode="after")
    def _of_the_run_itself(self) -> "SAEDescription":
        if self.origin is None and (self.seed is None or self.target is None):
            raise ValueError("an SAE without an origin has a seed, and a target_l0 or a coefficient")
        return self

    @property
    def target(self) -> float | None:
        """The wanted L0, or the raw coefficient where none was wanted; None where neither is known."""
        return self.target_l0 if self.target_l0 is not None else self.coefficient

    @property
    def whole_recipe(self) -> dict[str, Any]:
        """What it learns from besides a run's settings: recipe, options, and the version of its architecture."""
        return {**(self.recipe or {}), **self.options, "arch_version": self.arch_version}


class Provenance(_Part):
    """Where a record's numbers come from: what every record of a run repeats."""

    model: str
    dataset: str
    preset: str
    eval_fingerprint: str
    eval_documents: Count
    eval_tokens: Count | None = None
    config_hash: str
    versions: dict[str, str]
    config: dict[str, Any] = {}
    model_revision: str | None = None
    model_sha256: str | None = None
    """Of the weights alone."""
    model_fingerprint: str | None = None
    """Of all that decides its numbers: weights, buffers, configuration, code, tokenizer. Earlier records have none."""
    tokenizer_sha256: str | None = None
    lm_dtype: str | None = None
    sae_dtype: str | None = None
    activations: str | None = None
    """The cache that activations were kept in, and read from; None where nothing was kept."""
    time: str | None = None


ON_TOKENS, ON_TEXTS, ON_LATENTS, BY_RATERS = "tokens", "texts", "latents", "raters"
"""What a record's scores are measured on: the evaluation tokens, text that its task brings, collected latents, or what
people say."""


RATIO = re.compile(r"(1 - )?([\w.]+) / ([\w.]+)")
"""The formula of a score that is a ratio of sums in `by_document`."""


def _numbers(values: object) -> object:
    """A list of numbers, found to be one as a whole: there may be hundreds of thousands."""
    kinds = {*map(type, values)} if isinstance(values, list) else {str}
    if bool in kinds or not all(issubclass(kind, int | float) for kind in kinds):
        raise ValueError("it should be a list of numbers")
    return values


class Record(_Part):
    """One (SAE, task)."""

    schema_version: Count = SCHEMA_VERSION
    task: str
    task_version: str
    failure: str | None
    metrics: dict[str, Metric]
    scores: dict[str, Score]
    by_document: dict[str, list[float]]
    per_latent: dict[str, Annotated[SkipValidation[list[int] | list[float]], BeforeValidator(_numbers)]]
    details: dict[str, Any]
    sae: SAEDescription
    provenance: Provenance
    measured_on: str = ON_TOKENS
    """What scores count: the evaluation tokens, or something else. `by_document` is by the units of that."""
    comparable: dict[str, str] = Field(default_factory=dict)  # pydantic copies other defaults, record by record
    """What two records of this task must share, besides tokens and versions, to stand in one table, by what it is."""
    not_measured: str | None = None
    """Why nothing was measured, though nothing failed."""
    caption: str | None = None
    """What a table with this record must say below it."""
    siblings: list[str] = Field(default_factory=list)
    """weights_sha256 of the SAEs of other seeds that it was compared with."""
    remarks: list[str] = Field(default_factory=list)
    """What a reader has to know of this SAE alone."""

    @model_validator(mode="after")
    def _ratios_of_as_many_documents(self) -> "Record":
        for score in self.scores.values():
            parts = RATIO.fullmatch(score.formula or "")
            above, below = (self.by_document.get(name) for name in parts.group(2, 3)) if parts else (None, None)
            if above is not None and below is not None and len(above) != len(below):
                raise ValueError(f"by_document: {score.formula} is of {len(above)} and {len(below)} documents")
        return self


def read_record(path: Path) -> Record:
    """Read a record; one of an earlier version is read as what it says in today's terms.

    Raises:
        Damaged: it is not what was written.
        UserError: it is ill-typed, or of a later version of the harness.
    """
    return record_from(read_sealed(path), path)


def record_from(content: Mapping[str, Any], path: Path) -> Record:
    """The record that the content of a file is.

    Raises:
        UserError: as `read_record`.
    """
    version = content.get("schema_version", 1)
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version {version!r}: this version of sae-arch-bench reads 1 to {SCHEMA_VERSION}; "
            "update it, or delete the file and run the same command again"
        )
    return Record.read(content if version == SCHEMA_VERSION else _from_version_1(content), path)


def write_record(path: Path, record: Record) -> None:
    """Write a record, sealed and without secrets."""
    write_sealed(path, record.as_json() | {"schema_version": SCHEMA_VERSION})


NOT_APPLICABLE = "does not apply"
"""What `not_measured` says of a task that asks for what the run's activations do not have; the caption says why."""

JUDGED_BY = "judges, prompts or latents"
"""What records of judged latents must share."""
NO_JUDGE = "no judge"


def _from_version_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 hid in `details` what a table has to know of records about latents."""
    details = content.get("details")
    details = details if isinstance(details, Mapping) else {}
    found = {name: details[name] for name in ("caption", "remarks") if name in details}
    if details.get("judge") is not None:
        found["comparable"] = {JUDGED_BY: digest_of(details["judge"])}
    elif content.get("measured_on") == ON_LATENTS and content.get("failure") is None:
        found["not_measured"] = NO_JUDGE
    return {**content, **found, "schema_version": SCHEMA_VERSION}
