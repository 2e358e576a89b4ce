"""What judging costs: prices by model, what was spent, and a budget that no request may break."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sae_bench.autointerp.settings import Budget
from sae_bench.errors import UserError

PRICES = Path(__file__).with_name("prices.toml")

CHARACTERS_PER_TOKEN = 3.0
"""For estimates, on the low side: a budget shall hold before the first answer says how many tokens a prompt has."""


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens."""

    input: float
    output: float

    def of(self, usage: "Usage") -> float:
        return (self.input * usage.prompt_tokens + self.output * usage.completion_tokens) / 1e6


@dataclass(frozen=True)
class Usage:
    """Tokens of some requests."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt_tokens - other.prompt_tokens, self.completion_tokens - other.completion_tokens)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def _add(by_model: dict[str, Usage], model: str, usage: Usage) -> None:
    by_model[model] = by_model.get(model, Usage()) + usage


def estimated_tokens(text: str) -> int:
    return round(len(text) / CHARACTERS_PER_TOKEN)


def load_prices(users: str | None) -> dict[str, Price]:
    """The prices that come along, and those of the user's file over them.

    Raises:
        UserError: the file cannot be read or is of another form.
    """
    prices: dict[str, Price] = {}
    for path in (PRICES, *([Path(users)] if users else [])):
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            prices |= {name: Price(float(row["input"]), float(row["output"])) for name, row in table.items()}
        except OSError as error:
            raise UserError(f"--judge-prices {path}: {error.strerror}; give the path of a TOML file") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'--judge-prices {path}: {type(error).__name__}: {error}; write ["model"] and below it '
                "input = and output =, in dollars per million tokens"
            ) from None
    return prices


@dataclass
class Spending:
    """What a command has spent on its judges, and what it may spend.

    A request reserves the most that it can cost before it is sent, so that requests under way together keep the budget.
    """

    budget: Budget
    prices: Mapping[str, Price]
    spent: dict[str, Usage] = field(default_factory=dict)
    reserved: dict[str, Usage] = field(default_factory=dict)

    def check(self, models: set[str]) -> None:
        """Raise UserError if the budget is in dollars and a model has no price."""
        for model in sorted(models - self.prices.keys()) if self.budget.dollars is not None else ():
            raise UserError(
                f'--judge-budget in dollars: "{model}" has no price; give it in a file with --judge-prices, or a '
                "budget in tokens"
            )

    def reserve(self, model: str, usage: Usage) -> bool:
        """Set aside what a request may cost; False if the budget does not have it."""
        _add(self.reserved, model, usage)
        used = [self.spent.get(name, Usage()) + held for name, held in self.reserved.items()]
        tokens = sum(usage.tokens for usage in used)
        over = self.budget.tokens is not None and tokens > self.budget.tokens
        if self.budget.dollars is not None:
            dollars = sum(self.prices[name].of(usage) for name, usage in zip(self.reserved, used, strict=True))
            over = over or dollars > self.budget.dollars
        if over:
            self.release(model, usage)
        return not over

    def release(self, model: str, reserved: Usage, used: Usage | None = None) -> None:
        """Give back what was set aside, and count what was used."""
        self.reserved[model] -= reserved
        _add(self.spent, model, used or Usage())

    def dollars(self, by_model: Mapping[str, Usage]) -> float | None:
        """What this usage of some models costs; None if a price is not known."""
        if by_model.keys() - self.prices.keys():
            return None
        return sum(self.prices[model].of(usage) for model, usage in by_model.items())


@dataclass
class Tally:
    """What some answers took: all of them, and how many came out of the cache."""

    by_model: dict[str, Usage] = field(default_factory=dict)
    n_calls: int = 0
    n_cached: int = 0

    def add(self, model: str, usage: Usage, *, cached: bool = False) -> None:
        _add(self.by_model, model, usage)
        self.n_calls += 1
        self.n_cached += cached

    @property
    def total(self) -> Usage:
        return sum(self.by_model.values(), Usage())
