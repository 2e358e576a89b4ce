"""The real client of a judge: every fault is counted, what passes is tried again, and nothing is paid twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from asking import ALL, ask, failures_of, scores_of
from fake_judge import fake_judge
from toy_latents import toy_latent

from sae_bench.autointerp import client as client_module
from sae_bench.autointerp.budget import Price, Tally
from sae_bench.autointerp.client import EndpointUnusable
from sae_bench.autointerp.settings import Budget
from sae_bench.records.files import read_sealed, write_sealed


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.json"))


@pytest.mark.parametrize(("fault", "n_tries"), [("429", 2), ("500", 2), ("cut", 2), ("hang", 2)])
def test_what_passes_is_tried_again_and_costs_nothing(server, tmp_path, fault, n_tries):
    server.fault = lambda n: fault if n == 1 else None
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection",), concurrency=1, timeout=0.5)
    assert scores_of(latent) == {"detection": 1.0}
    assert failures_of(latent) == {}
    assert len(server.requests) == 1 + 4 + (n_tries - 1)
    assert len(files_of(tmp_path)) == 5


@pytest.mark.parametrize(
    ("fault", "kind", "tries"),
    [
        ("429", "rate_limit", 5), ("500", "server", 5), ("cut", "connection", 5), ("hang", "timeout", 5),
        ("html", "malformed", 1), ("truncated", "malformed", 1), ("refusal", "refusal", 1),
        ("refusal_field", "refusal", 1), ("length", "length", 1), ("say maybe", "unparsable", 1),
        ("say ", "unparsable", 1),
        ('say {"x": true}', "unparsable", 1), ("edit short", "wrong_length", 1), ("edit doubled", "duplicate", 1),
        ("edit halved", "unparsable", 1),
    ],
)  # fmt: skip
def test_a_fault_that_stays_is_counted_under_its_name_and_poisons_no_cache(server, tmp_path, fault, kind, tries):
    """One of four detection questions fails for good; the other three stand, and a rerun asks for that one alone."""
    bad = []

    def falls(n):
        messages = json.dumps(server.requests[n]["messages"])
        if server.kinds[n] == "detection" and not bad:
            bad.append(messages)
        return fault if messages in bad else None

    server.fault = falls
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection",), concurrency=1, timeout=0.3)
    assert failures_of(latent) == {kind: 1}
    assert len(latent["answers"]) == 5
    counts = latent["scores"]["detection"]["counts"]
    assert (sum(counts.values()), counts["unanswered"]) == (40, 10)
    assert scores_of(latent) == {"detection": 1.0}
    assert len(server.requests) == 4 + tries
    assert len(files_of(tmp_path)) == 4

    server.fault = lambda n: None
    (again,) = ask(server, tmp_path, toy_latent(), scorers=("detection",))
    assert failures_of(again) == {}
    assert len(server.requests) == 4 + tries + 1


def test_a_rerun_asks_for_nothing(server, tmp_path):
    first, second = (ask(server, tmp_path, toy_latent(), toy_latent(1)) for _ in range(2))
    assert first == second
    assert len(server.requests) == len(set(server.answered)) == 2 * (1 + 4 + 2 + 10 + 1)


def test_another_model_endpoint_or_question_is_not_answered_from_the_cache(server, tmp_path):
    ask(server, tmp_path, toy_latent(), scorers=("detection",))
    n = len(server.requests)
    with fake_judge() as other:
        ask(other, tmp_path, toy_latent(), scorers=("detection",))
        assert len(other.requests) == n
    ask(server, tmp_path, toy_latent(1), scorers=("detection",))
    assert len(server.requests) == 2 * n


def test_a_damaged_cache_entry_is_asked_for_again(server, tmp_path):
    ask(server, tmp_path, toy_latent(), scorers=("detection",))
    path = files_of(tmp_path)[0]
    path.write_text(path.read_text()[:40])
    n = len(server.requests)
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection",))
    assert scores_of(latent) == {"detection": 1.0}
    assert len(server.requests) == n + 1


@pytest.mark.parametrize(
    "changed",
    [
        {"tokens": 5},
        {"tokens": [["a"]]},
        {"tokens": [["a", {"b": "c"}]]},
        {"tokens": None},
        {"usage": 3},
        {"text": None},
    ],
    ids=str,
)
def test_a_cache_entry_of_another_shape_is_asked_for_again(server, tmp_path, changed):
    ask(server, tmp_path, toy_latent(), scorers=("detection",))
    path = files_of(tmp_path)[0]
    write_sealed(path, {key: value for key, value in read_sealed(path).items() if key != "seal"} | changed)
    n = len(server.requests)
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection",))
    assert scores_of(latent) == {"detection": 1.0}
    assert len(server.requests) == n + 1


def test_no_more_requests_are_under_way_than_allowed(server, tmp_path):
    server.delay = 0.1
    ask(server, tmp_path, *(toy_latent(i) for i in range(3)), concurrency=3)
    assert server.most_under_way == 3


@pytest.mark.parametrize("budget", [Budget(tokens=30_000), Budget(dollars=0.03)])
def test_the_budget_is_kept_and_what_it_cuts_off_is_counted(server, tmp_path, budget):
    tally = Tally()
    latents = ask(server, tmp_path, *(toy_latent(i) for i in range(4)), budget=budget, tally=tally)
    lost = failures_of(*latents)
    assert set(lost) == {"budget"}
    assert 0 < len(server.requests) < 4 * 18
    spent = len(server.requests) * Price(1.0, 10.0).of(tally.by_model["toy"]) / max(1, tally.n_calls - lost["budget"])
    assert tally.by_model["toy"].tokens == 110 * len(server.requests) <= (budget.tokens or 10**9)
    assert spent <= (budget.dollars or 10**9)
    n = len(server.requests)
    latents = ask(server, tmp_path, *(toy_latent(i) for i in range(4)))
    assert failures_of(*latents) == {}
    assert len(server.answered) == len(set(server.answered)), "nothing that was answered is asked again"
    assert len(server.requests) > n


def test_a_wrong_key_ends_it_at_once_and_shows_no_key(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "very-secret-key-1")
    server.fault = lambda n: "401"
    with pytest.raises(EndpointUnusable, match="401") as error:
        ask(server, tmp_path, toy_latent())
    assert "sk-abc" not in str(error.value)
    assert server.headers[0]["authorization"] == "Bearer very-secret-key-1"
    assert len(server.requests) == 1


def test_the_key_of_openai_goes_to_openai_alone(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret-key-2")
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    ask(server, tmp_path, toy_latent(), scorers=("detection",))
    assert not any("authorization" in headers for headers in server.headers)
    assert not any("very-secret-key-2" in path.read_text() for path in files_of(tmp_path))


def test_an_endpoint_that_is_gone_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "MAX_RETRIES", 0)
    monkeypatch.setattr(client_module, "GIVE_UP_AFTER", 3)
    server.fault = lambda n: "500"
    latents = ask(server, tmp_path, *(toy_latent(i) for i in range(10)), concurrency=1)
    assert failures_of(*latents) == {"server": 3, "gave_up": 7}
    assert len(server.requests) == 3


def test_an_endpoint_without_schemas_and_logprobs_is_asked_without(server, tmp_path):
    server.unsupported = {"response_format", "logprobs", "top_logprobs"}
    (latent,) = ask(server, tmp_path, toy_latent(), concurrency=1)
    assert scores_of(latent) == pytest.approx(dict.fromkeys(ALL, 1.0))
    assert sum("response_format" in request for request in server.requests) == 1, "it is told once"


def test_calls_under_way_together_learn_of_one_parameter_one_thing(server, tmp_path):
    server.unsupported, server.delay = {"response_format"}, 0.05
    ask(server, tmp_path, *(toy_latent(i) for i in range(4)), scorers=("simulation",), concurrency=8)
    assert all("seed" in request for request in server.requests)
    assert sum("logprobs" in request for request in server.requests) >= 4 * 10, "no other parameter is given up for it"


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
sys.path.insert(0, {tests!r})
from pathlib import Path
from asking import ask
from toy_latents import toy_latent

class There:
    base_url = {url!r}

ask(There, Path({folder!r}), *(toy_latent(i) for i in range(3)), concurrency=2, timeout=60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_killed_loses_no_answer(server, tmp_path, number):
    reached = threading.Event()

    def stop(n):
        if n < 20:
            return None
        reached.set()
        return "hang"

    server.fault = stop
    code = CHILD.format(tests=str(Path(__file__).parents[1]), url=server.base_url, folder=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=dict(os.environ))
    assert reached.wait(400)
    time.sleep(0.5)
    child.send_signal(number)
    child.wait(120)
    answered = list(server.answered)
    assert len(answered) == 20
    server.fault, server.answered = (lambda n: None), []
    latents = ask(server, tmp_path, *(toy_latent(i) for i in range(3)))
    assert all(scores_of(latent) == pytest.approx(dict.fromkeys(ALL, 1.0)) for latent in latents)
    assert not set(server.answered) & set(answered)
    assert len(server.answered) == 3 * 18 - 20
