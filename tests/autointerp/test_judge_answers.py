"""What is read of a judge's answers, and what is none; judges whose scores are known."""

import json
import math
import statistics

import pytest
from asking import ALL, ask, failures_of, scores_of
from fake_judge import EDITS, coin, nay_sayer
from toy_latents import toy_latent

from sae_bench.autointerp.calls import Answer
from sae_bench.autointerp.explainer import judged
from sae_bench.autointerp.parse import Unreadable, read_boolean
from sae_bench.autointerp.scorers.simulation import expected


def test_a_perfect_judge_scores_one_everywhere(server, tmp_path):
    latents = ask(server, tmp_path, *(toy_latent(i) for i in range(3)))
    for latent in latents:
        assert scores_of(latent) == pytest.approx(dict.fromkeys(ALL, 1.0))
        assert latent["scores"]["detection"]["counts"] == {
            "true_positive": 20, "true_negative": 20, "false_positive": 0, "false_negative": 0, "unanswered": 0,
        }  # fmt: skip
    assert [latent["explanation"] for latent in latents] == ["river", "stone", "mill"]


def test_a_judge_that_always_says_no_has_one_half_and_saebench_gives_it_ten_of_fourteen(server, tmp_path):
    server.judge = nay_sayer
    (latent,) = ask(server, tmp_path, toy_latent())
    scores = scores_of(latent)
    assert (scores["detection"], scores["fuzzing"]) == (0.5, 0.5)
    assert scores["saebench_detection"] == 10 / 14
    assert scores["simulation"] is None
    assert latent["scores"]["simulation"]["note"] == "undefined: constant prediction"


def test_a_coin_has_one_half_within_its_interval_and_scatters_as_a_coin_does(server, tmp_path):
    """Who says no to everything has the right mean as well, but every latent at one half; a coin's lie about it.

    Which scores a coin gets is fixed: it falls by the question's text.
    """
    server.judge = coin()
    latents = ask(server, tmp_path, *(toy_latent(i) for i in range(12)), scorers=("detection", "fuzzing"))
    for name, n in (("detection", 40), ("fuzzing", 20)):
        scores = [scores_of(latent)[name] for latent in latents]
        assert statistics.mean(scores) == pytest.approx(0.5, abs=3 * 0.5 / (12 * n) ** 0.5)
        assert sum(score != 0.5 for score in scores) >= 6
        assert 0.5 < statistics.stdev(scores) / (0.5 / n**0.5) < 1.6
        for latent in latents:
            counts = latent["scores"][name]["counts"]
            assert counts.pop("unanswered") == 0
            assert min(counts.values()) > 0, "a coin is right and wrong on both sides"


@pytest.mark.parametrize(
    "said",
    [
        'A word: "river". It is a river of a river of a',
        '{"explanation": "A word: \\"river\\". It is a river of a river of a',
        '```json\n{"explanation": "A word: \\"river\\". It is a river of a river of a',
        '{\n  "explanation": "A word:\\n\\u0022river\\u0022. It is a river of a river of a',
    ],
)
def test_an_explanation_that_trails_off_is_read_up_to_its_whole_sentence_and_counted(server, tmp_path, said):
    server.fault = lambda n: f"trail off {said}" if n == 0 else None
    for _ in range(2):  # the second time from the cache
        (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection",))
        assert latent["explanation"] == 'A word: "river".'
        assert judged(latent).failures == {"cut_short": 1}
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    "said",
    [
        "a river of a river of a", '{"explanation": "river. And', "I am sorry. I cannot",
        '{"explanation": "I am sorry, I cannot. And',
        '{"why": "A word: river. It is", "explanation": "A word: river. It is',
        "So: {river}, a word: river. It is a", '```json\n{"why": "A word: river. It is a',
        '{"explanation": ["A word: river. It is', '{"explanation": "A word: \\ud83d river. It is',
    ],
)  # fmt: skip
def test_an_explanation_without_a_whole_sentence_is_none(server, tmp_path, said):
    server.fault = lambda n: f"trail off {said}"
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection",))
    assert latent["explanation"] is None
    assert judged(latent).failures == {"length": 1}


