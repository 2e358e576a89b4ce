"""A page for one person on this machine, and what it asks: the report of a run with a box for text, a rater's page.

It listens on the loopback interface alone. Whoever may look has an address with a random part in it; a request whose
Host is another name, as after DNS rebinding, or that comes from another page, gets nothing. Requests are bounded in
size and in time, one is worked on at a time, and what they say is answered as JSON, never as markup.
"""

import json
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from sae_bench.errors import UserError

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 17
"""Of a request's body: some text, and room for how JSON writes it."""
SECONDS = 20.0
"""A connection that says nothing for so long is closed."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""From what a page asks to what it is told; a UserError is told as one."""


class LocalServer(ThreadingHTTPServer):
    """Serves one page, and answers what it asks, at an address that cannot be guessed.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, page: str, answer: Answer, port: int = 0, *, path: str = "fires") -> None:
        """`path`: where the page asks, below its own address."""
        self.page, self.answer, self.path, self.working = page.encode(), answer, path, Lock()
        self.secret = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; leave it out, or choose another") from None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.secret}/"

    def until_stopped(self, whose: str, *, browser: bool) -> None:
        """Print the address, open it in the browser if asked to, and serve until Ctrl-C; `whose`: for whom it is."""
        print(f"{self.url}\nfor {whose} alone; Ctrl-C stops it", flush=True)
        if browser:
            import webbrowser

            webbrowser.open(self.url)
        with suppress(KeyboardInterrupt):
            self.serve_forever(poll_interval=0.2)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor that went away is no news."""
        log.debug("a connection ended early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    timeout = SECONDS
    server_version, sys_version = "sae-arch-bench", ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._allowed("/"):
            self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        if not self._allowed(f"/{self.server.path}"):
            return
        length = self._announced()
        if length < 0 or "Transfer-Encoding" in self.headers:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "say the length", unread=True)
        elif length > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MOST_BYTES} bytes", unread=True)
        elif self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "say it in JSON", unread=True)
        else:
            self._answer(self.rfile.read(length))

    def _answer(self, body: bytes) -> None:
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            self._refuse(HTTPStatus.BAD_REQUEST, "ask with an object in JSON")
            return
        try:
            with self.server.working:
                told = self.server.answer(asked)
        except UserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # the page says that it failed, and the next text may do better
            log.exception("a request failed")
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: see the terminal")
        else:
            self._send(HTTPStatus.OK, json.dumps(told).encode(), "application/json")

    def _allowed(self, path: str) -> bool:
        """Whether the request names this host and the secret, and is sent by this page or by nobody's."""
        host = self.headers.get("Host", "")
        names = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        origin = self.headers.get("Origin")
        if host not in names or (origin is not None and origin != f"http://{host}"):
            self._refuse(HTTPStatus.FORBIDDEN, "this page is for this machine alone", unread=self.command == "POST")
            return False
        wanted = f"/{self.server.secret}{path}"
        if not secrets.compare_digest(self.path.encode(), wanted.encode()):
            reason = "nothing is here: take the address that the terminal shows"
            self._refuse(HTTPStatus.NOT_FOUND, reason, unread=self.command == "POST")
            return False
        return True

    def _refuse(self, status: HTTPStatus, reason: str, *, unread: bool = False) -> None:
        """Say why not, and close; `unread`: the body was not looked at."""
        self.close_connection = True
        self._send(status, json.dumps({"error": reason}).encode(), "application/json")
        if unread:
            self._drain()

    def _drain(self) -> None:
        """Read a little of what is unread and throw it away: closing on it would take the answer back."""
        left = abs(self._announced())
        self.connection.settimeout(0.5)
        with suppress(OSError):
            for _ in range(16):
                if left <= 0:
                    break
                got = len(self.rfile.read1(1 << 16))
                left = left - got if got else 0

    def _announced(self) -> int:
        """Bytes of the body as the request says, -1 if it does not say so in digits."""
        length = self.headers.get("Content-Length", "")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 10 else -1

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request: they hold the secret."""
