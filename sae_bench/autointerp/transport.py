"""One request over HTTP, within bounds: the other side may answer anything, byte by byte, without end, or elsewhere.

An answer has a limit of bytes and one of time, from the first packet to the last. It is asked for uncompressed and
refused compressed, so that the bytes that are counted are those that are kept. Redirects are not followed: what is
sent stays where it was meant to go.
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from sae_bench.errors import one_line
from sae_bench.records.redact import redact

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


class Transport:
    """Connections to all servers of a command. Use within one event loop, and `close` at the end."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._http = httpx2.AsyncClient(
            timeout=None,  # there is one for everything together
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )
        for name in ("httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)  # else a line per request

    async def send(self, url: str, key: str | None, content: bytes | None, most_bytes: int) -> Reply:
        """POST the content, or GET if there is none, and return the answer.

        Raises:
            NoReply: there is none within the limits, or none at all.
        """
        headers = {b"Accept-Encoding": b"identity", b"Content-Type": b"application/json"}
        if key:
            headers[b"Authorization"] = f"Bearer {key}".encode()
        body = bytearray()
        try:
            request = self._http.build_request("POST" if content else "GET", url, headers=headers, content=content)
            async with asyncio.timeout(self.timeout):
                response = await self._http.send(request, stream=True)
                try:
                    if (coding := response.headers.get("content-encoding", "identity")) != "identity":
                        raise NoReply("malformed", f"compressed by {coding}, which was not asked for")
                    async for chunk in response.aiter_raw():
                        body += chunk
                        if len(body) > most_bytes:
                            message = f"an answer of more than {most_bytes:,} bytes"
                            raise NoReply("malformed", message, n_bytes=len(body))
                finally:
                    await response.aclose()
        except TimeoutError:
            raise NoReply("timeout", f"no whole answer in {self.timeout:g} s", n_bytes=len(body)) from None
        except (httpx2.ConnectError, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise NoReply("connection", str(error) or type(error).__name__, sent=False) from None
        except (httpx2.HTTPError, ValueError) as error:
            raise NoReply("connection", str(error) or type(error).__name__, n_bytes=len(body)) from None
        return Reply(response.status_code, response.headers, bytes(body))

    async def close(self) -> None:
        await self._http.aclose()


def said(text: str) -> str:
    """Foreign text for a message: without secrets, on one line, cut."""
    return one_line(redact(text))[:300]
