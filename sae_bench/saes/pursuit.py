"""Matching pursuit (Mallat and Zhang 1993): a token as a sum of atoms, chosen one after the other.

    r = x, and k times:  j = argmax_i r . d_i,  v = ReLU(r . d_j),  r = r - v d_j

Which atom is next depends on all before it, so the dense way is k encoder products. Of the inner products that decide,
a step changes only those with the atom that was taken: r . d_i falls by v d_j . d_i. So where all d_j . d_i fit into
memory and are fewer than the products that they save, x . d_i is worked out once and rows of that Gram matrix are
subtracted ("batch OMP", Rubinstein et al. 2008); a step then is one pass over a matrix in the cache. Elsewhere it is k
products, screened if `kernels` says so. Either way v is the inner product with the residual itself, in full precision.

The choice of atoms has no gradient; their values have one, through the whole recurrence:

    g = 0, and for the steps backwards:  a = dL/dv - g . d_j where v > 0, else 0;  dL/dd_j += a r - v g;  g += a d_j

after which dL/dx = g. Memory is a few matrices as large as x, however many steps there are.

Shapes: B tokens, D = d_in, F = d_sae, k steps.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.saes.active import Active, select, summed
from sae_bench.saes.chunks import chunk_size, slices
from sae_bench.saes.rules import Largest

GRAM_BYTES = 1 << 30
"""What the atoms' inner products with each other may take."""

CACHED = 1 << 23
"""Bytes of inner products that are worked on at once on a CPU: they stay in its cache from step to step."""

GROUP = 64
"""Atoms whose largest inner product is found at once: a CPU finds a value six times as fast as where it stands."""


def pursue(
    x: Float[Tensor, "B D"], atoms: Float[Tensor, "F D"], k: int, least: float = 0.0, *, stop_at_repeat: bool = False
) -> Active:
    """f of x = sum_j f_j d_j + r, with gradients to x and to the atoms; an atom that is taken twice adds up.

    A token stops early where ||r|| < `least`, or with `stop_at_repeat` where a step adds no further atom.
    """
    steps = Steps(k, least, stop_at_repeat)
    taken, values = _Pursuit.apply(x, atoms, steps)  # type: ignore[no-untyped-call]
    return summed(taken, values, len(atoms))


class Steps:
    """How many steps there are, and where a token stops."""

    def __init__(self, k: int, least: float, stop_at_repeat: bool) -> None:
        self.k, self.least, self.stop_at_repeat = k, least, stop_at_repeat

    def run(self, r: Float[Tensor, "b D"], atoms: Float[Tensor, "F D"], chooser: "Chooser") -> tuple[Tensor, Tensor]:
        """The atoms that are taken and their values, both [b, k]; r becomes what is left."""
        taken = torch.zeros(len(r), self.k, dtype=torch.long, device=r.device)
        values = r.new_zeros(len(r), self.k)
        going = torch.ones(len(r), dtype=torch.bool, device=r.device)
        for step in range(self.k):
            atom = chooser.best(r)
            rows = atoms.index_select(0, atom)
            value = torch.linalg.vecdot(r, rows).relu_().mul_(going)
            r.addcmul_(rows, value[:, None], value=-1.0)
            chooser.took(atom, value)
            if self.stop_at_repeat:
                before = (taken[:, :step] == atom[:, None]) & (values[:, :step] > 0)
                going &= ~before.any(1) & (value > 0)
            if self.least > 0:
                going &= torch.linalg.vector_norm(r, dim=1) >= self.least
            taken[:, step], values[:, step] = atom, value
        return taken, values


class Chooser:
    """Finds the best atom by a whole product each time."""

    def __init__(self, atoms: Float[Tensor, "F D"]) -> None:
        self.atoms, self.zeros = atoms, atoms.new_zeros(len(atoms))

    def best(self, r: Float[Tensor, "b D"]) -> Int[Tensor, " b"]:
        latent: Tensor = select(r, self.atoms.T, self.zeros, Largest(1)).pairs()[1]
        return latent

    def took(self, atom: Int[Tensor, " b"], value: Float[Tensor, " b"]) -> None:
        """Nothing is kept."""


class GramChooser(Chooser):
    """Keeps all inner products with what is left, by the atoms' with each other."""

    def __init__(self, z: Float[Tensor, "b F"], gram: Float[Tensor, "F F"]) -> None:
        self.z, self.gram = z, gram

    def best(self, r: Float[Tensor, "b D"]) -> Int[Tensor, " b"]:
        n = self.z.shape[1]
        if n % GROUP:
            return self.z.argmax(1)
        grouped = self.z.unflatten(1, (n // GROUP, GROUP))
        group = grouped.amax(2).argmax(1)
        best: Tensor = group * GROUP + grouped[torch.arange(len(group), device=group.device), group].argmax(1)
        return best

    def took(self, atom: Int[Tensor, " b"], value: Float[Tensor, " b"]) -> None:
        self.z.addcmul_(self.gram.index_select(0, atom), value[:, None], value=-1.0)


def pays(n_tokens: int, n_atoms: int, k: int, itemsize: int) -> bool:
    """Whether the Gram matrix fits, and is less work than the products with k residuals of every token."""
    return n_atoms**2 * itemsize <= GRAM_BYTES and n_atoms < k * n_tokens


class _Pursuit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, atoms: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        r = x.clone()
        if pays(len(x), len(atoms), steps.k, atoms.element_size()):
            gram = atoms @ atoms.T
            row = len(atoms) * atoms.element_size()
            size = max(1, CACHED // row) if x.device.type == "cpu" else chunk_size(len(atoms), x.device)
            parts = [steps.run(r[t], atoms, GramChooser(r[t] @ atoms.T, gram)) for t in slices(len(x), size)]
            taken, values = map(torch.cat, zip(*parts, strict=True))
        else:
            taken, values = steps.run(r, atoms, Chooser(atoms))
        ctx.save_for_backward(atoms, taken, values, r)
        ctx.mark_non_differentiable(taken)
        return taken, values

    @staticmethod
    def backward(ctx: Any, _: Any, of_values: Tensor) -> tuple[Tensor, Tensor, None]:
        atoms, taken, values, left = ctx.saved_tensors
        r, g, of_atoms = left.clone(), torch.zeros_like(left), torch.zeros_like(atoms)
        for step in reversed(range(taken.shape[1])):
            atom, v = taken[:, step], values[:, step, None]
            rows = atoms.index_select(0, atom)
            a = (of_values[:, step] - torch.linalg.vecdot(g, rows)).mul_(v[:, 0] > 0)[:, None]
            r.addcmul_(rows, v)  # what was left before the step
            of_atoms.index_add_(0, atom, a * r - v * g)
            g.addcmul_(rows, a)
        return g, of_atoms, None
