"""What judging will take, before the first call: calls, tokens and dollars, as expected and at the very most.

At most a token is a byte of what is sent, and every answer is as long as its limit: that much a budget counts of a
server whose bill it does not know.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sae_bench.autointerp.budget import Spending, Tally
from sae_bench.autointerp.calls import Call
from sae_bench.autointerp.examples import (
    EXCERPT_TOKENS,
    N_FIRING,
    N_SILENT,
    N_TOP,
    Example,
    Kind,
    LatentExamples,
    assign_uses,
    seeded_random,
)
from sae_bench.autointerp.explainer import explain_question
from sae_bench.autointerp.judges import Judges

PLACEHOLDER = "words that have to do with something of about this length, a sentence for the estimate of what it costs"

TYPICAL_TOKENS = (" the", " river", " and", " of", " water", ",", " went", " there", " because", " old")
"""Tokens of English prose, of some 4 bytes."""

ACTIVE_SHARE = 0.1
"""Of the tokens of a firing excerpt."""


@dataclass
class Forecast:
    """Calls that no answer is there for."""

    n_calls: int = 0
    expected: Tally = field(default_factory=Tally)
    most: Tally = field(default_factory=Tally)
    counted: Tally = field(default_factory=Tally)
    """What a budget will count: of a server whose bill it does not know, the most."""

    def add(self, calls: Iterable[Call], times: int = 1) -> "Forecast":
        for call in calls:
            model, expected, most = call.endpoint.model, call.expected.times(times), call.most().times(times)
            self.n_calls += times
            self.expected.add(model, expected)
            self.most.add(model, most)
            self.counted.add(model, expected if call.endpoint.is_openai else most)
        return self

    def describe(self, spending: Spending) -> str:
        """In one line, with the prices of `spending`; also whether its budget is too small."""
        expected, most = (_costs(tally, spending) for tally in (self.expected, self.most))
        enough = spending.allows(self.counted.by_model)
        short = "" if enough else f"; --judge-budget counts {_costs(self.counted, spending)} and ends it before that"
        return f"{self.n_calls:,} calls, about {expected}; at the very most {most}{short}"


def _costs(tally: Tally, spending: Spending) -> str:
    dollars, total = spending.dollars(tally.by_model), tally.total
    price = "price unknown" if dollars is None else f"${dollars:.2f}"
    return f"{total.prompt_tokens:,} + {total.completion_tokens:,} tokens (prompts + answers), {price}"


def calls_about(judges: Judges, latent: LatentExamples) -> Iterator[Call]:
    """All calls about a latent, with an explanation of usual length; what two scorers ask alike is asked once."""
    yield Call(judges.explainer, explain_question(latent, judges.examples_explained))
    asked = set()
    for scorer in judges.scorers:
        for question in scorer.questions(latent, PLACEHOLDER, judges.examples_per_question):
            call = Call(judges.judge, question)
            if call.digest not in asked:
                asked.add(call.digest)
                yield call


def forecast(judges: Judges, latents: Iterable[LatentExamples], is_kept: Callable[[Call], bool]) -> Forecast:
    """What judging these latents takes, less the calls whose answers are kept."""
    found = Forecast()
    for latent in latents:
        found.add(call for call in calls_about(judges, latent) if not is_kept(call))
    return found


def forecast_unseen(judges: Judges, n_latents: int) -> Forecast:
    """What judging so many latents takes that were not collected yet, each with all the excerpts that are kept."""
    return Forecast().add(calls_about(judges, typical_latent()), n_latents)


def typical_latent() -> LatentExamples:
    """A latent with as many excerpts as are ever kept, of English prose."""
    draw = seeded_random("typical")

    def examples(kind: Kind, n: int) -> list[Example]:
        share = 0.0 if kind == "silent" else ACTIVE_SHARE
        texts = [tuple(draw.choices(TYPICAL_TOKENS, k=EXCERPT_TOKENS)) for _ in range(n)]
        activations = [[float(draw.random() < share) for _ in range(EXCERPT_TOKENS)] for _ in range(n)]
        return [
            Example(kind, "score", None, i, text, active)
            for i, (text, active) in enumerate(zip(texts, activations, strict=True))
        ]

    lists = examples("top", N_TOP), examples("decile", N_FIRING), examples("silent", N_SILENT)
    return LatentExamples("typical", 0, 1.0, assign_uses(*lists, draw))
