"""The hierarchy of a world's features: a child fires with its parent alone, and of siblings one at a time.

Features are numbered breadth first, so that the children of one feature, and the features of one level, are in a row.

Shapes: n samples, N features; of a level: G groups of siblings, C siblings in each.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.synthetic.settings import WorldSettings


@dataclass(frozen=True)
class Level:
    """The features of one level: the groups of siblings, from `first` to `end`, and the parent of each group.

    The last group may have fewer siblings: where there are no features left.
    """

    first: int
    end: int
    parents: Int[Tensor, " G"]
    size: int

    @property
    def parent(self) -> Int[Tensor, " n"]:
        """The parent of every feature."""
        return self.parents.repeat_interleave(self.size)[: self.end - self.first]


def levels_of(settings: WorldSettings, device: torch.device | str = "cpu") -> list[Level]:
    """The levels below the roots, as far as there are features."""
    levels, above, n = [], range(min(settings.n_roots, settings.n_features)), settings.n_features
    for _ in range(settings.depth):
        first = above.stop
        end = min(n, first + len(above) * settings.n_children)
        if end == first:
            break
        n_groups = -(-(end - first) // settings.n_children)
        parents = torch.arange(above.start, above.start + n_groups, device=device)
        levels.append(Level(first, end, parents, settings.n_children))
        above = range(first, end)
    return levels


def compensated(p: Float[Tensor, " N"], levels: list[Level], *, exclusive: bool) -> Float[Tensor, " N"]:
    """Probabilities to draw with, so that after the hierarchy features fire about as often as `p` says.

    p_i / p_parent, and with exclusive siblings times 1 + (sum of the siblings' p) / p_parent; at most 1.
    """
    found = p.clone()
    for level in levels:
        own, parent = p[level.first : level.end], p[level.parent]
        found[level.first : level.end] = own / parent
        if exclusive:
            group = torch.arange(level.end - level.first, device=p.device) // level.size
            total = torch.zeros(len(level.parents), device=p.device, dtype=p.dtype).index_add_(0, group, own)
            found[level.first : level.end] *= 1 + (total[group] - own).clamp(min=0) / parent
    return found.clamp(max=1)


def applied(
    a: Float[Tensor, "n N"],
    levels: list[Level],
    mean: Float[Tensor, " N"],
    lots: Float[Tensor, "n N"],
    *,
    exclusive: bool,
    scaled: bool,
) -> Float[Tensor, "n N"]:
    """Activations, changed in place, after the hierarchy, level by level from the roots.

    What is below an inactive feature is zero; else, where `scaled`, multiplied by the parent's activation over its
    `mean`. Of active siblings the one with the largest of `lots` stays, random numbers from 0 to 1.
    """
    for level in levels:
        parent, own = a[:, level.parent], a[:, level.first : level.end]
        own.mul_(parent / mean[level.parent] if scaled else (parent > 0).to(a.dtype))
        if exclusive:
            lot = torch.where(own > 0, lots[:, level.first : level.end], -1.0)
            missing = len(level.parents) * level.size - lot.shape[1]
            groups = torch.nn.functional.pad(lot, (0, missing), value=-1.0).unflatten(1, (-1, level.size))
            wins = torch.zeros_like(groups).scatter_(2, groups.argmax(2, keepdim=True), 1.0)
            own.mul_(wins.flatten(1)[:, : lot.shape[1]])
    return a
