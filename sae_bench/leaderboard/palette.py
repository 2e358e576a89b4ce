"""How an architecture looks, in every figure and in the report: a colour, a marker and a line.

The colours are those of Okabe and Ito, which people with any colour vision tell apart; markers and lines do the same on
paper without colours. The names that most boards have keep theirs from board to board; others take what is left.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count


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
    """A look for each label, in the order of their names where they are not `KEPT`."""
    found = sorted(set(labels))
    taken = {KEPT[label] for label in found if label in KEPT}
    free = (_look(i) for i in count() if i not in taken)
    return {label: LOOKS[KEPT[label]] if label in KEPT else next(free) for label in found}


def _look(i: int) -> Look:
    """Look number i: after the first ones come their colours with other markers and lines, alike only 64 later."""
    others = LOOKS[(i + i // len(LOOKS)) % len(LOOKS)]
    return replace(others, colour=LOOKS[i % len(LOOKS)].colour)
