"""What is in a study's folder, as types: the sealed key, each rater's sealed assignment, and answers as they came.

    study/study.json               sealed: settings, SAEs, and which item is which latent. For whoever runs the study
          raters/rater-03.json     sealed: what rater 3 is shown, in this order. Nothing in it tells an SAE
          answers/rater-03.jsonl   one event a line, appended as it happens: an answer, or one taken back
          pages/rater-03.html      the same for a rater without Python, on request

An item is a latent under an opaque name, with excerpts chosen once: every rater who gets it sees the same. A showing is
an item put before a rater; the second one of an item to the same rater is its repeat, for test-retest.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sae_bench.errors import UserError
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.records.schema import Provenance, SAEDescription

P = TypeVar("P", bound="Part")

FORMAT: Final = 1
"""Version of these files."""
N_TENTHS = 10
N_MIXED = 10
"""Excerpts of a question about detection."""

Id = Annotated[str, Field(pattern=r"^[0-9a-z]{8,40}$")]
"""Drawn at random: it tells nothing of what it names."""


class Part(BaseModel):
    """Part of a study's files: never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls: type[P], path: Path) -> P:
        """Read a sealed file.

        Raises:
            UserError: it is missing, damaged, or of another version of the harness; the message names the file.
        """
        content = read_sealed(path)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"{path}: {first_of(error)}: it is of another version of sae-arch-bench") from None

    def write(self, path: Path) -> None:
        """Write a sealed file, whole or not at all."""
        write_sealed(path, self.model_dump(mode="json"))


class Settings(Part):
    """What a study was asked to be."""

    seed: int
    n_latents: int
    """Of each SAE."""
    n_raters: int
    overlap: int
    """How many raters see each latent."""
    repeats: int
    """Items that each rater sees twice."""
    n_excerpts: int
    """Shown of every latent, the same number of each: how many there are would tell how often it fires."""
    detection: bool
    """Whether question 3 is asked."""


class StudySAE(Part):
    """An SAE of the study, as its run describes it, and how its latents were sampled."""

    run: str
    """The run's folder, absolute when the study was made."""
    sae: SAEDescription
    """Of which `id`, `arch`, `target_l0` and `control` say what it is, and `weights_sha256` which it is."""
    provenance: Provenance
    n_alive: int
    """Latents that fired often enough to be collected."""
    n_collected: int
    """Uniform sample of those, of which excerpts are kept."""
    n_passed_over: int
    """Collected ones with too few excerpts to be shown, met on the way to as many as the study asks about."""


class Item(Part):
    """What an item is: the key that raters never see."""

    id: Id
    sae: int
    """Index into `saes`."""
    latent: int
    density: float
    """Share of the interpretation tokens on which it fires."""
    truth: list[bool]
    """Whether it fires in each of the mixed excerpts, as they are shown; empty without question 3."""
    shown: list[int]
    """Examples of the latent's file, by number, in the order in which they are shown."""
    mixed: list[int]
    """Likewise those of question 3."""
    collected_sha256: str
    """Of what was collected of the latent (`records.lineage.collected_hash`)."""


class Study(Part):
    """study.json."""

    format: Literal[1] = FORMAT
    id: Id
    """Of the study: its raters' files and their answers say it too."""
    made: datetime
    settings: Settings
    saes: list[StudySAE]
    items: list[Item]


class Excerpt(Part):
    """Tokens of text, each shaded by its activation, by size, as a share of the strongest excerpt's peak."""

    tenth: int | None
    """1 to 10: the tenth of the range, 0 to the strongest of the latent's excerpts, that its peak lies in; None in
    `mixed`."""
    tokens: list[str]
    shading: list[float]
    """0 to 1, of each token; empty in question 3, which is about where it fires."""


class Showing(Part):
    """An item as one rater sees it."""

    item: Id
    showing: int
    """0, or 1 for its repeat."""
    excerpts: list[Excerpt]
    mixed: list[Excerpt]
    """Of question 3; empty where it is not asked."""


class Assignment(Part):
    """raters/rater-NN.json: all that a rater receives."""

    format: Literal[1] = FORMAT
    study: Id
    rater: int
    n_raters: int
    showings: list[Showing]


