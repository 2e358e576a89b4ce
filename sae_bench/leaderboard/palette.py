"""How an architecture looks, in every figure and in the report: a colour, a marker and a line.

The colours are those of Okabe and Ito, which people with any colour vision tell apart; markers and lines do the same on
paper without colours. The names that most boards have keep theirs from board to board; others take what is left.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Colour (hex), marker and dashes as matplotlib writes them; the report draws the same from `dashes`."""

    colour: str
    marker: str
    dashes: tuple[float, ...]
    """Lengths on and off, in points; none: a solid line."""


LOOKS = (
    Look("#0072B2", "o", ()),
    Look("#D55E00", "s", (6, 2)),
    Look("#009E73", "^", (2, 2)),
    Look("#CC79A7", "D", (6, 2, 1, 2)),
    Look("#E69F00", "v", (9, 3)),
    Look("#56B4E9", "P", (1, 1)),
    Look("#000000", "X", (4, 1, 1, 1, 1, 1)),
    Look("#8A8A00", "<", (3, 4)),
)
KEPT = {"jumprelu": 0, "topk": 1, "gated": 2, "relu": 3}
"""Labels that look the same on every board."""


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label; more labels than looks begin again."""
    found = sorted(set(labels))
    taken = {KEPT[label] for label in found if label in KEPT}
    free = [i for i in range(len(LOOKS)) if i not in taken] or list(range(len(LOOKS)))
    others = (label for label in found if label not in KEPT)
    places = {label: KEPT[label] for label in found if label in KEPT}
    places |= {label: free[i % len(free)] for i, label in enumerate(others)}
    return {label: LOOKS[places[label]] for label in found}
