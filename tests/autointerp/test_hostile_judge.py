"""Judges that mean harm: whatever they answer is a counted failure, within bytes, time and budget, and no key stays."""

import asyncio
import json
import logging
import time

import pytest
from hostile_judge import EXPLANATION, HostileJudge, bomb, completion, hostile_judge
from toy_latents import toy_latent

from sae_bench import SCORERS
from sae_bench.autointerp import client as client_module
from sae_bench.autointerp.budget import Spending, Tally, Usage
from sae_bench.autointerp.calls import OPENAI, Call, Endpoint, Question
from sae_bench.autointerp.client import Client, EndpointUnusable
from sae_bench.autointerp.explainer import judge_latent, read_explanation
from sae_bench.autointerp.judges import Judges
from sae_bench.autointerp.parse import Unreadable, read_boolean
from sae_bench.autointerp.settings import Budget

KEY = "JK-supersecret-0123456789"
LIMIT = 80


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client_module, "pause", lambda n_lost: 0.01)
    monkeypatch.setattr(client_module, "MAX_RETRIES", 1)
    monkeypatch.setenv("JUDGE_API_KEY", KEY)


@pytest.fixture(scope="module")
def server():
    """One for many tests, each of which says how it behaves."""
    with hostile_judge(lambda request, body: None) as judge:
        yield judge


def call_to(judge: HostileJudge, text: str = "what?") -> Call:
    messages = [{"role": "user", "content": text}]
    question = Question(messages, {"explanation": {"type": "string"}}, LIMIT, read_explanation, [0], logprobs=True)
    return Call(Endpoint("toy", judge.base_url), question)


def answers_of(judge, folder, texts=("what?",), *, budget=None, timeout=2.0, concurrency=8):
    """What comes of calls about some texts, and what was counted for them."""
    spending = Spending(budget or Budget(), {})

    async def run():
        client = Client(folder / "cache", spending, concurrency=concurrency, timeout=timeout)
        try:
            return await asyncio.gather(*(client.ask(call_to(judge, text)) for text in texts))
        finally:
            await client.close()

    return asyncio.run(run()), spending


def cached(folder) -> list[str]:
    return [path.read_text() for path in folder.rglob("*.json")]


def choice(**changed):
    return {"choices": [completion()["choices"][0] | changed], "usage": completion()["usage"]}


def raw(text: str) -> bytes:
    return text.encode()


