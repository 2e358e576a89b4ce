"""What tuning may change of an architecture: settings by name, each with the range that it is looked for in."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Knob:
    """A number from `low` to `high`; by default its logarithm is spread evenly over the range."""

    low: float
    high: float
    log: bool = True
    relative: bool = False
    """Whether low and high are multiples of what the preset has, which an option may change by orders of magnitude."""

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self}: give a low end below the high one, above 0 where log is not False")

    def of(self, preset: float) -> "Knob":
        """The range itself, where the preset has this value."""
        return Knob(self.low * preset, self.high * preset, self.log) if self.relative else self

    def at(self, share: float) -> float:
        """The value at a share of the way, 0 to 1, in three digits, as a recipe writes it."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return min(max(float(f"{value:.3g}"), self.low), self.high)


LR = Knob(1e-3, 3.2e-2)
"""The learning rate of the preset `short`: of every architecture, from four times less than all of them need on data of
norm one to where most no longer train."""

MOST = 3
"""Knobs of its own that an architecture may have: more would be looked for less well in as many trials."""
