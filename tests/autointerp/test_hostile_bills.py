"""Judges that bill what they like: no book of theirs says more than the budget."""

import json

import pytest
from hostile_calls import answers_of
from hostile_judge import completion, hostile_judge

from sae_bench.autointerp import client as client_module
from sae_bench.autointerp.budget import Usage
from sae_bench.autointerp.calls import OPENAI, Endpoint
from sae_bench.autointerp.settings import Budget

pytestmark = pytest.mark.usefixtures("hurried")


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
def test_the_budget_holds_whatever_is_billed_and_said(hostile, tmp_path, monkeypatch, lie, words):
    """60 calls of some 700 tokens each, at most; the judge bills a token for every byte, and the longest answer."""
    monkeypatch.setattr(client_module, "GIVE_UP_AFTER", 10**6)
    hostile.billed = hostile.n_requests = 0

    def behave(request, body):
        hostile.bill(body)
        content, status = lie(hostile.n_requests)
        request.send(content, status=status)

    hostile.behave = behave
    answers, spending = answers_of(
        hostile, tmp_path, [words * 20 + str(i) for i in range(60)], budget=Budget(tokens=9000)
    )
    assert "budget" in {answer.failure for answer in answers}
    assert 9000 / 5 < hostile.billed <= spending.by_model["toy"].tokens <= 9000


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
    with hostile_judge(lambda request, body: None) as judge:
        pass
    ((answer,), spending) = answers_of(judge, tmp_path)
    assert (answer.failure, spending.by_model["toy"]) == ("connection", Usage())


def test_over_the_budget_goes_at_most_what_the_requests_under_way_write_beyond_their_limit(hostile, tmp_path):
    """One at a time, this is the last one: it writes 20,000 bytes, though asked for 80 tokens, and bills each."""
    hostile.billed = hostile.n_requests = 0
    text = json.dumps({"explanation": "so " * 6600})

    def behave(request, body):
        hostile.bill(body, written=len(text))
        request.send(completion(text, usage={"prompt_tokens": 1, "completion_tokens": 1}))

    hostile.behave = behave
    texts = [f"what? {i}" for i in range(10)]
    answers, spending = answers_of(hostile, tmp_path, texts, budget=Budget(tokens=25_000), concurrency=1)
    assert [answer.failure for answer in answers] == [None, None, *["budget"] * 8]
    assert 25_000 < hostile.billed <= spending.by_model["toy"].tokens < 25_000 + 21_000


def test_openai_is_taken_at_its_word_and_nobody_else(monkeypatch):
    reply, bill = client_module.Reply(200, {}, json.dumps(completion()).encode()), Usage(100, 10)
    counted, most = client_module._counted, Usage(500, 80)
    said = client_module.read_completion(reply.body)
    assert counted(Endpoint("m", OPENAI), most, reply, said) == bill
    assert counted(Endpoint("m", "https://api.openai.com.example/v1"), most, reply, said) == most
    assert counted(Endpoint("m", OPENAI), most, client_module.Reply(429, {}, b""), None) == Usage()
    silent = client_module.read_completion(json.dumps(completion() | {"usage": None}).encode())
    assert counted(Endpoint("m", OPENAI), most, reply, silent) == most
