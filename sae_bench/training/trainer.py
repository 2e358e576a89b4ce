"""One SAE in training: its optimiser, coefficient, dead counters, log, and one step of them.

A step waits for the device only to know which pairs are active: learning rate and warm-ups are functions of the step's
number, L0 and the coefficient controller stay on the device, `stats` are read a few steps late. A step whose loss or
gradient is not finite leaves the weights as they are, and so does every later one.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.device import halved
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.kernels import Crossovers, Kernels, Screening, kernels
from sae_bench.saes.step import Loss, Step
from sae_bench.training.batch_loss import BatchLoss
from sae_bench.training.device_stats import DeviceStats
from sae_bench.training.initial_values import initialise
from sae_bench.training.optimiser import adam, descend, set_lr, tidy
from sae_bench.training.recipe import Recipe
from sae_bench.training.schedules import CoefficientController, lr_factor, sparsity_factor
from sae_bench.training.serving import Key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepSettings:
    """What the steps of one training have in common."""

    n_steps: int
    batch_size: int
    device: torch.device
    kernels: Kernels = "auto"
    crossovers: Crossovers | None = None
    """Where "auto" goes from one way of computing to another; None: typical ones."""
    compile: bool = False
    """Whether torch.compile fuses the elementwise part of the loss."""
    screening: Screening = "auto"


class SAETrainer:
    """An SAE in training, with everything that is its own: optimiser, coefficient, dead latents, log.

    It is served the batches of `key`. To make one moves the SAE to the device. With `state` it goes on where that
    `state_dict` was taken.
    """

    def __init__(
        self,
        id: str,
        sae: SparseAutoencoder,
        key: Key,
        recipe: Recipe,
        settings: StepSettings,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        device, self.n_steps, self.batch_size = settings.device, settings.n_steps, settings.batch_size
        self.id, self.sae, self.key, self.recipe = id, sae.to(device), key, recipe
        self.kernels, self.screening, self.crossovers = settings.kernels, settings.screening, settings.crossovers
        self.log: list[dict[str, float]] = []
        self.seconds = 0.0
        self.micro_batch: int | None = None
        """Tokens whose gradients are computed at once, where memory does not suffice for a batch."""
        self.error: str | None = None
        """The exception that ended the training."""
        self.error_step: int | None = None
        self.optimiser = adam(sae, recipe)
        self._controller = self._coefficient_control(device)
        self._loss = torch.compile(sae.loss, dynamic=True) if settings.compile else sae.loss
        total = self.n_steps * self.batch_size
        dead_after = recipe.dead_after * total if recipe.dead_after < 1 else recipe.dead_after
        self.stats = DeviceStats(sae.config.d_sae, dead_after, device)
        if state is not None:
            self._restore(state)

    def initialise(self, mean: Float[Tensor, " D"], sample: Float[Tensor, "B D"]) -> None:
        """Take initial values from the data; before the first step."""
        initialise(self.sae, self.recipe, mean, sample)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, for a checkpoint."""
        moments = self.optimiser.state_dict()["state"]
        return {
            "sae": self.sae.state_dict(),
            "adam": {str(i): values for i, values in moments.items()},
            "controller": self._controller.state_dict() if self._controller else {},
            "books": self.stats.state_dict(),
            "log": json.dumps(self.log),  # as text, for a loss may be infinite
            "crossovers": self.crossovers and self.crossovers._asdict(),
            "seconds": self.seconds,
            "micro_batch": self.micro_batch,
            "error": self.error,
            "error_step": self.error_step,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.sae.load_state_dict(state["sae"])
        adam = self.optimiser.state_dict()
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        adam["state"] = {
            int(i): {name: _laid_out_like(parameters[int(i)], value) for name, value in values.items()}
            for i, values in state["adam"].items()
        }
        self.optimiser.load_state_dict(adam)
        if self._controller:
            self._controller.load_state_dict(state["controller"])
        self.stats.load_state_dict(state["books"])
        self.log = json.loads(state["log"])
        self.crossovers, self.seconds = state["crossovers"] and Crossovers(**state["crossovers"]), state["seconds"]
        self.micro_batch, self.error, self.error_step = state["micro_batch"], state["error"], state["error_step"]

    def _coefficient_control(self, device: torch.device) -> CoefficientController | None:
        if self.sae.control != "coefficient" or self.sae.config.l0 is None:
            return None
        recipe = self.recipe
        return CoefficientController(
            self.sae.config.l0,
            start=recipe.controller_start,
            rate=recipe.controller_rate,
            until=recipe.controller_until,
            n_steps=self.n_steps,
            device=device,
        )

    def step(self, x: Float[Tensor, "B D"], step: int, *, logged: bool) -> None:
        """One optimiser step on a batch of scaled activations; none of an SAE that is not trained."""
        if not self.sae.is_trained:
            return
        started = time.perf_counter()
        seed_random_numbers(self.id, step)
        sae, recipe = self.sae, self.recipe
        lr = recipe.lr * lr_factor(
            step, self.n_steps, warmup=recipe.lr_warmup, shape=recipe.lr_warmup_shape, decay=recipe.lr_decay
        )
        set_lr(self.optimiser, lr)
        at = Step(self._coefficient(step, x.device), self.stats.dead, number=step, n_steps=self.n_steps)
        loss = self._loss_with_gradients(x, at)
        norm, factor = tidy(self.optimiser, sae, recipe.grad_clip)
        usable = self.stats.usable(_check_sum(loss, sae, norm), step)
        descend(self.optimiser, sae, factor, usable)
        with torch.no_grad():
            sae.after_step(replace(at, seen=loss.seen))
        if self._controller is not None:
            self._controller.update(step, loss.l0)
        self.stats.note(loss.counts > 0, self.batch_size, step)
        if logged:
            self._log(loss, x, at, step, lr)
        self.seconds += time.perf_counter() - started

    def fail(self, error: Exception, step: int) -> None:
        """An exception ends this SAE's training, and nothing else."""
        log.error("%s failed at step %d", self.id, step, exc_info=error)
        self.error, self.error_step = f"{type(error).__name__} at step {step}: {error}", step

    def _loss_with_gradients(self, x: Float[Tensor, "B D"], at: Step) -> BatchLoss:
        """The batch's loss, its gradients in the parameters; in micro-batches where memory demands it."""
        while True:
            try:
                self.optimiser.zero_grad(set_to_none=True)
                parts = x.split(self.micro_batch or len(x))
                told = [replace(at, survey=found) for found in self._survey(parts)]
                return BatchLoss.joined(
                    [self._part(part, one, len(part) / len(x)) for part, one in zip(parts, told, strict=True)]
                )
            except torch.OutOfMemoryError:
                self.micro_batch = halved(self.micro_batch or len(x), f"tokens in a step of {self.id}")

    def _part(self, x: Float[Tensor, "b D"], at: Step, share: float) -> BatchLoss:
        with self._kernels():
            loss: Loss = self._loss(x, at)
        (loss.total if share == 1 else loss.total * share).backward()
        return BatchLoss.of(loss)

    @torch.no_grad()
    def _survey(self, parts: Sequence[Tensor]) -> Sequence[Any]:
        """What the SAE wants to know of a batch that is in parts, each [b, D], for each of them."""
        with self._kernels():
            found = self.sae.survey(parts) if len(parts) > 1 else None
        return [None] * len(parts) if found is None else found

    def _kernels(self) -> AbstractContextManager[None]:
        return kernels(self.kernels, self.crossovers, self.screening)

    @property
    def failed_at(self) -> int | None:
        """The step that failed."""
        return self.error_step if self.error is not None else self.stats.diverged_at

    @property
    def failure(self) -> str | None:
        """Why the training failed, as far as the statistics are read; None if it did not."""
        if self.error is not None:
            return self.error
        at = self.stats.diverged_at
        return None if at is None else f"diverged: the loss at step {at} is not finite"

    def _coefficient(self, step: int, device: torch.device) -> Float[Tensor, ""]:
        config, recipe = self.sae.config, self.recipe
        warm = sparsity_factor(step, self.n_steps, recipe.sparsity_warmup)
        if self._controller is not None:
            return self._controller.coefficient * warm
        fixed = recipe.l0_penalty if config.l0 is not None else config.sparsity
        return torch.full((), fixed * warm, device=device)  # a copy from the host would wait

    @torch.no_grad()
    def _log(self, loss: BatchLoss, x: Float[Tensor, "B D"], at: Step, step: int, lr: float) -> None:
        error, variance = (x - loss.x_hat).square().sum(), (x - x.mean(0)).square().sum()
        row = {
            "step": step,
            "tokens": (step + 1) * self.batch_size,
            "lr": lr,
            "dead_share": len(self.stats.dead) / self.sae.config.d_sae,
            "dense_products": float(loss.dense),
            "loss": float(loss.total),
            **{f"loss/{name}": float(term) for name, term in loss.terms.items()},
            "l0": float(loss.l0),
            "fve": float(1 - error / variance),
            "coefficient": float(at.coefficient),
        }
        self.log.append(row)

    def finish(self, scale: float) -> None:
        """After the last step: read the statistics to the end, let the SAE do what it has left, fold the scale in."""
        self.stats.close()
        self.sae.requires_grad_(False)
        self.sae.after_training()
        self.sae.fold(scale)


def seed_random_numbers(sae_id: str, step: int) -> None:
    """Set torch's global generators as a step of this SAE has them, -1 being what comes before the first.

    Built-ins do not draw from them, a plugin may: what it draws is then the same whoever is trained beside it, and
    after a checkpoint.
    """
    seed = int.from_bytes(hashlib.sha256(f"{sae_id} {step}".encode()).digest()[:8], "big")
    torch.default_generator.manual_seed(seed)  # a fortieth of the time of torch.manual_seed, which asks every backend
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _check_sum(loss: BatchLoss, sae: SparseAutoencoder, norm: Float[Tensor, ""] | None) -> Float[Tensor, ""]:
    """A number that is not finite if the loss, a gradient or the gradient's norm is not.

    Gradients of the biases stand for the matrices': a latent's column of W_enc gets its gradient through the
    pre-activation, which b_enc shares, a row of W_dec from latents and errors, which the loss shares.
    """
    of_biases = [p.grad.sum() for p in sae.parameters() if p.ndim == 1 and p.grad is not None]
    return torch.stack([loss.total, *of_biases, *([] if norm is None else [norm])]).sum()


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment with the strides of its parameter: the fused optimiser walks both in the order of memory."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
