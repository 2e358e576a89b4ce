"""A judge that means harm, over HTTP on this machine: it answers nonsense, slowly, without end, or sends elsewhere.

It keeps its own book of what it bills, by the dearest tokenizer that there can be: a byte is a token, and every answer
as long as its limit. A budget holds against it if that book never says more.
"""

import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EXPLANATION = "rivers and their banks"


def completion(text: str | None = None, usage: Any = None, **choice: Any) -> dict[str, Any]:
    """A whole and honest answer, but for what is changed in it."""
    said = json.dumps({"explanation": EXPLANATION}) if text is None else text
    message = {"role": "assistant", "content": said, "refusal": None}
    honest = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "toy", "usage": usage or honest,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None} | choice],
    }  # fmt: skip


class HostileJudge:
    """`behave(request, body)` does the harm, with `send` and `stream` of the request; `billed` is the book."""

    def __init__(self, behave: Callable[["Request", dict[str, Any]], None]) -> None:
        self.behave = behave
        self.base_url = ""
        self.n_requests = self.billed = self.n_written = 0
        self.over = threading.Event()
        self.lock = threading.Lock()

    def bill(self, body: dict[str, Any], written: int = 0) -> None:
        read = sum(len(message["content"].encode()) for message in body["messages"])
        with self.lock:
            self.billed += read + max(body["max_tokens"], written)


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    judge: HostileJudge

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        with suppress(OSError):
            self.judge.behave(self, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.judge.lock:
            self.judge.n_requests += 1
        with suppress(OSError):
            self.judge.behave(self, body)

    @property
    def key(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ").encode("latin-1").decode()

    def send(self, content: Any, status: int = 200, **headers: str) -> None:
        """A whole answer: bytes as they are, everything else as JSON."""
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content_Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def stream(self, part: bytes, pause: float = 0.0, status: int = 200, **headers: str) -> None:
        """The same bytes again and again, until nobody listens."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.forever(part, pause)

    def forever(self, part: bytes, pause: float = 0.0) -> None:
        while not self.judge.over.wait(pause) if pause else not self.judge.over.is_set():
            self.wfile.write(part)
            self.wfile.flush()
            self.judge.n_written += len(part)


def bomb(n_megabytes: int = 64) -> bytes:
    """So much white space, compressed a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b" " * (1 << 20)) for _ in range(n_megabytes)) + packer.flush()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # with fewer, a connection that is refused waits a second
    daemon_threads, block_on_close = True, False


@contextmanager
def hostile_judge(behave: Callable[[Request, dict[str, Any]], None]) -> Iterator[HostileJudge]:
    judge = HostileJudge(behave)
    server = _Server(("127.0.0.1", 0), type("Handler", (Request,), {"judge": judge}))
    judge.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
