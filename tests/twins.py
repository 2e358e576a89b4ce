"""The built-in architectures written out densely, each loss as its paper has it; autograd does the rest.

Shapes: B tokens, D = d_in, F = d_sae. A twin takes an SAE's parameters by name and returns the loss; the built-in must
have the same loss and the same gradient for every parameter, however its active set is stored.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sae_bench import SparseAutoencoder, Step
from sae_bench.saes.kernels import kernels

LAMBDA = 0.3

Parameters = dict[str, Tensor]
Twin = Callable[[Parameters, Tensor], Tensor]


def step(coefficient: float = LAMBDA, dead: tuple[int, ...] = ()) -> Step:
    return Step(torch.tensor(coefficient, dtype=torch.float64), torch.tensor(dead, dtype=torch.long))


def error(x: Tensor, x_hat: Tensor) -> Tensor:
    return (x - x_hat).pow(2).sum(1).mean()


def layouts() -> dict[str, AbstractContextManager[None]]:
    """The ways in which an active set is stored, by name."""
    return {
        "sparse": kernels("sparse"),
        "dense": kernels("dense"),
        "screened": kernels("sparse", screening="on"),
    }


def assert_twins_agree_on(
    x: Tensor, sae: SparseAutoencoder, twin: Twin, when: Step, untrained: Collection[str] = ()
) -> None:
    parameters = {name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}
    theirs = twin(parameters, x)
    theirs.backward()
    for layout, stored in layouts().items():
        sae.zero_grad()
        with stored:
            ours = sae.loss(x, when).total
        ours.backward()
        torch.testing.assert_close(ours, theirs, msg=f"{layout}: loss")
        for name, value in sae.named_parameters():
            if name in untrained:
                assert value.grad is None, f"{name} has a gradient"
                continue
            expected = parameters[name].grad
            assert expected.abs().max() > 1e-6, f"{name}: the twin's gradient is zero, which shows nothing"
            torch.testing.assert_close(value.grad, expected, msg=f"{layout}: gradient of {name}")


def relu_twin(p: Parameters, x: Tensor) -> Tensor:
    f = torch.relu(x @ p["W_enc"] + p["b_enc"])
    return error(x, f @ p["W_dec"] + p["b_dec"]) + LAMBDA * (f * p["W_dec"].norm(dim=1)).sum(1).mean()


def _gated_latents(p: Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
    """(f, ReLU(pi_gate)); b_enc is b_gate."""
    pi = (x - p["b_dec"]) @ p["W_enc"]
    f = (pi + p["b_enc"] > 0) * torch.relu(p["r_mag"].exp() * pi + p["b_mag"])
    return f, torch.relu(pi + p["b_enc"])


def gated_twin(p: Parameters, x: Tensor) -> Tensor:
    f, gate = _gated_latents(p, x)
    frozen = gate @ p["W_dec"].detach() + p["b_dec"].detach()
    return error(x, f @ p["W_dec"] + p["b_dec"]) + LAMBDA * gate.sum(1).mean() + error(x, frozen)


def gated_ri_l1_twin(p: Parameters, x: Tensor) -> Tensor:
    f, gate = _gated_latents(p, x)
    penalty = (gate * p["W_dec"].norm(dim=1)).sum(1).mean()
    x_hat, x_gate = f @ p["W_dec"] + p["b_dec"], gate @ p["W_dec"] + p["b_dec"]
    return error(x, x_hat) + LAMBDA * penalty + error(x, x_gate)


def _pre_activations(p: Parameters, x: Tensor) -> Tensor:
    return (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]


def topk_twin(p: Parameters, x: Tensor, k: int, dead: tuple[int, ...] = (), k_aux: int = 0) -> Tensor:
    z = _pre_activations(p, x)
    kept = torch.zeros_like(z).scatter(1, z.topk(k).indices, 1.0)
    x_hat = torch.relu(z * kept) @ p["W_dec"] + p["b_dec"]
    return error(x, x_hat) + aux_k_twin(p, x - x_hat, z, dead, k_aux) / 32


def aux_k_twin(
    p: Parameters,
    e: Tensor,
    z: Tensor,
    dead: tuple[int, ...],
    k_aux: int,
    rectify: Callable[[Tensor], Tensor] = torch.relu,
) -> Tensor:
    if not dead:
        return z.new_zeros(())
    z_dead, chosen = z[:, list(dead)].topk(min(k_aux, len(dead)))
    f_dead = torch.zeros_like(z).scatter(1, torch.tensor(dead)[chosen], rectify(z_dead))
    return error(e.detach(), f_dead @ p["W_dec"])


def batchtopk_latents(p: Parameters, x: Tensor, k: float) -> tuple[Tensor, Tensor]:
    """(f, z)."""
    z = _pre_activations(p, x)
    kept = torch.zeros(z.numel(), dtype=z.dtype).scatter(0, z.flatten().topk(int(k * len(x))).indices, 1.0)
    return torch.relu(z * kept.view_as(z)), z


def batchtopk_twin(p: Parameters, x: Tensor, k: float, dead: tuple[int, ...] = (), k_aux: int = 0) -> Tensor:
    f, z = batchtopk_latents(p, x, k)
    x_hat = f @ p["W_dec"] + p["b_dec"]
    return error(x, x_hat) + aux_k_twin(p, x - x_hat, z, dead, k_aux) / 32


def nested(p: Parameters, f: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """The reconstruction from the first latents, for each number of them."""
    return [f[:, :width] @ p["W_dec"][:width] + p["b_dec"] for width in widths]


def matryoshka_twin(
    p: Parameters, x: Tensor, k: float, widths: Sequence[int], dead: tuple[int, ...] = (), k_aux: int = 0
) -> Tensor:
    f, z = batchtopk_latents(p, x, k)
    x_hats = nested(p, f, widths)
    errors = torch.stack([error(x, x_hat) for x_hat in x_hats])
    return errors.mean() + aux_k_twin(p, x - x_hats[-1], z, dead, k_aux) / 32


def p_anneal_twin(p: Parameters, x: Tensor, power: float, coefficient: float = LAMBDA) -> Tensor:
    f = torch.relu(_pre_activations(p, x))
    on = f > 0
    penalty = torch.where(on, f, 1.0).pow(power).mul(on).sum(1).mean()
    return error(x, f @ p["W_dec"] + p["b_dec"]) + coefficient * penalty


def abs_topk_twin(p: Parameters, x: Tensor, k: int, dead: tuple[int, ...] = (), k_aux: int = 0) -> Tensor:
    z = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    x_hat = (z * torch.zeros_like(z).scatter(1, z.abs().topk(k).indices, 1.0)) @ p["W_dec"] + p["b_dec"]
    if not dead:
        return error(x, x_hat)
    z_dead = z[:, list(dead)]
    chosen = z_dead.abs().topk(min(k_aux, len(dead))).indices
    f_dead = torch.zeros_like(z).scatter(1, torch.tensor(dead)[chosen], z_dead.gather(1, chosen))
    return error(x, x_hat) + error((x - x_hat).detach(), f_dead @ p["W_dec"]) / 32


def pursuit_twin(p: Parameters, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(loss, f): every step a whole product, one-hot matrices, and autograd through all of it."""
    r, f = x - p["b_dec"], 0.0
    for _ in range(k):
        z = torch.relu(r @ p["W_dec"].T)
        taken = z * torch.nn.functional.one_hot(z.argmax(1), z.shape[1])
        f, r = f + taken, r - taken @ p["W_dec"]
    return error(x, f @ p["W_dec"] + p["b_dec"]), f