def _with_zone(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError("a time of day needs its zone")
    return time


Time = Annotated[datetime, AfterValidator(_with_zone)]
MOST_TEXT = 2000
"""Characters of what a rater may write about one latent."""
MOST_SECONDS = 86_400  # of an answer: pauses are left out, and nobody looks at a latent for more than a day


class Answer(Part):
    """What a rater said of a showing, once."""

    event: Literal["answer"] = "answer"
    id: Id
    """Of this event, made by the page: the same one sent twice is one."""
    item: Id
    showing: Annotated[int, Field(ge=0, le=1)]
    interpretable: Literal["yes", "maybe", "no"]
    meaning: Annotated[str, Field(max_length=MOST_TEXT)] = ""
    confidence: Annotated[int, Field(ge=1, le=3)] | None = None
    """1 a guess, 2 fairly sure, 3 sure."""
    detection: Annotated[list[bool], Field(max_length=N_MIXED, min_length=N_MIXED)] | None = None
    """Which of the mixed excerpts activate; None where it was not asked, or passed over."""
    seconds: Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]
    """On screen, pauses left out, from its first showing to this answer."""
    time: Time


class Undo(Part):
    """A rater took the answer to a showing back."""

    event: Literal["undo"] = "undo"
    id: Id
    item: Id
    showing: Annotated[int, Field(ge=0, le=1)]
    time: Time


Event = Annotated[Answer | Undo, Field(discriminator="event")]
EVENT: TypeAdapter[Answer | Undo] = TypeAdapter(Event)
Key = tuple[str, int]
"""Item and showing."""


def answers_of(events: Iterable[Answer | Undo]) -> dict[Key, Answer]:
    """The answers that count: of each showing the last, unless it was taken back; an event that came twice is one."""
    seen: set[str] = set()
    standing: dict[Key, Answer] = {}
    for event in events:
        if event.id in seen:
            continue
        seen.add(event.id)
        key = event.item, event.showing
        standing.pop(key, None)
        if isinstance(event, Answer):
            standing[key] = event
    return standing


def read_events(path: Path) -> list[Answer | Undo]:
    """A rater's events; none where there is no file. A last line that a kill cut off was never acknowledged.

    Raises:
        UserError: another line is no event, of the very types that are said; the message names file and line.
    """
    if not path.exists():
        return []
    try:
        *whole, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: put a rater's answers there, or delete it") from None
    events = []
    for number, line in enumerate(whole, start=1):
        try:
            events.append(EVENT.validate_json(line, strict=True))
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {first_of(error)}: restore the line, or delete it") from None
    return events


def first_of(error: ValidationError) -> str:
    """The field that is wrong, what is wrong with it, and what it says."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r:.60}".removeprefix(": ")


MAKE = "`python bench.py study make RUN... --out DIR`"


class StudyFolder:
    """Where things are in a study's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def key_path(self) -> Path:
        return self.path / "study.json"

    def assignment_path(self, rater: int) -> Path:
        return self.path / "raters" / f"rater-{rater:02d}.json"

    def answers_path(self, rater: int) -> Path:
        return self.path / "answers" / f"rater-{rater:02d}.jsonl"

    def page_path(self, rater: int) -> Path:
        return self.path / "pages" / f"rater-{rater:02d}.html"

    def study(self) -> Study:
        """The key.

        Raises:
            UserError: there is none, or it is damaged.
        """
        if not self.key_path.exists():
            raise UserError(f"{self.path} holds no study: make one with {MAKE}")
        return Study.read(self.key_path)

    def assignment(self, rater: int) -> Assignment:
        """What a rater, from 1, is shown.

        Raises:
            UserError: there is no such rater, or the file is damaged.
        """
        if rater not in (raters := self.raters()):
            raise UserError(f"{self.path} has no rater {rater}, but {raters[0]} to {raters[-1]}: name one of these")
        return Assignment.read(self.assignment_path(rater))

    def raters(self) -> list[int]:
        """Those whose assignments are here, at least one, in order; the key may be kept elsewhere.

        Raises:
            UserError: there are none.
        """
        names = (path.stem.removeprefix("rater-") for path in (self.path / "raters").glob("rater-*.json"))
        numbers = sorted(int(name) for name in names if name.isdecimal())
        if not numbers:
            raise UserError(f"{self.path} holds no raters' files: make a study with {MAKE}")
        return numbers

    def answers(self, rater: int) -> dict[Key, Answer]:
        """The answers of a rater that count, by item and showing; errors as `read_events`."""
        return answers_of(read_events(self.answers_path(rater)))
