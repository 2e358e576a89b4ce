"""Judges that mean harm: whatever they answer is a counted failure, within bytes and time."""

import asyncio
import json
import time

import pytest
from hostile_calls import answers_of, cached, call_to, choice
from hostile_judge import EXPLANATION, bomb, completion, hostile_judge
from toy_latents import toy_latent

from sae_bench import SCORERS
from sae_bench.autointerp import client as client_module
from sae_bench.autointerp.budget import Spending, Tally
from sae_bench.autointerp.calls import Endpoint
from sae_bench.autointerp.client import Client, EndpointUnusable
from sae_bench.autointerp.explainer import judge_latent, read_explanation
from sae_bench.autointerp.judges import Judges
from sae_bench.autointerp.parse import Unreadable, read_boolean
from sae_bench.autointerp.settings import Budget

pytestmark = pytest.mark.usefixtures("hurried")


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
    hostile, tmp_path, content, failure
):
    hostile.behave = lambda request, body: request.send(content)
    ((answer,), spending) = answers_of(hostile, tmp_path)
    assert (answer.failure, answer.value) == (failure, None if failure else EXPLANATION)
    assert len(cached(tmp_path)) == (failure is None)
    assert list(answer.tokens) == []
    most = call_to(hostile).most()
    assert spending.by_model["toy"].or_more(most) == spending.by_model["toy"], "it counts in full, whatever it is"


def test_no_malformed_answer_ends_the_judging_of_a_latent(hostile, tmp_path, monkeypatch):
    """All of the table, one after the other, through explainer and scorers: nothing is raised, each is counted."""
    monkeypatch.setattr(client_module, "GIVE_UP_AFTER", 10**6)
    rows = iter(TABLE * 9)
    said = [completion(json.dumps({"explanation": "river"}))]
    hostile.behave = lambda request, body: request.send(said.pop() if said else next(rows)[1])
    endpoint, tally = Endpoint("toy", hostile.base_url), Tally()
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


def test_half_a_character_within_the_answer_is_written_as_a_question_mark(hostile, tmp_path):
    hostile.behave = lambda request, body: request.send(completion('{"explanation": "rivers \\ud800 banks"}'))
    assert answers_of(hostile, tmp_path)[0][0].value == "rivers ? banks"


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


def test_a_pause_that_a_server_asks_for_is_a_minute_at_most():
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
