"""Reading what a judge answered: by schema, tolerant of what stands around it, and never guessing.

An answer is a JSON object of the shape that was asked for. It may stand in a code block or among words; about one
excerpt alone it may be the word by itself. Everything else - a refusal, broken JSON, identifiers that were not given,
missing or doubled ones - is a failure with a name.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic_core import from_json

T = TypeVar("T")

MOST_OBJECTS = 64
"""Braces in an answer that may begin an object. Each is tried up to where it breaks: trying all would take long."""

_REFUSAL = re.compile(
    r"\W*(?:i(?:'m| am)(?: very)? (?:sorry|unable|not able)|sorry\b|as an ai\b"
    r"|i (?:cannot|can't|can not|won't|will not)\b)",
    re.IGNORECASE,
)
TRUE_WORDS, FALSE_WORDS = {"true", "yes", "1"}, {"false", "no", "0"}
_ONE_WORD = re.compile(r"[\s\"'`*]*(true|false|yes|no)[\s\"'`*.!]*", re.IGNORECASE)


class Unreadable(Exception):
    """An answer that is none; `kind` is what it is counted as."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_json(text: str, shape: Callable[..., T], *given: object) -> T:
    """The one thing that `shape(content, *given)` makes of a JSON object in the text.

    Raises:
        Unreadable: there is no such object, or there are two that differ.
    """
    found: list[T] = []
    problem = None
    for content in _objects(text):
        try:
            value = shape(content, *given)
        except Unreadable as error:
            problem = problem or error
            continue
        if found and value != found[0]:
            raise Unreadable("duplicate", "several answers that differ")
        found = [value]
    if found:
        return found[0]
    if problem:
        raise problem
    if is_refusal(text):
        raise Unreadable("refusal", "refused in words")
    raise Unreadable("unparsable", "no JSON object")


def is_refusal(text: str) -> bool:
    return _REFUSAL.match(text.replace("\u2019", "'")) is not None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object in the text, outermost ones only."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_doubles)
    start, n_tried = text.find("{"), 0
    while start >= 0:
        if (n_tried := n_tried + 1) > MOST_OBJECTS:
            raise Unreadable("unparsable", f"more than {MOST_OBJECTS} objects")
        try:
            content, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield content
        start = text.find("{", end)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise Unreadable("duplicate", "an identifier stands there twice")
    return content


def booleans(content: dict[str, Any], identifiers: Sequence[str]) -> dict[str, bool]:
    """The shape {"identifier": true or false} for exactly these."""
    if not content.keys() & set(identifiers):
        raise Unreadable("unparsable", "none of the identifiers")
    if content.keys() != set(identifiers):
        raise Unreadable("wrong_length", f"{len(content)} answers for {len(identifiers)} identifiers")
    return {name: _boolean(content[name]) for name in identifiers}


def _boolean(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in TRUE_WORDS | FALSE_WORDS:
        raise Unreadable("unparsable", f"{word[:20]!r} is neither true nor false")
    return word in TRUE_WORDS


def read_boolean(text: str, identifier: str) -> dict[str, bool]:
    """The answer about one excerpt: {"identifier": true or false}, or that word by itself on the first line.

    Reasons may follow on other lines. A word at the head of a sentence is no answer: an excerpt that is said back may
    begin with one.

    Raises:
        Unreadable: it is neither, or the word is taken back.
    """
    try:
        return read_json(text, booleans, [identifier])
    except Unreadable as error:
        if error.kind != "unparsable" or "{" in text:
            raise
        lines = text.strip().splitlines()
        words = [match[1] for match in map(_ONE_WORD.fullmatch, lines) if match]
        if not words or not _ONE_WORD.fullmatch(lines[0]):
            raise
        if len(words) > 1:
            kind = "wrong_length" if len({_boolean(word) for word in words}) == 1 else "duplicate"
            raise Unreadable(kind, f"{len(words)} answers about one excerpt") from None
        return {identifier: _boolean(words[0])}


def read_cut_boolean(text: str, identifier: str) -> dict[str, bool]:
    """`read_boolean` of an answer that was cut off among its reasons.

    Raises:
        Unreadable: it is cut off before its first line is whole, or there is no answer in it.
    """
    whole, newline, _ = text.rstrip("\n").rpartition("\n")
    if not newline:
        raise Unreadable("length", "cut off within its first line")
    try:
        return read_boolean(whole, identifier)
    except Unreadable as error:
        raise Unreadable("length" if error.kind == "unparsable" else error.kind, str(error)) from None


def whole_sentence(text: str) -> str:
    """The first sentence of an answer that was cut off, in words or within JSON's: what was asked for, if it is whole.

    Raises:
        Unreadable: it is not.
    """
    plain = " ".join(_begun(text).split())
    match = re.match(r"[^{\[<].{10,400}?[.!?](?=\s)", plain)
    if match is None or is_refusal(plain):
        raise Unreadable("length", "cut off within its first sentence")
    return match[0]


def _begun(text: str) -> str:
    """What {"explanation": "..."} says up to where it was cut off; a text without an object as it is, else nothing."""
    start = text.find("{")
    if start < 0:
        return text
    try:
        content = from_json(text[start:], allow_partial="trailing-strings")
    except ValueError:
        content = None
    said = content.get("explanation") if isinstance(content, dict) and len(content) == 1 else None
    return said if isinstance(said, str) else ""


def sentence(content: dict[str, Any]) -> str:
    """The shape {"explanation": "a sentence"}; one that is too long is cut."""
    text = content.get("explanation")
    if not isinstance(text, str) or not text.strip():
        raise Unreadable("unparsable", 'no text "explanation"')
    if is_refusal(text):
        raise Unreadable("refusal", "refused in words")
    # JSON can name half a character, which no file can hold.
    return " ".join(text.encode(errors="replace").decode().split())[:400]
