"""Scores by how likely the judge finds "true": read off its log-probabilities, blind to its leaning, asked once."""

import math

import pytest
from asking import ask, failures_of, scores_of
from fake_judge import data_of
from toy_latents import WORDS, toy_latent

from sae_bench import SCORERS
from sae_bench.autointerp.budget import Tally
from sae_bench.autointerp.calls import Answer, Call, Endpoint, Question
from sae_bench.autointerp.examples import Example, LatentExamples
from sae_bench.autointerp.explainer import explain_question
from sae_bench.autointerp.forecast import calls_about
from sae_bench.autointerp.judges import Judges
from sae_bench.autointerp.latents import examples_of
from sae_bench.autointerp.likelihood import likelihood_of_true

HERE = Endpoint("toy", "http://localhost/v1")


def odds(true: float, false: float | None = None) -> dict[str, float]:
    """Alternatives to a token; what is left of 1 goes to other words."""
    found = {"true": math.log(true), "maybe": math.log(1e-3)}
    return found | {"false": math.log(1 - true if false is None else false)}


def one(truth: bool, likely: float | None) -> tuple[Question, Answer]:
    """A question about one excerpt, and the answer of a judge that says "true" to all."""
    tokens = () if likely is None else (("true", odds(likely)),)
    return Question([], {}, 1, str, [0], truth=[truth]), Answer({"abc": True}, "true", tokens=tokens)


def score(*pairs, name="detection_auc"):
    return SCORERS[name]().score(*zip(*pairs, strict=True))


def test_each_identifier_has_the_probability_of_its_own_word():
    tokens = [('{"', {}), ("bcd", {}), ('":', {}), (" true", {" true": math.log(0.6), " false": math.log(0.2)}),
              (', "f', {}), ('gh": ', {}), ("false", odds(0.1)), ("}", {})]  # fmt: skip
    found = likelihood_of_true({"bcd": True, "fgh": False}, tokens)
    assert found == pytest.approx([0.75, 0.1])
    assert likelihood_of_true({"fgh": False, "bcd": True}, tokens) == found[::-1]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([("True", {"True": math.log(0.3), "true": math.log(0.3), "False": math.log(0.2)})], 0.75),
        ([("**", {}), ("true", odds(0.8)), ("**", {})], 0.8),
        ([('{"b', {}), ('cd": ', {}), ("true", odds(0.8)), ("}", {})], 0.8),
        ([("true,", {"true,": math.log(0.8), "false,": math.log(0.2)})], 0.8),
        # What is not listed has at most what is left, and at most the least of what is listed.
        ([("true", {"true": math.log(0.7)})], 0.7),
        ([("true", {"true": math.log(0.9), "maybe": math.log(0.05)})], 0.9 / 0.95),
        ([("true", {"true": math.log(0.9), "maybe": math.log(0.001)})], 0.9 / 0.901),
        # An excerpt that is said back before the answer, and holds a word that could be one.
        ([('"bcd": ', {}), ("No", odds(0.1)), (' rain {"bcd": ', {}), ("true", odds(0.8)), ("}", {})], 0.8),
        ([('{"bcd": ', {}), ("true", odds(0.8)), ('} "bcd": ', {}), ("no", odds(0.1))], 0.8),
        ([("tr", {"tr": math.log(0.98), "false": math.log(0.01)}), ("ue", {"ue": 0.0})], None),
        ([("true", {"false": math.log(0.08)})], None),
        ([("true", {})], None),
        ([], None),
    ],
    ids=[
        "spellings", "bold", "json", "comma", "only-true", "rest-is-listed-least", "least-is-listed", "said-back",
        "said-after", "in-pieces", "itself-not-listed", "no-alternatives", "no-tokens",
    ],
)  # fmt: skip
def test_one_word(tokens, expected):
    assert likelihood_of_true({"bcd": True}, tokens) == [None if expected is None else pytest.approx(expected)]


def test_the_score_is_the_share_of_pairs_in_the_right_order():
    # Of 2 x 3 pairs (.9, .5) against (.8, .5, .1): .9 wins three, .5 wins one and ties one.
    pairs = [one(True, 0.9), one(False, 0.8), one(True, 0.5), one(False, 0.5), one(False, 0.1)]
    found = score(*pairs)
    assert found.value == pytest.approx(4.5 / 6)
    assert (found.n, found.counts) == (5, {"true": 2, "false": 3, "unanswered": 0, "with_logprobs": 5})
    assert score(*pairs, name="detection").value == 0.5, "to say true to all is one half, whatever it was how sure of"
    assert score(*((q, a) for q, a in pairs[::-1])).value == found.value


def test_a_leaning_to_yes_changes_nothing():
    likely = [(True, 0.9), (False, 0.7), (True, 0.6), (False, 0.2), (True, 0.3)]
    leaning = [(truth, p / (p + 0.02 * (1 - p))) for truth, p in likely]
    assert all(p > 0.9 for _, p in leaning)
    assert score(*(one(*pair) for pair in leaning)).value == score(*(one(*pair) for pair in likely)).value == 4 / 6


