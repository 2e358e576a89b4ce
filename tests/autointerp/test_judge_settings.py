"""What judging may cost, what is known of prices, and that a judge leaves a run's identity alone."""

import re

import pytest

from sae_bench.autointerp.budget import load_prices
from sae_bench.autointerp.settings import parse_budget
from sae_bench.errors import UserError
from sae_bench.runs.config import RunConfig


@pytest.mark.parametrize(
    ("text", "dollars", "tokens"),
    [
        ("$5", 5.0, None), ("2.5usd", 2.5, None), ("5 USD", 5.0, None), (".5usd", 0.5, None), ("2M", None, 2_000_000),
        ("2M tokens", None, 2_000_000), ("300tokens", None, 300), ("1e6 tokens", None, 1_000_000),
    ],
)  # fmt: skip
def test_a_budget_is_dollars_or_tokens(text, dollars, tokens):
    budget = parse_budget(text)
    assert (budget.dollars, budget.tokens) == (dollars, tokens)


@pytest.mark.parametrize(
    "text", ["5", "0", ".50", "", "2000000", "1e6", "0usd", "0 tokens", "5eur", "1.2.3usd", "-5usd"]
)
def test_a_budget_without_a_unit_is_an_error_that_names_both_and_the_shell(text):
    with pytest.raises(ValueError, match=f'"{re.escape(text)}" is no budget: write 5usd .* "2M tokens"') as error:
        parse_budget(text)
    assert ("a shell makes that of $5" in str(error.value)) == (re.fullmatch(r"[\d.]*", text) is not None)


def test_prices_of_the_user_add_to_those_that_come_along(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text('["mine"]\ninput = 1\noutput = 2.5\n["gpt-4o"]\ninput = 9\noutput = 9\n')
    prices = load_prices(str(path))
    assert (prices["mine"].output, prices["gpt-4o"].input) == (2.5, 9.0)
    assert "gpt-4o-mini" in prices
    path.write_text('["mine"]\ninput = "much"\n')
    with pytest.raises(UserError, match=r"prices\.toml.*dollars per million"):
        load_prices(str(path))


def test_judges_leave_the_identity_of_a_run_alone():
    base = {"archs": ["topk"], "model": "demo", "sites": ["resid_post"], "seeds": [0]}
    plain = RunConfig.build(base)
    other = RunConfig.build(base, {"n_latents": 7, "judge_model": "toy", "scorers": ["simulation"], "chance": True})
    assert plain.hash == other.hash
    assert not {"n_latents", "judge_model", "scorers"} & plain.identity.keys()
