"""What a chat completion is: the parts that are used, validated; the rest may be anything.

Whoever answers is a stranger. Without a text there is no answer; a bill or log-probabilities that make no sense are as
if they had not been sent.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, WrapValidator

from sae_bench.autointerp.budget import Usage
from sae_bench.records.redact import HIDDEN, redact

Tokens = Sequence[tuple[str, Mapping[str, float]]]
"""Each token of an answer with its alternatives and their log-probabilities."""

LogProbability = Annotated[float, Field(allow_inf_nan=False, le=0.01)]  # rounded, it may be a little above 0
KEPT_TOKENS = TypeAdapter(list[tuple[str, dict[str, LogProbability]]])
"""Tokens as a file holds them."""

Count = Annotated[int, Field(strict=True, ge=0, le=10**9)]


def _or_none(value: Any, validate: Callable[[Any], Any]) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


IfValid = WrapValidator(_or_none)


class _Likely(BaseModel):
    token: str
    logprob: LogProbability


class _Token(BaseModel):
    token: str
    top_logprobs: list[_Likely] | None = None


class _LogProbabilities(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: Annotated[_LogProbabilities | None, IfValid] = None


class _Bill(BaseModel):
    prompt_tokens: Count
    completion_tokens: Count


class Completion(BaseModel):
    """A chat completion; only its first choice is looked at."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Annotated[_Bill | None, IfValid] = None

    @property
    def text(self) -> str:
        """What was said. A judge may repeat a corpus, and a corpus may hold a key: it is cut out here."""
        return _without_secrets(self.choices[0].message.content or "")

    @property
    def refusal(self) -> str | None:
        """Why nothing was said, if that is marked as a refusal."""
        choice = self.choices[0]
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return _without_secrets(choice.message.refusal or "") or self.text
        return None

    @property
    def cut(self) -> bool:
        """Whether it ends where its limit of tokens was."""
        return self.choices[0].finish_reason == "length"

    @property
    def billed(self) -> Usage | None:
        """What the server says that it took."""
        return Usage(self.usage.prompt_tokens, self.usage.completion_tokens) if self.usage else None

    @property
    def tokens(self) -> Tokens:
        """The tokens with log-probabilities; none if a key could be put together of them."""
        given = self.choices[0].logprobs
        tokens = [
            (one.token, {likely.token: likely.logprob for likely in one.top_logprobs or ()})
            for one in (given and given.content) or ()
        ]
        said = "".join(token for token, _ in tokens)
        ranks = ["".join(column) for column in zip_longest(*(likely for _, likely in tokens), fillvalue="")]
        return () if any(redact(text) != text for text in (said, *ranks)) else tokens


def _without_secrets(text: str) -> str:
    """The text redacted; nothing of it if JSON's escapes hide a key in it, which would come out when it is read."""
    text = redact(text)
    named = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    read = re.sub(r"\\(.)", r"\1", named)
    return text if all(redact(form) == form for form in (named, read)) else HIDDEN


def read_completion(body: bytes) -> Completion | None:
    """The completion that a server's answer holds; None if it holds none."""
    try:
        return Completion.model_validate_json(body)
    except ValidationError:
        return None