class DenseJump(torch.autograd.Function):
    """(z H(z - theta), H(z - theta)) on a [B, F] matrix of z = ReLU(pre), with the paper's pseudo-derivatives."""

    @staticmethod
    def forward(ctx, z, theta, eps):
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return z * (z > theta), (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx, df, dgate):
        z, theta = ctx.saved_tensors
        window = (((z - theta) / ctx.eps).abs() < 0.5) / ctx.eps
        return df * (z > theta), (-(theta * df + dgate) * window).sum(0), None


def jumprelu_twin(
    eps: float, target: float | None, *, log: bool, per: str = "token"
) -> Callable[[Parameters, Tensor], Tensor]:
    def twin(p: Parameters, x: Tensor) -> Tensor:
        z = torch.relu((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"])
        theta = p["theta_parameter"].exp() if log else p["theta_parameter"]
        f, gate = DenseJump.apply(z, theta, eps)
        l0 = gate.sum(1)  # of each token
        if target is None:
            penalty = l0.mean()
        elif per == "token":
            penalty = ((l0 / target - 1) ** 2).mean()
        else:
            penalty = (l0.mean() / target - 1) ** 2
        return error(x, f @ p["W_dec"] + p["b_dec"]) + LAMBDA * penalty

    return twin


def quadratic_twin(eps: float, target: float, frequency_scale: float | None) -> Twin:
    def twin(p: Parameters, x: Tensor) -> Tensor:
        z = torch.relu((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"])
        f, gate = DenseJump.apply(z, p["theta_parameter"], eps)
        penalty = (2 / target) * ((gate.sum(1) - target) ** 2).mean()
        if frequency_scale is not None:
            frequency = gate.mean(0)
            penalty = penalty + (frequency**2).sum() / frequency_scale * (target / frequency.sum()) ** 2
        return error(x, f @ p["W_dec"] + p["b_dec"]) + LAMBDA * penalty

    return twin


class DenseJumpToBoth(torch.autograd.Function):
    """z H(z - theta) of any z, with the pseudo-derivative for theta, and its negative for z besides H."""

    @staticmethod
    def forward(ctx, z, theta, eps):
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return z * (z > theta)

    @staticmethod
    def backward(ctx, df):
        z, theta = ctx.saved_tensors
        jump = theta / ctx.eps * (((z - theta) / ctx.eps).abs() < 0.5) * df
        return df * (z > theta) + jump, -jump.sum(0), None


def tanh_twin(eps: float, c: float, l_P: float, *, log: bool, dead: tuple[int, ...] | None = None) -> Twin:
    def twin(p: Parameters, x: Tensor) -> Tensor:
        z = x @ p["W_enc"] + p["b_enc"]
        theta = p["theta_parameter"].exp() if log else p["theta_parameter"]
        f, norms = DenseJumpToBoth.apply(z, theta, eps), p["W_dec"].norm(dim=1)
        below = torch.relu(theta - z) * norms
        below = below if dead is None else below[:, list(dead)]
        sparsity = torch.tanh(c * f * norms).sum(1).mean()
        return error(x, f @ p["W_dec"] + p["b_dec"]) + LAMBDA * sparsity + l_P * below.sum(1).mean()

    return twin