def test_without_log_probabilities_there_is_no_score_and_of_what_failed_none():
    without = "have no log-probabilities of true and false"
    assert score(one(True, None), one(False, None)).note == f"undefined: the judge's answers {without}"
    some = score(one(True, 0.9), one(True, None), one(False, 0.1))
    assert (some.value, some.note, some.counts["with_logprobs"]) == (None, f"undefined: some answers {without}", 2)
    lost = one(True, 0.9)[0], Answer(failure="timeout")
    found = score(lost, one(False, 0.9))
    assert (found.value, found.counts["unanswered"]) == (None, 1)
    assert found.note == "undefined: no answers on one of the two sides"


def test_both_scorers_ask_the_same_and_it_is_asked_and_foretold_once(server, tmp_path):
    names = ("detection", "detection_auc", "fuzzing", "fuzzing_auc")
    latent = toy_latent()
    server.logprobs = lambda text: [
        {"token": word, "top_logprobs": [{"token": word.strip(), "logprob": -0.1}]} for word in text.split(" ")
    ]
    (found,) = ask(server, tmp_path, latent, scorers=names)
    assert scores_of(found) == dict.fromkeys(names, 1.0)
    assert found["scores"]["fuzzing_auc"]["counts"]["with_logprobs"] == 20
    judges = Judges(HERE, HERE, [SCORERS[name]() for name in names])
    assert len(server.requests) == len(list(calls_about(judges, examples_of(latent)))) == 1 + 4 + 2
    assert len(found["answers"]) == 1 + 4 + 2


def test_what_failed_is_not_asked_again_for_the_second_scorer_nor_counted_twice(server, tmp_path):
    server.fault = lambda n: "say Perhaps." if n else None
    tally = Tally()
    (found,) = ask(server, tmp_path, toy_latent(), scorers=("detection", "detection_auc"), tally=tally)
    assert len(server.requests) == tally.n_calls == 1 + 4
    assert failures_of(found) == {"unparsable": 4}
    assert [found["scores"][name]["counts"]["unanswered"] for name in ("detection", "detection_auc")] == [40, 40]


def test_an_error_that_names_nothing_costs_no_parameter_that_was_answered_before(server, tmp_path):
    """One stray 400, as of a content filter, and all later answers would lack log-probabilities."""
    server.fault = lambda n: "400" if n == 5 else None
    (found,) = ask(server, tmp_path, toy_latent(), scorers=("detection",), excerpts=1, concurrency=1)
    assert failures_of(found) == {"request": 1}
    assert all(request["logprobs"] for request in server.requests[1:])
    assert len(server.requests) == 1 + 40


def test_questions_about_a_latent_begin_alike_up_to_the_excerpt():
    """So that a server computes what stands before it once."""
    for name in ("detection", "fuzzing"):
        scorer = SCORERS[name]()
        latents = [examples_of(toy_latent(i)) for i in range(2)]
        asked = [[q.messages for q in scorer.questions(latent, WORDS[0], 1)] for latent in latents]
        for questions in asked:
            begins = {messages[-1]["content"].partition('"excerpts": {"')[0] for messages in questions}
            assert len(begins) == 1
            mark = next(iter(begins)).partition("[data-")[2][:12]
            assert len(mark) == 12
            assert sum(mark in message["content"] for message in questions[0]) == 1
        assert asked[0][0][:-1] == asked[1][0][:-1], "instructions and demonstrations are the same for all latents"
        assert asked[0][0][-1] != asked[1][0][-1]


def test_one_word_is_asked_for_without_a_schema_and_ten_with_one():
    latent = examples_of(toy_latent())
    scorer = SCORERS["detection"]()
    (alone, *_), (ten, *_) = (scorer.questions(latent, "river", n) for n in (1, 10))
    assert "response_format" not in Call(HERE, alone).parameters
    assert len(Call(HERE, ten).parameters["response_format"]["json_schema"]["schema"]["required"]) == 10


def test_of_fewer_excerpts_the_strongest_are_half_and_weak_tokens_are_not_named():
    weak, strong = (" weak", 0.29), (" strong", 0.31)
    examples = [
        Example("decile", "explain", 1, i, (" peak", weak[0], strong[0]), (1.0 * i, weak[1] * i, strong[1] * i))
        for i in (3, 1, 10, 8, 5, 9, 2, 7, 4, 6)
    ]
    latent = LatentExamples("sae", 0, 10.0, examples)
    few = explain_question(latent, 5)
    assert [latent.examples[i].peak for i in few.examples] == [10, 9, 8, 6, 2]
    assert len(explain_question(latent, 20).examples) == 10
    shown = data_of(few.messages[-1]["content"])["excerpts"]
    assert [excerpt["active"] for excerpt in shown[:2]] == [
        [[" peak", 10], [" strong", 3]],
        [[" peak", 9], [" strong", 2]],
    ]


def test_an_excerpt_cannot_hold_a_mark_not_even_a_demonstrations():
    """Those of demonstrations are the same in every run: a corpus can know them."""
    demonstration = (
        SCORERS["detection"].prompt.messages({"explanation": "x"}, one=True)[1]["content"].partition("\n")[0]
    )
    messages = SCORERS["detection"].prompt.messages({"excerpts": {"bcd": f"\n{demonstration}\nyes"}}, one=True)
    assert demonstration.startswith("[data-")
    assert messages[-1]["content"].count("[data-") == 1
    assert data_of(messages[-1]["content"]) == {"excerpts": {"bcd": f"\n{demonstration}\nyes"}}
