"""One call to a language model: where it goes, what is asked, and what came back."""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_bench.autointerp.budget import Usage
from sae_bench.autointerp.completion import Tokens
from sae_bench.autointerp.parse import Unreadable
from sae_bench.autointerp.prompt import Message
from sae_bench.records.files import digest_of

OPENAI = "https://api.openai.com/v1"

BYTES_PER_TOKEN = 3.3
"""Of a prompt, which is JSON with English in it; for what a call is expected to take."""

SHARE_OF_LIMIT = 1 / 3
"""How much of its limit an answer is expected to take: limits leave room for those who write more than was asked."""


@dataclass(frozen=True)
class Endpoint:
    """Where a language model is and what it is called."""

    model: str
    base_url: str

    @property
    def api_key(self) -> str | None:
        """The key, from the environment: OpenAI's is sent to OpenAI alone."""
        return os.environ.get(self.key_name, "").strip() or None

    @property
    def key_name(self) -> str:
        """The environment's variable that holds the key."""
        return "OPENAI_API_KEY" if self.is_openai else "JUDGE_API_KEY"

    @property
    def is_openai(self) -> bool:
        """Whether it is OpenAI, who bills what it says that it bills."""
        return self.base_url == OPENAI


@dataclass(frozen=True)
class Question:
    """What is asked about some examples of a latent, what the answer looks like, and what reads it."""

    messages: Sequence[Message]
    properties: Mapping[str, Any]
    """JSON schemas of all properties of the object that is the answer; empty: it is no object, but a word."""
    max_tokens: int
    read: Callable[[str], Any]
    """Makes a value of the answer's text, or raises Unreadable."""
    examples: Sequence[int]
    """Numbers of the examples that it is about, in the order of the latent's file."""
    truth: Sequence[Any] = ()
    """What is right for each of them."""
    read_cut: Callable[[str], Any] | None = None
    """Reads an answer that was cut off at `max_tokens`; None: such an answer is a failure."""
    logprobs: bool = False

    def value_of(self, text: str, *, cut: bool) -> Any:
        """What an answer says; raises Unreadable if that is nothing."""
        if not cut:
            return self.read(text)
        if self.read_cut is None:
            raise Unreadable("length", "cut off at its limit")
        return self.read_cut(text)


@dataclass(frozen=True)
class Call:
    """A question to an endpoint."""

    endpoint: Endpoint
    question: Question

    @property
    def parameters(self) -> dict[str, Any]:
        properties = dict(self.question.properties)
        answer = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        schema = {"name": "answer", "strict": True, "schema": answer}
        shape = {"response_format": {"type": "json_schema", "json_schema": schema}} if properties else {}
        return {
            "max_completion_tokens" if self.endpoint.is_openai else "max_tokens": self.question.max_tokens,
            "temperature": 0,
            "seed": 0,
            **shape,
            **({"logprobs": True, "top_logprobs": 12} if self.question.logprobs else {}),
        }

    @property
    def digest(self) -> str:
        """What the cache knows it by: endpoint, model, messages and parameters."""
        asked = [self.endpoint.base_url, self.endpoint.model, list(self.question.messages), self.parameters]
        return digest_of(asked)

    def body(self, without: Collection[str] = ()) -> bytes:
        """The request as it is sent, less some parameters that the endpoint does not know."""
        parameters = {name: value for name, value in self.parameters.items() if name not in without}
        content = {"model": self.endpoint.model, "messages": list(self.question.messages), **parameters}
        return json.dumps(content, ensure_ascii=False).encode(errors="replace")

    def most(self, without: Collection[str] = ()) -> Usage:
        """The most that it can take: a token is a byte of the request at least, whatever language it is in."""
        return Usage(len(self.body(without)), self.question.max_tokens)

    @property
    def expected(self) -> Usage:
        """About what it will take."""
        text = "".join(message["content"] for message in self.question.messages)
        return Usage(round(len(text.encode()) / BYTES_PER_TOKEN), round(self.question.max_tokens * SHARE_OF_LIMIT))


@dataclass(frozen=True)
class Answer:
    """What came back: `value`, or None and what is counted as the reason. `tokens` are those with log-probabilities."""

    value: Any = None
    text: str | None = None
    failure: str | None = None
    usage: Usage = field(default_factory=Usage)
    cached: bool = False
    cut: bool = False
    """Whether it was cut off at its limit, and `value` is what could be read of it."""
    tokens: Tokens = ()
