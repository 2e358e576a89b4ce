"""Who sees what, and in which order: a design in which every rater sees every SAE equally often.

Each latent is seen by `overlap` raters, for agreement. They are chosen so that the number of an SAE's latents differs
by one at most between raters, and pairs of raters share about equally many. Each rater's items come in blocks with one
item of every SAE in random order (randomised complete blocks): practice and fatigue fall on all SAEs alike, and a rater
who stops early has seen all of them. Some items come back, at least half of the rater's items later.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, zip_longest
from random import Random

from sae_bench.errors import UserError
from sae_bench.study.schema import Key, Settings


def plan(by_sae: Sequence[Sequence[str]], settings: Settings) -> list[list[Key]]:
    """For each rater the showings, item and 0 or 1, in their order, of the items of some SAEs.

    Raises:
        UserError: `overlap` is more than there are raters, or `repeats` more than half of a rater's items.
    """
    if settings.overlap > settings.n_raters:
        raise UserError(
            f"--overlap {settings.overlap} is more than the {settings.n_raters} raters, and each sees a latent once: "
            "give fewer, or more --raters"
        )
    draw = Random(f"{settings.seed} plan")
    shares = _shares(by_sae, settings, draw)
    return [_ordered(share, settings.repeats, draw) for share in shares]


def _shares(by_sae: Sequence[Sequence[str]], settings: Settings, draw: Random) -> list[list[list[str]]]:
    """For each rater the items of each SAE."""
    raters = range(settings.n_raters)
    shares: list[list[list[str]]] = [[[] for _ in by_sae] for _ in raters]
    load: Counter[int] = Counter()
    shared: Counter[tuple[int, int]] = Counter()
    for sae, items in enumerate(by_sae):
        for item in draw.sample(items, len(items)):
            chosen: list[int] = []
            for _ in range(settings.overlap):
                pairs = {rater: sum(shared[_pair(rater, other)] for other in chosen) for rater in raters}
                rest = [rater for rater in draw.sample(raters, len(raters)) if rater not in chosen]
                chosen.append(min(rest, key=lambda r: (len(shares[r][sae]), load[r], pairs[r])))
            for rater in chosen:
                shares[rater][sae].append(item)
            load.update(chosen)
            shared.update(_pair(*two) for two in combinations(chosen, 2))
    return shares


def _pair(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)


def _ordered(share: Sequence[Sequence[str]], repeats: int, draw: Random) -> list[Key]:
    """A rater's items in blocks, and those that come back."""
    order: list[str] = []
    for block in zip_longest(*share):
        members = [item for item in block if item is not None]
        order += draw.sample(members, len(members))
    half = len(order) // 2
    if repeats > half:
        raise UserError(
            f"--repeats {repeats} is more than half of the {len(order)} latents of a rater: give at most {half}"
        )
    early = set(order[:half])
    again = [[item for item in items if item in early] for items in draw.sample(share, len(share))]
    turns = [item for turn in zip_longest(*again) for item in turn if item is not None][:repeats]
    places = [(float(place), item, 0) for place, item in enumerate(order)]
    places += [(draw.randint(order.index(item) + half, len(order)) - 0.5, item, 1) for item in turns]
    return [(item, showing) for _, item, showing in sorted(places)]
