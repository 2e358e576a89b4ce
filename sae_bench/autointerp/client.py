"""The client of the language models that explain and judge, behind any endpoint that speaks OpenAI's chat completions.

A call goes through the cache, a limit on how many are under way, the budget, and the transport. After 429, 408, 5xx, a
lost connection and a time-out it is tried again, with growing pauses; every attempt has to fit into the budget. What
comes back is an `Answer`: a value of the wanted shape, or a failure with a name; nothing is dropped and nothing raised,
unless the endpoint cannot be used at all. Only answers that could be read enter the cache, and they are on disk before
the next call begins: whoever is killed sends no answered call again, unless the cache folder cannot be written.

Where an endpoint does not know a parameter - a schema, log-probabilities - the call is made without it, and so are all
later ones to that endpoint.
"""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import astuple
from pathlib import Path
from random import Random

from sae_bench.autointerp.budget import Spending, Usage
from sae_bench.autointerp.calls import Answer, Call, Endpoint
from sae_bench.autointerp.completion import KEPT_TOKENS, Completion, read_completion
from sae_bench.autointerp.parse import Unreadable
from sae_bench.autointerp.transport import NoReply, Reply, Transport, said
from sae_bench.records.files import Damaged, read_sealed
from sae_bench.records.kept import keep

log = logging.getLogger(__name__)

MAX_RETRIES = 4
GIVE_UP_AFTER = 20
"""Calls in a row that no answer came to, after which the rest are not tried."""

TRANSIENT = ("timeout", "connection", "rate_limit", "server", "malformed", "gave_up", "budget")
"""Failures that another command may not meet: a record that counts any is made again."""

RETRIED = ("timeout", "connection", "rate_limit", "server")
"""Failures that another attempt may not meet."""

OPTIONAL = ({"response_format"}, {"logprobs", "top_logprobs"}, {"seed"}, {"temperature"})
"""Parameters that can be spared, in this order."""

FIRST_BYTES, BYTES_PER_TOKEN = 1 << 16, 1 << 12
"""How long an answer can be: so much, and so much for every token, which may come with a dozen log-probabilities."""


class EndpointUnusable(Exception):
    """An endpoint refuses every call: a wrong key, model or address."""


class _BudgetSpent(Exception):
    """The budget does not have what an attempt may cost."""


class Client:
    """Asks; see the module. Use within one event loop, and `close` at the end."""

    def __init__(self, cache: Path, spending: Spending, *, concurrency: int, timeout: float) -> None:
        self.cache, self.spending = cache, spending
        self._slots = asyncio.Semaphore(concurrency)
        self._transport = Transport(timeout)
        self._unknown: dict[Endpoint, set[str]] = {}
        self._known: dict[Endpoint, set[str]] = {}
        self._n_lost, self._told = 0, False

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
            try:
                answer = await self._insist(call)
            except _BudgetSpent:
                self._tell_of_the_budget()
                return Answer(failure="budget")
            self._n_lost = self._n_lost + 1 if answer.failure in TRANSIENT else 0
            if answer.failure is None:
                self._keep(call, answer)
            return answer

    async def _insist(self, call: Call) -> Answer:
        """What one of a few attempts brings."""
        unknown, model = self._unknown.setdefault(call.endpoint, set()), call.endpoint.model
        known = self._known.setdefault(call.endpoint, set())
        n_lost = 0
        while True:
            wait, without = None, frozenset(unknown)  # others may learn more while this one is under way
            try:
                reply, completion = await self._attempt(call, without)
            except NoReply as error:
                failure, why = error.kind, str(error)
            else:
                if completion:
                    known |= call.parameters.keys() - without
                    return _answer(call, completion)
                if refused := _refused(reply, call.parameters.keys() - without, known):
                    log.warning("the judge %s does without %s", model, " and ".join(sorted(refused)))
                    unknown |= refused
                    continue
                failure, wait = _failure(call.endpoint, reply), reply.asks_to_wait
                why = f"{failure}: {reply.said}"
            n_lost += 1
            if failure not in RETRIED or n_lost > MAX_RETRIES:
                log.warning("the judge %s: %s", model, why)
                return Answer(failure=failure)
            await asyncio.sleep(pause(n_lost) if wait is None else wait)

    async def _attempt(self, call: Call, without: Collection[str]) -> tuple[Reply, Completion | None]:
        """What the endpoint replies, and the completion in it.

        The most that it can cost is set aside before it is sent, and counted unless the endpoint never saw it: who
        keeps silent, or answers with an error, may bill all the same.

        Raises:
            NoReply: there is no reply, or none within the limits.
        """
        endpoint, most = call.endpoint, call.most(without)
        if not self.spending.reserve(endpoint.model, most):
            raise _BudgetSpent
        used, most_bytes = most, FIRST_BYTES + BYTES_PER_TOKEN * most.completion_tokens
        try:
            reply = await self._transport.send(endpoint, "/chat/completions", call.body(without), most_bytes)
            completion = read_completion(reply.body) if reply.status < 300 else None
            used = _counted(endpoint, most, reply, completion)
        except NoReply as error:
            used = most.or_more(Usage(0, error.n_bytes)) if error.sent else Usage()
            raise
        finally:
            self.spending.settle(endpoint.model, most, used)
        return reply, completion

    def _tell_of_the_budget(self) -> None:
        """Say once that calls are not sent any more."""
        if not self._told:
            counted = sum(self.spending.by_model.values(), Usage()).tokens
            log.warning(
                "--judge-budget: %s tokens are counted, or under way, and another call may cost more than is left; "
                "the same command with a budget of its own asks for the rest",
                f"{counted:,}",
            )
        self._told = True

    async def close(self) -> None:
        await self._transport.close()

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
            tokens = KEPT_TOKENS.validate_python(kept["tokens"])
            return Answer(_value(call, text, cut=cut), text, None, usage, True, cut, tokens)
        except (Damaged, Unreadable, KeyError, TypeError, ValueError):
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
        keep(self._path(call), content)


