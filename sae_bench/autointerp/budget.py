"""What judging costs: prices by model, what was spent, and a budget that no request may break."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sae_bench.autointerp.settings import Budget
from sae_bench.errors import UserError

PRICES = Path(__file__).with_name("prices.toml")


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

    def times(self, n: int) -> "Usage":
        return Usage(n * self.prompt_tokens, n * self.completion_tokens)

    def or_more(self, other: "Usage") -> "Usage":
        """The larger of both, number by number."""
        return Usage(max(self.prompt_tokens, other.prompt_tokens), max(self.completion_tokens, other.completion_tokens))

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


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
    Over it can only go what a judge bills beyond what was asked of it, and only for the requests then under way.
    """

    budget: Budget
    prices: Mapping[str, Price]
    by_model: dict[str, Usage] = field(default_factory=dict)
    """Spent or reserved."""

    def allows(self, by_model: Mapping[str, Usage]) -> bool:
        """Whether the budget has so much in all."""
        tokens, dollars = sum(by_model.values(), Usage()).tokens, self.dollars(by_model)
        if self.budget.tokens is not None and tokens > self.budget.tokens:
            return False
        return self.budget.dollars is None or (dollars is not None and dollars <= self.budget.dollars)

    def reserve(self, model: str, usage: Usage) -> bool:
        """Set aside what a request may cost; False if the budget does not have it."""
        after = self.by_model | {model: self.by_model.get(model, Usage()) + usage}
        if not self.allows(after):
            return False
        self.by_model = after
        return True

    def settle(self, model: str, reserved: Usage, used: Usage) -> None:
        """Give back what was set aside, and count what was used."""
        self.by_model[model] += used - reserved

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
        self.by_model[model] = self.by_model.get(model, Usage()) + usage
        self.n_calls += 1
        self.n_cached += cached

    @property
    def total(self) -> Usage:
        return sum(self.by_model.values(), Usage())
