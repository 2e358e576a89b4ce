"""One request over HTTP, within bounds: the other side may answer anything, byte by byte, without end, or elsewhere.

An answer has a limit of bytes and one of time, from the first packet to the last. It is asked for uncompressed and
refused compressed, so that the bytes that are counted are those that are kept. Redirects are not followed: what is
sent stays where it was meant to go. What the `openai` client reads in the environment goes to OpenAI alone.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import httpx2
import lazy_loader

from sae_bench.autointerp.calls import Endpoint
from sae_bench.errors import one_line
from sae_bench.records.redact import redact

if TYPE_CHECKING:
    import openai
else:
    openai = lazy_loader.load("openai")  # half a second of every command, and few ask a judge

MOST_SECONDS_TO_WAIT = 60.0
"""The longest pause that a server can ask for between two attempts."""


class NoReply(Exception):
    """There is no whole answer; `kind` is what that is counted as."""

    def __init__(self, kind: str, message: str, *, sent: bool = True, n_bytes: int = 0) -> None:
        super().__init__(f"{kind}: {said(message)}")
        self.kind = kind
        self.sent = sent
        """Whether the request may have reached the server."""
        self.n_bytes = n_bytes
        """How much of an answer had come."""


@dataclass(frozen=True)
class Reply:
    """A whole answer, whatever it says."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> str:
        """Status and text, for a message."""
        return said(f"{self.status} {self.body[:2000].decode(errors='replace')}")

    @property
    def moved_to(self) -> str | None:
        """Where a redirect points."""
        return said(self.headers.get("location", "nowhere")) if 300 <= self.status < 400 else None

    @property
    def asks_to_wait(self) -> float | None:
        """Seconds until the next attempt, if the server says so; no more than a minute."""
        wanted = self.headers.get("retry-after", "").strip()
        return min(float(wanted), MOST_SECONDS_TO_WAIT) if re.fullmatch(r"\d{1,9}(\.\d{0,9})?", wanted) else None


@dataclass
class _Bound:
    """How long the answer to one request may be, and how much of it has come."""

    most_bytes: int
    n_bytes: int = 0


_bound: ContextVar[_Bound] = ContextVar("bound")


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, bound: _Bound) -> None:
        self._stream, self._bound = stream, bound

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._bound.n_bytes += len(chunk)
            if self._bound.n_bytes > self._bound.most_bytes:
                message = f"an answer of more than {self._bound.most_bytes:,} bytes"
                raise NoReply("malformed", message, n_bytes=self._bound.n_bytes)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class _BoundedHTTP(httpx2.AsyncHTTPTransport):
    """Connections on which no answer is longer than its request's bound, whoever reads it, and none is compressed."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        if (coding := response.headers.get("content-encoding", "identity")) != "identity":
            await response.aclose()
            raise NoReply("malformed", f"compressed by {coding}, which was not asked for")
        response.stream = _BoundedStream(response.stream, _bound.get())
        return response


class Transport:
    """Connections to all servers of a command. Use within one event loop, and `close` at the end."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        http = httpx2.AsyncClient(
            transport=_BoundedHTTP(limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None)),
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )
        # There is one time limit for everything together, and who pays for attempts decides whether there is another.
        self._openai = openai.AsyncOpenAI(api_key="none", http_client=http, timeout=None, max_retries=0)
        for name in ("openai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)  # else a line per request

    async def send(self, endpoint: Endpoint, path: str, content: bytes | None, most_bytes: int) -> Reply:
        """POST the content, or GET if there is none, and return the answer.

        Raises:
            NoReply: there is none within the limits, or none at all.
        """
        client = self._openai.with_options(base_url=endpoint.base_url)
        headers = _headers(endpoint, client.default_headers)
        bound = _Bound(most_bytes)
        _bound.set(bound)
        try:
            async with asyncio.timeout(self.timeout):
                options: Any = {"headers": headers}
                if content is None:
                    response = await client.get(path, cast_to=httpx2.Response, options=options)
                else:
                    response = await client.post(path, cast_to=httpx2.Response, content=content, options=options)
        except openai.APIStatusError as error:  # an answer, too
            response = error.response
        except TimeoutError:
            raise NoReply("timeout", f"no whole answer in {self.timeout:g} s", n_bytes=bound.n_bytes) from None
        except (openai.OpenAIError, httpx2.HTTPError, ValueError) as error:
            raise _no_reply(error, bound) from None
        return Reply(response.status_code, response.headers, response.content)

    async def close(self) -> None:
        await self._openai.close()


def _headers(endpoint: Endpoint, defaults: Iterable[str]) -> "dict[str, str | openai.Omit]":
    """The headers of a request, and which of the client's own are left out.

    Those name an organisation and a project, and may hold a gateway's key: whatever the environment has for OpenAI.
    """
    left_out = () if endpoint.is_openai else defaults
    key = endpoint.api_key
    return {name.lower(): openai.Omit() for name in left_out} | {
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "authorization": f"Bearer {key}" if key else openai.Omit(),
    }


def _no_reply(error: Exception, bound: _Bound) -> NoReply:
    """What stopped a request: the client wraps it."""
    cause = error.__cause__ or error
    if isinstance(cause, NoReply):
        return cause
    unsent = isinstance(cause, httpx2.ConnectError | httpx2.UnsupportedProtocol | httpx2.InvalidURL)
    return NoReply("connection", str(cause) or type(cause).__name__, sent=not unsent, n_bytes=bound.n_bytes)


def said(text: str) -> str:
    """Foreign text for a message: without secrets, on one line, cut."""
    return one_line(redact(text))[:300]
