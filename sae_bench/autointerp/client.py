"""The client of the language models that explain and judge, behind any endpoint that speaks OpenAI's chat completions.

A call goes through the cache, the budget, a limit on how many are under way, and the `openai` client, which tries
again with growing pauses after 429, 5xx, lost connections and time-outs. What comes back is an `Answer`: a value of
the wanted shape, or a failure with a name; nothing is dropped and nothing raised, unless the endpoint cannot be used at
all. Only answers that could be read enter the cache, and they are on disk before the next call begins: whoever is
killed sends no answered call again.

Where an endpoint does not know a parameter - a schema, log-probabilities - the call is made without it, and so are all
later ones to that endpoint.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from sae_bench.autointerp.budget import Spending, Usage, estimated_tokens
from sae_bench.autointerp.calls import Answer, Call, Endpoint
from sae_bench.autointerp.parse import Unreadable
from sae_bench.errors import one_line
from sae_bench.records.files import Damaged, read_sealed, write_sealed
from sae_bench.records.redact import redact

log = logging.getLogger(__name__)

MAX_RETRIES = 4
GIVE_UP_AFTER = 20
"""Calls in a row that no answer came to, after which the rest are not tried."""

TRANSIENT = ("timeout", "connection", "rate_limit", "server", "malformed", "gave_up", "budget")
"""Failures that another command may not meet: a record that counts any is made again."""

_OPTIONAL = {"response_format": ("response_format",), "logprobs": ("logprobs", "top_logprobs"), "seed": ("seed",),
             "temperature": ("temperature",)}  # fmt: skip


class EndpointUnusable(Exception):
    """An endpoint refuses every call: a wrong key, model or address."""


class Client:
    """Asks; see the module. Use within one event loop, and `close` at the end."""

    def __init__(self, cache: Path, spending: Spending, *, concurrency: int, timeout: float) -> None:
        self.cache, self.spending = cache, spending
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout = timeout
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self._unknown: dict[Endpoint, set[str]] = {}
        self._n_lost = 0

    async def ask(self, call: Call) -> Answer:
        """The answer, from the cache or from the endpoint.

        Raises:
            EndpointUnusable: the endpoint refuses every call.
        """
        if (kept := self._kept(call)) is not None:
            return kept
        async with self._slots:
            if self._n_lost >= GIVE_UP_AFTER:
                return Answer(None, None, "gave_up", Usage())
            if not self.spending.reserve(call.endpoint.model, call.most):
                return Answer(None, None, "budget", Usage())
            answer = Answer(None, None, "connection", Usage())
            try:
                answer = await self._send(call)
            finally:
                self.spending.release(call.endpoint.model, call.most, answer.usage)
            lost = answer.failure in TRANSIENT
            self._n_lost = self._n_lost + 1 if lost else 0
            if answer.failure is None:
                self._keep(call, answer)
            return answer

    async def _send(self, call: Call) -> Answer:
        try:
            completion = await self._complete(call)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise EndpointUnusable(f"{call.endpoint.model}: {_said(error)}") from None
        except openai.APITimeoutError:
            return Answer(None, None, "timeout", Usage())
        except openai.APIConnectionError:
            return Answer(None, None, "connection", Usage())
        except openai.RateLimitError:
            return Answer(None, None, "rate_limit", Usage())
        except openai.APIStatusError as error:
            log.warning("the judge %s answers: %s", call.endpoint.model, _said(error))
            return Answer(None, None, "server" if error.status_code >= 500 else "request", Usage())
        except (openai.OpenAIError, ValueError) as error:  # an answer cut short, or one of no JSON at all
            log.warning("the judge %s answers what is no completion: %s", call.endpoint.model, _said(error))
            return Answer(None, None, "malformed", Usage())
        return _answer(call, completion)

    async def _complete(self, call: Call) -> Any:
        unknown = self._unknown.setdefault(call.endpoint, set())
        while True:
            parameters = {name: value for name, value in call.parameters.items() if name not in unknown}
            # Plain dictionaries all the way: the client's types for messages say no more than Message does.
            create: Any = self._client(call.endpoint).chat.completions.create
            try:
                return await create(model=call.endpoint.model, messages=list(call.question.messages), **parameters)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = _refused(f"{error} {error.response.text}", parameters)
                if not refused:
                    raise
                log.warning("the judge %s does without %s", call.endpoint.model, " and ".join(sorted(refused)))
                unknown |= refused

    def _client(self, endpoint: Endpoint) -> openai.AsyncOpenAI:
        if endpoint.base_url not in self._clients:
            self._clients[endpoint.base_url] = openai.AsyncOpenAI(
                base_url=endpoint.base_url,
                api_key=endpoint.api_key or "none",
                timeout=self._timeout,
                max_retries=MAX_RETRIES,
            )
        return self._clients[endpoint.base_url]

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    def _path(self, call: Call) -> Path:
        return self.cache / call.digest[:2] / f"{call.digest}.json"

    def is_kept(self, call: Call) -> bool:
        """Whether the cache has the answer."""
        return self._path(call).is_file()

    def _kept(self, call: Call) -> Answer | None:
        try:
            content = read_sealed(self._path(call)) if self.is_kept(call) else None
            return None if content is None else _read(call, content, cached=True)
        except (Damaged, Unreadable, KeyError):
            log.warning("a cached answer of %s is damaged: it is asked for again", call.endpoint.model)
            return None

    def _keep(self, call: Call, answer: Answer) -> None:
        content = {
            "model": call.endpoint.model,
            "text": answer.text,
            "cut": answer.cut,
            "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
            "tokens": [[token, dict(likely)] for token, likely in answer.tokens],
        }
        write_sealed(self._path(call), content)


def _refused(complaint: str, parameters: Mapping[str, Any]) -> set[str]:
    """The optional parameters that an endpoint complains of; if it does not say which, the next that can be spared."""
    groups = [set(names) & parameters.keys() for names in _OPTIONAL.values()]
    named = [group for key, group in zip(_OPTIONAL, groups, strict=True) if key in complaint and group]
    spare = [group for group in groups if group]
    return set().union(*(named or spare[:1]))


def _read(call: Call, content: Mapping[str, Any], *, cached: bool) -> Answer:
    read = call.question.read_cut if content["cut"] else call.question.read
    if read is None:
        raise Unreadable("length", "cut off at its limit")
    tokens = [(token, likely) for token, likely in content["tokens"]]
    return Answer(
        read(content["text"]), content["text"], None, Usage(*content["usage"]), cached, content["cut"], tokens
    )


def _answer(call: Call, completion: Any) -> Answer:
    """What a completion says; whatever it is, it was paid for."""
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        return Answer(None, None, "malformed", Usage())
    said = completion.usage
    choice = completion.choices[0]
    # A judge may repeat a corpus, and a corpus may hold a key: it is cut out before it is cached or recorded.
    text = redact(choice.message.content or "")
    guessed = Usage(call.most.prompt_tokens, estimated_tokens(text))
    usage = Usage(said.prompt_tokens, said.completion_tokens) if said else guessed
    if choice.message.refusal or choice.finish_reason == "content_filter":
        return Answer(None, redact(choice.message.refusal or text), "refusal", usage)
    cut = choice.finish_reason == "length"
    read = call.question.read_cut if cut else call.question.read
    if read is None:
        return Answer(None, text, "length", usage)
    try:
        value = read(text)
    except Unreadable as error:
        return Answer(None, text, error.kind, usage)
    return Answer(value, text, None, usage, cut=cut, tokens=list(_tokens(choice)))


def _tokens(choice: Any) -> Iterator[tuple[str, dict[str, float]]]:
    """Every token of an answer with the likeliest ones in its place, where the endpoint gives them."""
    for token in (choice.logprobs and choice.logprobs.content) or ():
        yield token.token, {likely.token: likely.logprob for likely in token.top_logprobs or ()}


def _said(error: Exception) -> str:
    return one_line(redact(str(error)))[:300]


@contextmanager
def quiet_client() -> Iterator[None]:
    """Keep the client's line per request out of the log."""
    loggers = [logging.getLogger(name) for name in ("openai", "httpx", "httpx2")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