def test_an_answer_among_words_is_read(server, tmp_path):
    server.fault = lambda n: "edit fenced"
    (latent,) = ask(server, tmp_path, toy_latent())
    assert scores_of(latent) == pytest.approx(dict.fromkeys(ALL, 1.0))


def in_a_word(tail):
    """A judge that answers about one excerpt as small models do."""

    def said(text: str) -> str:
        content = json.loads(text)
        return text if "explanation" in content else f"{'True' if content.popitem()[1] else 'False'}.{tail}"

    return said


@pytest.mark.parametrize("tail", ["", "\n\nThe excerpt is what it is, true to its word.\n"])
def test_about_one_excerpt_a_word_is_answer_enough(server, tmp_path, monkeypatch, tail):
    monkeypatch.setitem(EDITS, "word", in_a_word(tail))
    server.fault = lambda n: "edit word"
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection", "fuzzing"), excerpts=1)
    assert scores_of(latent) == {"detection": 1.0, "fuzzing": 1.0}
    assert len(server.requests) == 1 + 40 + 20
    roles = [message["role"] for message in server.requests[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"], "two examples"
    assert "Answer with one word alone, true or false." in server.requests[-1]["messages"][-1]["content"]


def test_with_one_excerpt_a_question_the_known_judges_score_as_ever(server, tmp_path):
    (latent,) = ask(server, tmp_path / "perfect", toy_latent(), scorers=("detection", "fuzzing"), excerpts=1)
    assert scores_of(latent) == {"detection": 1.0, "fuzzing": 1.0}
    server.judge = nay_sayer
    (latent,) = ask(server, tmp_path / "no", toy_latent(), scorers=("detection", "fuzzing"), excerpts=1)
    assert scores_of(latent) == {"detection": 0.5, "fuzzing": 0.5}


def test_a_word_about_several_excerpts_is_no_answer(server, tmp_path):
    server.fault = lambda n: "say True." if n else None
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection",), concurrency=1)
    assert (scores_of(latent), failures_of(latent)) == ({"detection": None}, {"unparsable": 4})


def test_a_word_that_is_cut_off_among_its_reasons_stands_and_is_counted(server, tmp_path):
    server.fault = lambda n: {0: None, 1: "trail off Yes\n\nThe exc", 2: "trail off The exc"}.get(n, "say no")
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection",), concurrency=1, excerpts=1)
    assert judged(latent).failures == {"cut_short": 1, "length": 1}
    counts = latent["scores"]["detection"]["counts"]
    assert (counts["unanswered"], counts["true_positive"] + counts["false_positive"]) == (1, 1)


def test_the_example_said_back_is_no_answer(server, tmp_path):
    """It stands in the question, so that nobody who repeats the question has answered it."""

    def says_back(n):
        user = server.requests[n]["messages"][1]["content"]
        return f"say {user.splitlines()[-1].partition('identifiers: ')[2]}" if n else None

    server.fault = says_back
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection",), concurrency=1)
    assert '": true or false, ' in latent["answers"][1]["answer"]
    assert (scores_of(latent), failures_of(latent)) == ({"detection": None}, {"unparsable": 4})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("true", True), ("False.", False), (" **Yes**!\n", True), ("`no`", False), ('"true"', True),
        ('{"abc": false}', False), ('Sure:\n```json\n{"abc": true}\n```', True), ("TRUE\n\nIt says so.", True),
        ("", "unparsable"), ("maybe", "unparsable"), ("true or false", "unparsable"), ("not true", "unparsable"),
        ("No, he said, and left", "unparsable"), ("True. It does not.", "unparsable"), ("1, 0", "unparsable"),
        ("[true]", "unparsable"), ('true {"x": 1}', "unparsable"), ('{"xyz": true}', "unparsable"),
        ("It is so:\ntrue", "unparsable"), ("```\ntrue\n```", "unparsable"), ("true\ntrue", "wrong_length"),
        ("true\n\nfalse", "duplicate"), ('{"abc": true, "xyz": true}', "wrong_length"),
        ('{"abc": true, "abc": true}', "duplicate"), ("I cannot help with that", "refusal"),
    ],
)  # fmt: skip
def test_an_answer_about_one_excerpt_is_read_or_named_and_never_guessed(text, answer):
    if isinstance(answer, bool):
        assert read_boolean(text, "abc") == {"abc": answer}
        return
    with pytest.raises(Unreadable) as error:
        read_boolean(text, "abc")
    assert error.value.kind == answer


