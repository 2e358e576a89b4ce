"""Judges that repeat the key that they were given: it stays nowhere, and goes to nobody else."""

import asyncio
import json
import logging

import pytest
from hostile_calls import answers_of, cached, call_to, choice
from hostile_judge import completion, hostile_judge

from sae_bench.autointerp.client import EndpointUnusable
from sae_bench.autointerp.judges import Judges, _reach

KEY = "JK-supersecret-0123456789"


@pytest.fixture(autouse=True)
def key_to_lose(monkeypatch, hurried):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)


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
def test_a_key_that_a_judge_echoes_stays_nowhere(hostile, tmp_path, monkeypatch, caplog, echo, key):
    monkeypatch.setenv("JUDGE_API_KEY", key)
    caplog.set_level(logging.DEBUG)
    seen = []

    def behave(request, body):
        seen.append(request.key)
        content, status = echo(request.key)
        request.send(content, status=status)

    hostile.behave = behave
    ((answer,), _) = answers_of(hostile, tmp_path)
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


def test_cookies_are_not_kept(hostile, tmp_path):
    seen = []

    def behave(request, body):
        seen.append(request.headers.get("Cookie"))
        request.send(completion(), Set_Cookie=f"a{len(seen)}=b")

    hostile.behave = behave
    answers_of(hostile, tmp_path, [str(i) for i in range(4)], concurrency=1)
    assert seen == [None] * 4


OF_OPENAI = {
    "OPENAI_API_KEY": "sk-of-openai-012345", "OPENAI_ADMIN_KEY": "admin-of-openai", "OPENAI_ORG_ID": "org-of-openai",
    "OPENAI_PROJECT_ID": "project-of-openai",
    "OPENAI_CUSTOM_HEADERS": "X-Gateway: gateway-of-openai\nauthorization: Bearer bearer-of-openai",
}  # fmt: skip


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("is_openai", [False, True])
def test_what_the_environment_has_for_openai_goes_to_openai_alone(hostile, tmp_path, monkeypatch, key, is_openai):
    """Also that which the `openai` client reads there by itself."""
    for name, value in {**OF_OPENAI, "JUDGE_API_KEY": key or ""}.items():
        monkeypatch.setenv(name, value)
    if is_openai:
        monkeypatch.setattr("sae_bench.autointerp.calls.OPENAI", hostile.base_url)
    seen = []

    def behave(request, body):
        seen.append({name.lower(): value for name, value in request.headers.items()})
        request.send(completion())

    hostile.behave = behave
    answers_of(hostile, tmp_path)
    asyncio.run(_reach(Judges(call_to(hostile).endpoint, call_to(hostile).endpoint, []), 2.0))
    assert len(seen) == 2, "the question, and whether the judge is there"
    for headers in seen:
        text = " ".join(headers.values())
        assert headers.get("authorization") == (f"Bearer {OF_OPENAI['OPENAI_API_KEY']}" if is_openai
                                                else f"Bearer {key}" if key else None)  # fmt: skip
        assert ("of-openai" in text) == ("org-of-openai" in text) == is_openai