def pause(n_lost: int) -> float:
    """Seconds before another attempt, after so many: .5, 1, 2, 4, less a random part, so that calls do not march."""
    return 0.5 * 2.0 ** (n_lost - 1) * float(Random().uniform(0.75, 1.0))


def _counted(endpoint: Endpoint, most: Usage, reply: Reply, completion: Completion | None) -> Usage:
    """What a reply counts against the budget.

    OpenAI bills what it says. Of anybody else the bill is not known, whatever they say: they count as the most that
    they can take, or more, if they say so or have written more than they were asked for.
    """
    if reply.status >= 300:
        return Usage() if endpoint.is_openai else most
    if endpoint.is_openai:
        return (completion and completion.billed) or most
    written = len(completion.text.encode()) if completion else len(reply.body)
    return most.or_more(Usage(0, written)).or_more((completion and completion.billed) or Usage())


def _failure(endpoint: Endpoint, reply: Reply) -> str:
    """What a reply without an answer is counted as.

    Raises:
        EndpointUnusable: the endpoint refuses every call.
    """
    if reply.moved_to:
        raise EndpointUnusable(
            f"{endpoint.model}: {said(endpoint.base_url)} redirects to {reply.moved_to}, and excerpts do not follow: "
            "give the address itself with --judge-base-url"
        )
    if reply.status in (401, 403, 404):
        raise EndpointUnusable(f"{endpoint.model}: {reply.said}")
    if reply.status == 429:
        return "rate_limit"
    if reply.status in (408, 409) or reply.status >= 500:
        return "server"
    return "request" if reply.status >= 400 else "malformed"


def _refused(reply: Reply, parameters: Collection[str], known: Collection[str]) -> set[str]:
    """The optional parameters that an endpoint complains of; if it does not say which, the next that can be spared.

    Those are not which an answer came to before: it stumbles over something else, as over an excerpt.
    """
    if reply.status not in (400, 422):
        return set()
    complaint = reply.body.decode(errors="replace")
    spare = [group & set(parameters) for group in OPTIONAL if group & set(parameters)]
    named = [group for group in spare if any(name in complaint for name in group)]
    return set().union(*(named or [group for group in spare if not group <= set(known)][:1]))


def _answer(call: Call, completion: Completion) -> Answer:
    """What a completion says; whatever it is, it was paid for."""
    text, cut = completion.text, completion.cut
    usage = completion.billed or call.most()
    if completion.refusal is not None:
        return Answer(None, completion.refusal, "refusal", usage)
    try:
        value = _value(call, text, cut=cut)
    except Unreadable as error:
        return Answer(None, text, error.kind, usage)
    return Answer(value, text, None, usage, cut=cut, tokens=completion.tokens)


def _value(call: Call, text: str, *, cut: bool) -> object:
    """What an answer says; Unreadable also where a scorer of somebody's own stumbles over it."""
    try:
        return call.question.value_of(text, cut=cut)
    except Unreadable:
        raise
    except Exception as error:
        log.warning("an answer of %s could not be read", call.endpoint.model, exc_info=True)
        raise Unreadable("unparsable", f"{type(error).__name__} while it was read") from None
