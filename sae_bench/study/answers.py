"""Answers on the disk: appended as they come, durable before they are acknowledged, and checked at the door.

The same event may come twice, from a page that did not hear the acknowledgement or in a result file that is imported
again: it is written once. A line that a kill cut off was never acknowledged, and is removed before the next is written.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from sae_bench.errors import UserError
from sae_bench.records.files import sync_folder
from sae_bench.study.schema import (
    EVENT,
    FORMAT,
    Answer,
    Assignment,
    Event,
    Id,
    Part,
    StudyFolder,
    Undo,
    first_of,
    read_events,
)

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

RESULTS = "sae-arch-bench study answers"
MOST_BYTES = 64 << 20
"""Of a result file."""


class Results(Part):
    """What a rater without Python sends back: everything that happened on the page."""

    kind: Literal["sae-arch-bench study answers"]
    format: Literal[1] = FORMAT
    study: Id
    rater: int
    events: list[Event]


def add_events(folder: StudyFolder, assignment: Assignment, events: Sequence[Answer | Undo]) -> list[Answer | Undo]:
    """Append those of a rater's events that are new, durably; returns all that the file then holds.

    Raises:
        UserError: an event is about what the rater was not shown, or another one of this id was there before; or the
            file cannot be read or written. Nothing is written then.
    """
    path = folder.answers_path(assignment.rater)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # No link is followed: the folder may have been on other machines.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags, 0o644), "r+b") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            there = read_events(path)
            new = _new(there, assignment, events, path)
            if whole < len(content):
                file.truncate(whole)
            file.write(b"".join(json.dumps(event.model_dump(mode="json")).encode() + b"\n" for event in new))
            file.flush()
            os.fsync(file.fileno())
        if not content:
            sync_folder(path.parent)  # its name, too, outlives a power failure
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}: free space, or make the folder writable") from None
    return [*there, *new]


def _new(
    there: Sequence[Answer | Undo], assignment: Assignment, events: Sequence[Answer | Undo], path: Path
) -> list[Answer | Undo]:
    shown = {(showing.item, showing.showing): showing for showing in assignment.showings}
    known = {event.id: event for event in there}
    new = []
    for event in events:
        showing = shown.get((event.item, event.showing))
        if showing is None:
            raise UserError(f"item {event.item}, showing {event.showing}: rater {assignment.rater} was not shown it")
        if isinstance(event, Answer) and event.detection is not None and not showing.mixed:
            raise UserError(f"item {event.item}: it answers question 3, which was not asked")
        if event.id not in known:
            new.append(event)
        elif known[event.id] != event:
            raise UserError(f"event {event.id} is another one in {path}: one of the two was changed; keep the true one")
        known[event.id] = event
    return new


def keep(folder: StudyFolder, assignment: Assignment, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a rater's page is told: it sends events, none or some, and gets all that there are.

    Raises:
        UserError: what it sends is no event; or as `add_events`.
    """
    sent = asked.get("events")
    if not isinstance(sent, list):
        raise UserError("no events were sent: reload the page")
    there = add_events(folder, assignment, [event_from(one) for one in sent])
    return {"events": [event.model_dump(mode="json") for event in there]}


def event_from(content: Mapping[str, Any]) -> Answer | Undo:
    """Check one event, as JSON gives it.

    Raises:
        UserError: it is none; the message names the field.
    """
    try:
        return EVENT.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise UserError(f"no answer: {first_of(error)}") from None


def import_results(folder: StudyFolder, file: Path) -> tuple[Assignment, int]:
    """Take a rater's result file in: whose it was, and how many events were new.

    Raises:
        UserError: it is no result file, or one of another study; or as `add_events`. Nothing is taken in then.
    """
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file} has more than {MOST_BYTES >> 20} MiB: it is no result file of a study's page")
        results = Results.model_validate_json(file.read_bytes(), strict=True)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(
            f"{file}: {first_of(error)}: it is no result file, or was changed; ask for what the page's button saves"
        ) from None
    try:
        assignment = folder.assignment(results.rater)
    except UserError as error:
        raise UserError(f"{file} is of rater {results.rater}: {error}") from None
    if results.study != assignment.study:
        raise UserError(f"{file} is of study {results.study}, and {folder.path} holds {assignment.study}")
    before = len(read_events(folder.answers_path(results.rater)))
    try:
        there = add_events(folder, assignment, results.events)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return assignment, len(there) - before
