"""How an architecture looks, in every figure and in the report: a colour, a marker and a line.

The colours are those of Okabe and Ito, which people with any colour vision tell apart, olive for their yellow, which is
too light on white. There are more architectures than colours, so markers and lines tell apart what a colour cannot, and
all of them on paper without colours. The names that most boards have look alike on every board; the variants of one
have its colour, with markers and lines of their own; controls are grey and dotted; others take what is left.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace


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
KEPT = {
    "jumprelu": LOOKS[0],
    "topk": LOOKS[1],
    "gated": LOOKS[2],
    "relu": LOOKS[3],
    "batchtopk": LOOKS[4],
    "matryoshka": LOOKS[5],
    "p_anneal": LOOKS[6],
    "matching_pursuit": LOOKS[7],
    "abs_topk": Look("#D55E00", ">", (1, 2)),
}
"""Labels that look the same on every board."""

GREYS = ("#6E6E6E", "#9A9A9A")
DOTS = (1.0, 3.0)
MORE_DOTS = (DOTS, (1.0, 5.0), (2.0, 5.0))
KEPT_CONTROLS = {name: Look(GREYS[i % 2], marker, DOTS) for i, (name, marker) in enumerate(
    {"random": "X", "pca": "s", "frozen_decoder": "v", "frozen_encoder": "^", "permuted": "D"}.items()
)}  # fmt: skip
"""Controls that look the same on every board."""


def looks(labels: Iterable[str], controls: Collection[str] = ()) -> dict[str, Look]:
    """A look for each label, no two alike: by its name, its architecture's, or what is left; `controls` are grey."""
    found: dict[str, Look] = {}
    for label in sorted(set(labels), key=lambda label: (label not in {*KEPT, *KEPT_CONTROLS}, ":" in label, label)):
        wanted = _wanted(label, label in controls)
        taken = {(look.marker, look.dashes) for look in found.values()}
        found[label] = next((look for look in wanted if (look.marker, look.dashes) not in taken), wanted[-1])
    return {label: found[label] for label in sorted(found, key=lambda label: (label in controls, label))}


def _wanted(label: str, control: bool) -> list[Look]:
    """The looks that a label may have, the best first."""
    if control:
        kept = [KEPT_CONTROLS[label]] if label in KEPT_CONTROLS else []
        return [*kept, *(Look(GREYS[i % 2], _look(i).marker, dots) for dots in MORE_DOTS for i in range(len(LOOKS)))]
    base = KEPT.get(label.partition(":")[0])
    if base is None:
        return [_look(i) for i in range(len(LOOKS) ** 2)]
    return [base, *(replace(_look(i), colour=base.colour) for i in range(len(LOOKS), len(LOOKS) ** 2))]


def _look(i: int) -> Look:
    """Look number i: after the first ones come their colours, with markers and lines that are in no other look."""
    n = len(LOOKS)
    marker, line = LOOKS[(i + i // n) % n], LOOKS[(i + 2 * (i // n)) % n]
    return Look(LOOKS[i % n].colour, marker.marker, line.dashes)
