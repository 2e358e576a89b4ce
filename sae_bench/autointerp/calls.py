"""One call to a language model: where it goes, what is asked, and what came back."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_bench.autointerp.budget import Usage, estimated_tokens
from sae_bench.autointerp.parse import Unreadable
from sae_bench.autointerp.prompt import Message
from sae_bench.records.files import digest_of

OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Endpoint:
    """Where a language model is and what it is called."""

    model: str
    base_url: str

    @property
    def api_key(self) -> str | None:
        """The key, from the environment: OpenAI's is sent to OpenAI alone."""
        return os.environ.get("OPENAI_API_KEY" if self.base_url == OPENAI else "JUDGE_API_KEY")


@dataclass(frozen=True)
class Question:
    """What is asked about some examples of a latent, what the answer looks like, and what reads it."""

    messages: Sequence[Message]
    properties: Mapping[str, Any]
    """JSON schemas of all properties of the object that is the answer."""
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
        openai = self.endpoint.base_url == OPENAI
        properties = dict(self.question.properties)
        answer = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        schema = {"name": "answer", "strict": True, "schema": answer}
        return {
            "max_completion_tokens" if openai else "max_tokens": self.question.max_tokens,
            "temperature": 0,
            "seed": 0,
            "response_format": {"type": "json_schema", "json_schema": schema},
            **({"logprobs": True, "top_logprobs": 12} if self.question.logprobs else {}),
        }

    @property
    def digest(self) -> str:
        """What the cache knows it by: endpoint, model, messages and parameters."""
        asked = [self.endpoint.base_url, self.endpoint.model, list(self.question.messages), self.parameters]
        return digest_of(asked)

    @property
    def most(self) -> Usage:
        """The most that it should cost."""
        text = "".join(message["content"] for message in self.question.messages)
        return Usage(estimated_tokens(text), self.question.max_tokens)


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
    tokens: Sequence[tuple[str, Mapping[str, float]]] = ()