WHOLE = json.dumps(completion())
MANY_NINES = "9" * 5000
NO_COMPLETION = {
    "nothing": b"", "white space": b" \n" * 1000, "null": raw("null"), "a number": raw("5"), "a text": raw('"hello"'),
    "an array": raw("[1, 2, 3]"), "an empty object": raw("{}"), "a page": raw("<html><body>Welcome</body></html>"),
    "half": raw(WHOLE[: len(WHOLE) // 2]), "deep arrays": b"[" * 200_000, "deep objects": b'{"a":' * 60_000,
    "another encoding": WHOLE.encode("utf-16"), "no UTF-8": raw(WHOLE).replace(b"rivers", b"ri\xff\xfe"),
    "half a character": raw(WHOLE.replace("rivers", "\\ud800")),
    "events": raw(f"data: {WHOLE}\n\ndata: [DONE]\n\n"), "an error with status 200": {"error": {"message": "no"}},
    "no choices": {"choices": []}, "choices null": {"choices": None}, "choices an object": {"choices": {"0": {}}},
    "choices a text": {"choices": "abc"}, "a choice null": {"choices": [None]}, "a choice a text": {"choices": ["x"]},
    "choices twice": raw(WHOLE[:-1] + ', "choices": []}'), "no message": {"choices": [{"finish_reason": "stop"}]},
    "message null": choice(message=None), "message a text": choice(message="hello"),
    "content a number": choice(message={"content": 5}), "content true": choice(message={"content": True}),
    "content an object": choice(message={"content": {"text": "x"}}),
    "content a list": choice(message={"content": [{"type": "text", "text": "x"}]}),
    "refusal an object": choice(message={"content": "x", "refusal": {"a": 1}}),
    "a number of 5,000 digits": raw(WHOLE.replace('"prompt_tokens": 100', f'"prompt_tokens": {MANY_NINES}')),
    "finish_reason a list": choice(finish_reason=["stop"]),
}  # fmt: skip
NO_EXPLANATION = {
    "content null": choice(message={"content": None}),
    "braces": completion("{" * 50_000), "nested": completion('{"a":' * 50_000),
    "a number without end": completion(f'{{"explanation": "x y", "n": {MANY_NINES}}}'),
}  # fmt: skip
ODD_AND_WHOLE = {
    **{
        f"usage {usage}": raw(json.dumps(completion() | {"usage": json.loads(usage)}))
        for usage in (
            "null", "[]", "{}", '"x"', '{"prompt_tokens": null, "completion_tokens": null}',
            '{"prompt_tokens": "7", "completion_tokens": "7"}', '{"prompt_tokens": true, "completion_tokens": true}',
            '{"prompt_tokens": 1.5, "completion_tokens": 2.5}', '{"prompt_tokens": -9, "completion_tokens": -9}',
            '{"prompt_tokens": 1e30, "completion_tokens": 1}', '{"prompt_tokens": NaN, "completion_tokens": 1}',
        )
    },
    "usage infinite": raw(WHOLE.replace('"prompt_tokens": 100', '"prompt_tokens": 1e999')),
    **{
        f"logprobs {logprobs}": raw(json.dumps(choice(logprobs=json.loads(logprobs))))
        for logprobs in (
            '"x"', "[]", '{"content": "x"}', '{"content": [null]}',
            '{"content": [{"token": 5, "logprob": "x", "top_logprobs": [null, 3]}]}',
            '{"content": [{"token": "a", "top_logprobs": [{"token": "a", "logprob": NaN}]}]}',
            '{"content": [{"token": "a", "top_logprobs": [{"token": "a", "logprob": 1000}]}]}',
        )
    },
}  # fmt: skip
TABLE = [
    *((name, content, "malformed") for name, content in NO_COMPLETION.items()),
    *((name, content, "unparsable") for name, content in NO_EXPLANATION.items()),
    *((name, content, None) for name, content in ODD_AND_WHOLE.items()),
]


@pytest.mark.parametrize(("content", "failure"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_malformed_answer_is_a_failure_and_what_stands_beside_a_whole_one_does_not_matter(
    server, tmp_path, content, failure
):
    server.behave = lambda request, body: request.send(content)
    ((answer,), spending) = answers_of(server, tmp_path)
    assert (answer.failure, answer.value) == (failure, None if failure else EXPLANATION)
    assert len(cached(tmp_path)) == (failure is None)
    assert list(answer.tokens) == []
    most = call_to(server).most()
    assert spending.by_model["toy"].or_more(most) == spending.by_model["toy"], "it counts in full, whatever it is"


def test_no_malformed_answer_ends_the_judging_of_a_latent(server, tmp_path, monkeypatch):
    """All of the table, one after the other, through explainer and scorers: nothing is raised, each is counted."""
    monkeypatch.setattr(client_module, "GIVE_UP_AFTER", 10**6)
    rows = iter(TABLE * 9)
    said = [completion(json.dumps({"explanation": "river"}))]
    server.behave = lambda request, body: request.send(said.pop() if said else next(rows)[1])
    endpoint, tally = Endpoint("toy", server.base_url), Tally()
    judges = Judges(endpoint, endpoint, [SCORERS[name]() for name in ("detection", "simulation", "fuzzing")], 1)

    async def run():
        client = Client(tmp_path, Spending(Budget(), {}), concurrency=1, timeout=2.0)
        try:
            return await judge_latent(client, judges, toy_latent(), tally)
        finally:
            await client.close()

    latent = asyncio.run(run())
    kinds = {answer["failure"] for answer in latent["answers"]}
    assert latent["explanation"] == "river"
    assert kinds == {None, "malformed", "unparsable"}, "the explanation was whole"


def test_half_a_character_within_the_answer_is_written_as_a_question_mark(server, tmp_path):
    server.behave = lambda request, body: request.send(completion('{"explanation": "rivers \\ud800 banks"}'))
    assert answers_of(server, tmp_path)[0][0].value == "rivers ? banks"


def drip(request, body):
    request.stream(b"{", pause=0.05)


def endless_headers(request, body):
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    request.forever(b"X-More: aaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")


def endless_hints(request, body):
    request.forever(b"HTTP/1.1 103 Early Hints\r\n\r\n", pause=0.02)


def silent(request, body):
    request.judge.over.wait(5)


def gone(request, body):
    request.close_connection = True


BOMB = bomb()
WITHOUT_END = {
    "drip": (drip, "timeout"), "silent": (silent, "timeout"), "early hints": (endless_hints, "timeout"),
    "headers": (endless_headers, "connection"), "gone": (gone, "connection"),
    "endless": (lambda request, body: request.stream(b" " * (1 << 16)), "malformed"),
    "endless error": (lambda request, body: request.stream(b"x" * (1 << 16), status=400), "malformed"),
    "bomb": (lambda request, body: request.send(BOMB, Content_Encoding="gzip"), "malformed"),
    "endless bomb": (lambda request, body: request.stream(BOMB, Content_Encoding="deflate, gzip"), "malformed"),
}  # fmt: skip


@pytest.mark.parametrize(("behave", "failure"), WITHOUT_END.values(), ids=WITHOUT_END)
def test_an_answer_without_end_has_one(tmp_path, behave, failure):
    with hostile_judge(behave) as judge:
        began = time.monotonic()
        ((answer,), spending) = answers_of(judge, tmp_path, timeout=0.3)
        assert answer.failure == failure
        assert time.monotonic() - began < 2 * 0.3 + 1.5
        assert judge.n_written < 16 << 20, "what is not read is not sent: sockets hold some of it"
        assert spending.by_model["toy"].tokens >= judge.n_requests * call_to(judge).most().tokens


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_excerpts_do_not_follow_a_redirect(tmp_path, status):
    with hostile_judge(lambda request, body: request.send(completion())) as thief:
        to = f"{thief.base_url}/chat/completions"
        with (
            hostile_judge(lambda request, body: request.send(b"", status=status, Location=to)) as judge,
            pytest.raises(EndpointUnusable, match=f"redirects to {to}.* give the address itself"),
        ):
            answers_of(judge, tmp_path)
        assert (judge.n_requests, thief.n_requests) == (1, 0)


def test_a_pause_that_a_server_asks_for_is_a_minute_at_most(server):
    replies = {"5": 5.0, "0.5": 0.5, "86400": 60.0, "1e9": None, "nan": None, "-1": None, "": None}
    for wanted, seconds in replies.items():
        assert client_module.Reply(429, {"retry-after": wanted}, b"").asks_to_wait == seconds


@pytest.mark.parametrize(
    "text",
    [
        "{" * 200_000, '{"a":' * 40_000, '{"a": {"b": 1}, ' * 12_000, '{"a' * 66_000, "{\\" * 100_000,
        '{"a": 1} ' * 22_000, "true\n" * 40_000, "\n" * 200_000, "*" * 200_000, "'true" * 40_000, "sk-" * 66_000,
        "http://a" * 25_000, "?key" * 50_000, "bearer " * 28_000, "\\u" * 100_000,
    ],
    ids=lambda text: text[:16],
)  # fmt: skip
def test_reading_takes_time_in_proportion_to_the_length(text):
    """200 KB in a second and a half; in proportion to its square it would take minutes."""
    began = time.monotonic()
    for read in (read_explanation, lambda text: read_boolean(text, "abc")):
        with pytest.raises(Unreadable):
            read(text + "{")
    assert len(client_module.read_completion(json.dumps(completion(text)).encode()).text) >= 10
    assert time.monotonic() - began < 1.5


LIES = {
    "says nothing": lambda n: (completion(usage="none"), 200),
    "says zero": lambda n: (completion(usage={"prompt_tokens": 0, "completion_tokens": 0}), 200),
    "says one": lambda n: (completion(usage={"prompt_tokens": 1, "completion_tokens": 1}), 200),
    "says less than zero": lambda n: (completion(usage={"prompt_tokens": -(10**9), "completion_tokens": -1}), 200),
    "bills errors": lambda n: ({"error": "boom"}, 500),
    "bills refusals": lambda n: ({"error": "later"}, 429),
    "bills nonsense": lambda n: ({"choices": "abc"}, 200),
    "complains of parameters": lambda n: ({"error": "what?"}, 400),
    "now and then": lambda n: (completion(usage="none"), 500 if n % 2 else 200),
}


@pytest.mark.parametrize("words", ["hello world ", "\u6f22\u5b57", "\U0001f600"], ids=["ASCII", "Chinese", "emoji"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_the_budget_holds_whatever_is_billed_and_said(server, tmp_path, monkeypatch, lie, words):
    """60 calls of some 700 tokens each, at most; the judge bills a token for every byte, and the longest answer."""
    monkeypatch.setattr(client_module, "GIVE_UP_AFTER", 10**6)
    server.billed = server.n_requests = 0

    def behave(request, body):
        server.bill(body)
        content, status = lie(server.n_requests)
        request.send(content, status=status)

    server.behave = behave
    answers, spending = answers_of(
        server, tmp_path, [words * 20 + str(i) for i in range(60)], budget=Budget(tokens=9000)
    )
    assert "budget" in {answer.failure for answer in answers}
    assert 9000 / 5 < server.billed <= spending.by_model["toy"].tokens <= 9000


def test_the_budget_holds_where_answers_come_too_late(tmp_path):
    def behave(request, body):
        judge.bill(body)
        judge.over.wait(0.6)
        request.send(completion())

    with hostile_judge(behave) as judge:
        texts = ["what? " * 99 + str(i) for i in range(40)]
        _, spending = answers_of(judge, tmp_path, texts, budget=Budget(tokens=9000), timeout=0.2)
        assert judge.n_requests > 4
        assert 9000 / 5 < judge.billed <= spending.by_model["toy"].tokens <= 9000


def test_a_request_that_never_left_costs_nothing(tmp_path):
    with hostile_judge(drip) as judge:
        pass
    ((answer,), spending) = answers_of(judge, tmp_path)
    assert (answer.failure, spending.by_model["toy"]) == ("connection", Usage())


def test_over_the_budget_goes_at_most_what_the_requests_under_way_write_beyond_their_limit(server, tmp_path):
    """One at a time, this is the last one: it writes 20,000 bytes, though asked for 80 tokens, and bills each."""
    server.billed = server.n_requests = 0
    text = json.dumps({"explanation": "so " * 6600})

    def behave(request, body):
        server.bill(body, written=len(text))
        request.send(completion(text, usage={"prompt_tokens": 1, "completion_tokens": 1}))

    server.behave = behave
    texts = [f"what? {i}" for i in range(10)]
    answers, spending = answers_of(server, tmp_path, texts, budget=Budget(tokens=25_000), concurrency=1)
    assert [answer.failure for answer in answers] == [None, None, *["budget"] * 8]
    assert 25_000 < server.billed <= spending.by_model["toy"].tokens < 25_000 + 21_000


def test_openai_is_taken_at_its_word_and_nobody_else(monkeypatch):
    reply, bill = client_module.Reply(200, {}, json.dumps(completion()).encode()), Usage(100, 10)
    counted, most = client_module._counted, Usage(500, 80)
    said = client_module.read_completion(reply.body)
    assert counted(Endpoint("m", OPENAI), most, reply, said) == bill
    assert counted(Endpoint("m", "https://api.openai.com.example/v1"), most, reply, said) == most
    assert counted(Endpoint("m", OPENAI), most, client_module.Reply(429, {}, b""), None) == Usage()
    silent = client_module.read_completion(json.dumps(completion() | {"usage": None}).encode())
    assert counted(Endpoint("m", OPENAI), most, reply, silent) == most


def tokens_of(*tokens, alternatives=()):
    likely = [{"token": token, "logprob": -0.5} for token in alternatives]
    return {"content": [{"token": token, "logprob": -0.1, "top_logprobs": likely} for token in tokens]}


ECHOES = {
    "in the answer": lambda key: (completion(json.dumps({"explanation": f"the key is {key}, indeed"})), 200),
    "in words": lambda key: (completion(f"The key is {key} indeed"), 200),
    "escaped": lambda key: (completion(f'{{"explanation": "it is \\u{ord(key[0]):04x}{key[1:]}"}}'), 200),
    "as a refusal": lambda key: (choice(message={"content": "", "refusal": f"no {key}"}), 200),
    "as a token": lambda key: (choice(logprobs=tokens_of("a", key)), 200),
    "as an alternative": lambda key: (choice(logprobs=tokens_of("a", alternatives=["b", key])), 200),
    "in two tokens": lambda key: (choice(logprobs=tokens_of(key[:5], key[5:])), 200),
    "in alternatives of two": lambda key: (
        choice(logprobs={"content": [tokens_of("a", alternatives=["b", part])["content"][0]
                                     for part in (key[:5], key[5:])]}), 200),
    "in an error": lambda key: ({"error": f"bad key Bearer {key}"}, 400),
    "in a page": lambda key: (f"<html>{key}</html>".encode(), 200),
    "as an identifier": lambda key: (completion(json.dumps({key: True})), 200),
}  # fmt: skip


@pytest.mark.parametrize("key", [KEY, 'JK-super"sec\\ret-0123456789'], ids=["plain", "quoted"])
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_a_key_that_a_judge_echoes_stays_nowhere(server, tmp_path, monkeypatch, caplog, echo, key):
    monkeypatch.setenv("JUDGE_API_KEY", key)
    caplog.set_level(logging.DEBUG)
    seen = []

    def behave(request, body):
        seen.append(request.key)
        content, status = echo(request.key)
        request.send(content, status=status)

    server.behave = behave
    ((answer,), _) = answers_of(server, tmp_path)
    assert seen[0] == key
    kept = [*cached(tmp_path), repr(answer), caplog.text, *(str(path) for path in tmp_path.rglob("*"))]
    tail = key[-10:]  # of neither key it is written otherwise in JSON or repr
    assert not [text for text in kept if tail in text]


def test_a_key_in_a_redirect_or_a_refusal_of_the_key_stays_nowhere(tmp_path):
    for status, headers in ((302, {"Location": f"http://x/{KEY}"}), (401, {"WWW_Authenticate": KEY})):
        with (
            hostile_judge(lambda r, body: r.send({"no": KEY}, status=status, **headers)) as judge,  # noqa: B023
            pytest.raises(EndpointUnusable) as error,
        ):
            answers_of(judge, tmp_path)
        assert KEY not in str(error.value)


def test_cookies_are_not_kept(server, tmp_path):
    seen = []

    def behave(request, body):
        seen.append(request.headers.get("Cookie"))
        request.send(completion(), Set_Cookie=f"a{len(seen)}=b")

    server.behave = behave
    answers_of(server, tmp_path, [str(i) for i in range(4)], concurrency=1)
    assert seen == [None] * 4