def test_without_an_explanation_nothing_is_scored_and_the_reason_stands_there(server, tmp_path):
    server.fault = lambda n: "refusal"
    (latent,) = ask(server, tmp_path, toy_latent())
    assert latent["explanation"] is None
    assert scores_of(latent) == dict.fromkeys(ALL)
    assert latent["scores"]["fuzzing"]["note"] == "no explanation: refusal"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        'say {"explanation": "in at most 15 words"}', "say Answer in at most 15 words.",
        'say {"explanation": "musical instruments that are played with a bow"}',
        "say They are musical instruments that are played with a bow.",
        "trail off Musical instruments that are played with a bow. And",
        'trail off {"explanation": "Musical instruments that are played with a bow. And',
        'say {"explanation": "\\"Than\\", where two things are compared."}',
        "say Years of the late twentieth century and the months before them.",
        'say {"explanation": "..."}',
    ],
)  # fmt: skip
def test_the_question_or_its_example_said_back_is_no_explanation(server, tmp_path, fault):
    server.fault = lambda n: fault
    (latent,) = ask(server, tmp_path, toy_latent())
    assert (latent["explanation"], failures_of(latent)) == (None, {"unparsable": 1})
    prompt = "".join(message["content"] for message in server.requests[0]["messages"])
    assert "in at most 15 words" in prompt
    assert "musical instruments that are played with a bow" in prompt


def test_words_that_the_prompt_also_has_may_explain(server, tmp_path):
    server.fault = lambda n: "say Names of musical instruments, such as a bow." if n == 0 else None
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("detection",))
    assert latent["explanation"] == "Names of musical instruments, such as a bow."


def test_a_number_with_a_space_before_it_is_the_same_number():
    """.5 of "3", .3 of " 3", .2 of "8": the mean is 4."""
    likely = {"3": math.log(0.5), " 3": math.log(0.3), "8": math.log(0.2), "x": 0.0}
    assert expected(Answer([8.0], tokens=[("8", likely)])) == [pytest.approx(4.0)]


def test_where_there_are_logprobs_a_simulation_is_an_expected_value(server, tmp_path):
    """The judge says 0 everywhere, but on the right tokens it gave 10 a chance."""
    words: list[str] = []

    def all_zero(kind, data, user):
        if kind == "explain":
            return {"explanation": "river"}
        words[:] = [token.strip() for token in data["tokens"]]
        return {"strengths": [0] * len(words)}

    def logprobs(text):
        ten = [-0.7 if word == "river" else -9.0 for word in words]
        place = iter(ten)
        return [
            {"token": part, "logprob": -0.1, "bytes": None, "top_logprobs": [
                {"token": part, "logprob": -0.7, "bytes": None},
                *([{"token": "10", "logprob": next(place), "bytes": None}] if part == "0" else []),
            ]}
            for part in __import__("re").findall(r"\d+|\D+", text)
        ]  # fmt: skip

    server.judge, server.logprobs = all_zero, logprobs
    (latent,) = ask(server, tmp_path, toy_latent(), scorers=("simulation",), concurrency=1)
    assert latent["scores"]["simulation"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert latent["scores"]["simulation"]["counts"]["with_logprobs"] == 10
