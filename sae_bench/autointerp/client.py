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
from collections.abc import Mapping
from dataclasses import astuple
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

FAILURES = {
    openai.APITimeoutError: "timeout",  # which is also an APIConnectionError
    openai.APIConnectionError: "connection",
    openai.RateLimitError: "rate_limit",
    openai.InternalServerError: "server",
    openai.APIStatusError: "request",
}
"""What exceptions are counted as; every other is "malformed", an answer cut short or one of no JSON at all."""

OPTIONAL = ({"response_format"}, {"logprobs", "top_logprobs"}, {"seed"}, {"temperature"})
"""Parameters that can be spared, in this order."""


class EndpointUnusable(Exception):
    """An endpoint refuses every call: a wrong key, model or address."""


class Client:
    """Asks; see the module. Use within one event loop, and `close` at the end."""

    def __init__(self, cache: Path, spending: Spending, *, concurrency: int, timeout: float) -> None:
        self.cache, self.spending = cache, spending
        self._slots = asyncio.Semaphore(concurrency)
        self._openai = openai.AsyncOpenAI(api_key="none", timeout=timeout, max_retries=MAX_RETRIES)
        self._unknown: dict[Endpoint, set[str]] = {}
        self._n_lost = 0
        for name in ("openai", "httpx", "httpx2"):
            logging.getLogger(name).setLevel(logging.WARNING)  # else a line per request

    async def ask(self, call: Call) -> Answer:
        """The answer, from the cache or from the endpoint.

        Raises:
            EndpointUnusable: the endpoint refuses every call.
        """
        if (kept := self._kept(call)) is not None:
            return kept
        async with self._slots:
            if self._n_lost >= GIVE_UP_AFTER:
                return Answer(failure="gave_up")
            if not self.spending.reserve(call.endpoint.model, call.most):
                return Answer(failure="budget")
            answer = Answer(failure="connection")
            try:
                answer = await self._send(call)
            finally:
                self.spending.settle(call.endpoint.model, call.most, answer.usage)
            self._n_lost = self._n_lost + 1 if answer.failure in TRANSIENT else 0
            if answer.failure is None:
                self._keep(call, answer)
            return answer

    async def _send(self, call: Call) -> Answer:
        try:
            completion = await self._complete(call)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise EndpointUnusable(f"{call.endpoint.model}: {_said(error)}") from None
        except (openai.OpenAIError, ValueError) as error:
            failure = next((name for kind, name in FAILURES.items() if isinstance(error, kind)), "malformed")
            if failure in ("server", "request", "malformed"):
                log.warning("the judge %s answers: %s", call.endpoint.model, _said(error))
            return Answer(failure=failure)
        return _answer(call, completion)

    async def _complete(self, call: Call) -> Any:
        endpoint, unknown = call.endpoint, self._unknown.setdefault(call.endpoint, set())
        client = self._openai.with_options(base_url=endpoint.base_url, api_key=endpoint.api_key or "none")
        # Plain dictionaries all the way: the client's types for messages say no more than Message does.
        create: Any = client.chat.completions.create
        while True:
            parameters = {name: value for name, value in call.parameters.items() if name not in unknown}
            try:
                return await create(model=endpoint.model, messages=list(call.question.messages), **parameters)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = _refused(f"{error} {error.response.text}", parameters)
                if not refused:
                    raise
                log.warning("the judge %s does without %s", endpoint.model, " and ".join(sorted(refused)))
                unknown |= refused

    async def close(self) -> None:
        await self._openai.close()

    def _path(self, call: Call) -> Path:
        return self.cache / call.digest[:2] / f"{call.digest}.json"

    def is_kept(self, call: Call) -> bool:
        """Whether the cache has the answer."""
        return self._path(call).is_file()

    def _kept(self, call: Call) -> Answer | None:
        if not self.is_kept(call):
            return None
        try:
            kept = read_sealed(self._path(call))
            text, cut, usage = kept["text"], kept["cut"], Usage(*kept["usage"])
            return Answer(call.question.value_of(text, cut=cut), text, None, usage, True, cut, kept["tokens"])
        except (Damaged, Unreadable, KeyError):
            log.warning("a cached answer of %s is damaged: it is asked for again", call.endpoint.model)
            return None

    def _keep(self, call: Call, answer: Answer) -> None:
        content = {
            "model": call.endpoint.model,
            "text": answer.text,
            "cut": answer.cut,
            "usage": astuple(answer.usage),
            "tokens": answer.tokens,
        }
        write_sealed(self._path(call), content)


def _refused(complaint: str, parameters: Mapping[str, Any]) -> set[str]:
    """The optional parameters that an endpoint complains of; if it does not say which, the next that can be spared."""
    spare = [group & parameters.keys() for group in OPTIONAL if group & parameters.keys()]
    named = [group for group in spare if any(name in complaint for name in group)]
    return set().union(*(named or spare[:1]))


def _answer(call: Call, completion: Any) -> Answer:
    """What a completion says; whatever it is, it was paid for."""
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        return Answer(failure="malformed")
    said = completion.usage
    choice = completion.choices[0]
    # A judge may repeat a corpus, and a corpus may hold a key: it is cut out before it is cached or recorded.
    text = redact(choice.message.content or "")
    guessed = Usage(call.most.prompt_tokens, estimated_tokens(text))
    usage = Usage(said.prompt_tokens, said.completion_tokens) if said else guessed
    if choice.message.refusal or choice.finish_reason == "content_filter":
        return Answer(None, redact(choice.message.refusal or text), "refusal", usage)
    cut = choice.finish_reason == "length"
    try:
        value = call.question.value_of(text, cut=cut)
    except Unreadable as error:
        return Answer(None, text, error.kind, usage)
    given = (choice.logprobs and choice.logprobs.content) or ()
    tokens = [(one.token, {likely.token: likely.logprob for likely in one.top_logprobs or ()}) for one in given]
    return Answer(value, text, None, usage, cut=cut, tokens=tokens)


def _said(error: Exception) -> str:
    return one_line(redact(str(error)))[:300]
