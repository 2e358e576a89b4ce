"""A judge that knows the truth, over HTTP on this machine, and serves faults on request.

What it is shown in a prompt is all it has. In the toy text every latent fires on one word: the perfect judge reads that
word off the active tokens, says it as the explanation, and looks for it in whatever it is then asked about.
"""

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Judgement = Callable[[str, dict[str, Any], str], dict[str, Any]]
"""Kind of question, its data, the whole user message -> the answer as an object."""


def kind_of(system: str) -> str:
    for kind, words in (
        ("explain", "say, in a short phrase"), ("fuzzing", "some tokens are marked"),
        ("simulation", "predict its strength"), ("saebench_detection", "of which a few contain it"),
        ("detection", "decide for each excerpt"),
    ):  # fmt: skip
        if words in system:
            return kind
    raise AssertionError(system)


def data_of(user: str) -> dict[str, Any]:
    """What stands between the marks, or behind the only one; a text that could hold a mark would end it early."""
    fence = re.search(r"^\[data-\w{12}\]$", user, re.MULTILINE)
    assert fence, user
    data, *after = user[fence.end() :].split(fence[0])
    assert len(after) <= 1
    content, _ = json.JSONDecoder().raw_decode(data.strip())
    return content


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def perfect(kind: str, data: dict[str, Any], user: str) -> dict[str, Any]:
    if kind == "explain":
        active = {token.strip() for excerpt in data["excerpts"] for token, _ in excerpt["active"]}
        return {"explanation": " ".join(sorted(active))}
    word = data["explanation"]
    if kind == "simulation":
        return {"strengths": [10 if token.strip() == word else 0 for token in data["tokens"]]}
    if kind == "fuzzing":
        marked = {
            name: [part["marked"].strip() for part in parts if not isinstance(part, str)]
            for name, parts in data["excerpts"].items()
        }
        return {name: set(words(" ".join(found))) == {word} for name, found in marked.items()}
    found = {name: word in words(text) for name, text in data["excerpts"].items()}
    return {"active": [name for name, yes in found.items() if yes]} if kind == "saebench_detection" else found


def coin(seed: int = 0) -> Judgement:
    """Answers by chance, and the same to a question whenever it is asked."""

    def judge(kind: str, data: dict[str, Any], user: str) -> dict[str, Any]:
        answer = perfect(kind, data, user)
        if kind in ("detection", "fuzzing"):
            return {name: random.Random(f"{seed} {name} {user}").random() < 0.5 for name in answer}
        return answer

    return judge


def nay_sayer(kind: str, data: dict[str, Any], user: str) -> dict[str, Any]:
    """Nothing is ever active."""
    if kind == "explain":
        return {"explanation": "something"}
    if kind == "simulation":
        return {"strengths": [0] * len(data["tokens"])}
    return {"active": []} if kind == "saebench_detection" else dict.fromkeys(data["excerpts"], False)


class FakeJudge:
    """`fault(n)` says what goes wrong with the n-th request, from 0; None: nothing."""

    def __init__(self, judge: Judgement = perfect) -> None:
        self.judge = judge
        self.fault: Callable[[int], str | None] = lambda n: None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answered: list[str] = []
        self.under_way = self.most_under_way = 0
        self.logprobs: Callable[[str], list[dict[str, Any]]] | None = None
        self.unsupported: set[str] = set()
        self.delay = 0.0
        self.go_on = threading.Event()
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def kinds(self) -> list[str]:
        return [kind_of(request["messages"][0]["content"]) for request in self.requests]

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        system, *_, user = (message["content"] for message in body["messages"])
        text = json.dumps(self.judge(kind_of(system), data_of(user), user))
        return self.completion(text, body)

    def completion(self, text: str, body: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        wants = bool(self.logprobs and body and body.get("logprobs"))
        logprobs = {"content": self.logprobs(text)} if wants and self.logprobs else None
        return {
            "id": "x", "object": "chat.completion", "created": 0, "model": "toy",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs} | choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeJudge

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        fake = self.fake
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        with fake.lock:
            n = len(fake.requests)
            fake.requests.append(body)
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            fake.under_way += 1
            fake.most_under_way = max(fake.most_under_way, fake.under_way)
        try:
            time.sleep(fake.delay)
            self._answer(fake, fake.fault(n), body)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with fake.lock:
                fake.under_way -= 1

    def _answer(self, fake: FakeJudge, fault: str | None, body: dict[str, Any]) -> None:
        unsupported = fake.unsupported & body.keys()
        if unsupported:
            self._send(422, json.dumps({"detail": f"unsupported fields: {sorted(unsupported)}"}))
        elif fault in ("400", "429", "500", "401", "404"):
            after = {"Retry-After": "0"} if fault == "429" else {}
            self._send(int(fault), json.dumps({"error": {"message": "no sk-abcdefghijklmnopqrstuvwx"}}), headers=after)
        elif fault == "hang":
            fake.go_on.wait(30)
        elif fault == "html":
            self._send(200, "<html><body>Welcome</body></html>", kind="text/html")
        elif fault == "truncated":
            self._send(200, json.dumps(fake.reply(body))[:60])
        elif fault == "cut":
            self._send(200, json.dumps(fake.reply(body)), cut=True)
        elif fault == "refusal":
            self._send(200, json.dumps(fake.completion("I'm sorry, but I can\u2019t help with that.")))
        elif fault == "refusal_field":
            refused = fake.completion("")
            refused["choices"][0]["message"]["refusal"] = "no"
            self._send(200, json.dumps(refused))
        elif fault == "length":
            self._send(200, json.dumps(fake.completion('{"a', finish_reason="length")))
        elif fault and fault.startswith("trail off "):
            said = fault.removeprefix("trail off ")
            self._send(200, json.dumps(fake.completion(said, finish_reason="length")))
        elif fault and fault.startswith("say "):
            self._send(200, json.dumps(fake.completion(fault.removeprefix("say "))))
        elif fault and fault.startswith("edit "):
            reply = fake.reply(body)
            message = reply["choices"][0]["message"]
            message["content"] = EDITS[fault.removeprefix("edit ")](message["content"])
            self._send(200, json.dumps(reply))
        else:
            fake.answered.append(json.dumps(body["messages"]))
            self._send(200, json.dumps(fake.reply(body)))

    def _send(self, status: int, text: str, *, kind: str = "application/json", headers: dict[str, str] | None = None,
              cut: bool = False) -> None:  # fmt: skip
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut


def _one_less(text: str) -> str:
    content = json.loads(text)
    if "strengths" in content:
        return json.dumps({"strengths": content["strengths"][:-1]})
    content.popitem()
    return json.dumps(content)


def _doubled(text: str) -> str:
    return text[:-1] + ", " + text[1:] if text != "{}" else text


EDITS: dict[str, Callable[[str], str]] = {
    "short": _one_less,
    "doubled": _doubled,
    "fenced": lambda text: f"Sure! Here you are:\n```json\n{text}\n```\nAnything else?",
    "halved": lambda text: text[: len(text) // 2],
}


@contextmanager
def fake_judge(judge: Judgement = perfect) -> Iterator[FakeJudge]:
    fake = FakeJudge(judge)
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
