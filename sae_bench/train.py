"""The one training loop: for every batch of the stream, one step of every SAE.

Nothing in it waits for the device but the log: learning rate and warm-ups are functions of the step's number, L0 and
the coefficient controller stay on the device, `books` are read a few steps late. On a GPU there is room for a stated
number of active pairs, half as many again as were last seen; a step that needed more, or whose loss is not finite,
leaves the weights as they are.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sae_bench.activations import ActivationStream
from sae_bench.active import Kernels, Room, kernels
from sae_bench.books import Books, room_for
from sae_bench.config import Recipe
from sae_bench.log_sinks import LogSink
from sae_bench.patterns import Dense
from sae_bench.progress import Progress
from sae_bench.sae import Latents, Loss, SparseAutoencoder, Step, active_per_token, count_per_latent, upper_quantile
from sae_bench.schedules import CoefficientController, lr_factor, sparsity_factor
from sae_bench.sites import Site

N_LOGGED = 100
"""Logging steps of a run."""

INIT_SAMPLE = 8192
"""Activations that data-dependent initial values are taken from."""

ROOM_SAMPLE = 512
"""Activations that the first room for active pairs is measured on."""


@dataclass
class Trainee:
    """An SAE in training, with everything that is its own: optimiser, coefficient, dead counters, log."""

    id: str
    sae: SparseAutoencoder
    site: Site
    seed: int
    recipe: Recipe
    log: list[dict[str, float]] = field(default_factory=list)
    kernels: Kernels = "auto"
    dense_above: float | None = None
    """Share of active pairs above which "auto" uses dense products; None: a typical one."""
    compile: bool = False
    """Whether torch.compile fuses the elementwise part of the loss."""
    seconds: float = 0.0

    def start(self, stream: ActivationStream) -> None:
        """Move to the device, take initial values from the data, make the optimiser."""
        sae, recipe, device = self.sae, self.recipe, stream.lm.device
        sae.to(device)
        self.n_steps, self.batch_size = stream.n_steps, stream.batch_size
        with torch.no_grad():
            sample = stream.sample(self.site, INIT_SAMPLE)
            if recipe.b_dec_init == "mean":
                sae.b_dec.copy_(stream.mean[self.site])
            elif recipe.b_dec_init == "geometric_median":
                sae.b_dec.copy_(geometric_median(sample))
            sae.initialise(sample)
            if recipe.b_enc_init == "quantile":
                sae.b_enc.sub_(upper_quantile(sample - sae.b_dec, sae.W_enc, sae.starting_density))
        self.optimiser = torch.optim.Adam(
            [
                {"params": [p for p in sae.parameters() if p.ndim > 1], "factor": 1.0},
                {"params": [p for p in sae.parameters() if p.ndim <= 1], "factor": recipe.bias_lr},
            ],
            lr=recipe.lr,
            betas=recipe.betas,
            eps=recipe.adam_eps,
            fused=True,
        )
        self._controller = self._coefficient_control(device)
        self._loss = torch.compile(sae.loss, dynamic=True) if self.compile else sae.loss
        total = self.n_steps * self.batch_size
        dead_after = recipe.dead_after * total if recipe.dead_after < 1 else recipe.dead_after
        room = self._first_room(sample[:ROOM_SAMPLE]) if waiting_costs(device) else None
        self.books = Books(sae.config.d_sae, dead_after, device, room)

    @torch.no_grad()
    def _first_room(self, sample: Float[Tensor, "B D"]) -> Room:
        """Room for the active pairs of the first steps, from how many a sample has."""
        device = sample.device
        room = Room(1.0, torch.zeros((), device=device), torch.zeros((), dtype=torch.bool, device=device))
        none_dead = torch.empty(0, dtype=torch.long, device=device)
        with kernels("dense", room=room):
            self.sae.loss(sample, Step(self._coefficient(0, device), none_dead))
        room.share = room_for(float(room.most))
        return room

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
        """One optimiser step on a batch of scaled activations."""
        started = time.perf_counter()
        sae, recipe = self.sae, self.recipe
        lr = recipe.lr * lr_factor(
            step, self.n_steps, warmup=recipe.lr_warmup, shape=recipe.lr_warmup_shape, decay=recipe.lr_decay
        )
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        at = Step(self._coefficient(step, x.device), self.books.dead)
        half = torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda" and sae.autocast)
        with half, kernels(self.kernels, self.dense_above, self.books.room):
            loss = self._loss(x, at)
        self.optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        if sae.unit_norm_decoder:
            sae.project_gradient()
        if recipe.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(sae.parameters(), recipe.grad_clip / sae.config.d_in)
        # The fused optimiser looks at this before it moves a weight; loss scaling uses it in the same way.
        self.optimiser.found_inf = (~self.books.usable(loss.total, step)).float()  # type: ignore[attr-defined]
        self.optimiser.step()
        with torch.no_grad():
            if sae.unit_norm_decoder:
                sae.renormalise()
            sae.after_step(at)
        if self._controller is not None:
            self._controller.update(step, _mean_l0(loss))
        self.books.note(count_per_latent(loss.latents)[0] > 0, self.batch_size, step)
        if logged:
            self._log(loss, x, step, lr)
        self.seconds += time.perf_counter() - started

    @property
    def failure(self) -> str | None:
        """Why the training failed, as far as the books are read; None if it did not."""
        at = self.books.diverged_at
        return None if at is None else f"diverged: the loss at step {at} is not finite"

    def _coefficient(self, step: int, device: torch.device) -> Float[Tensor, ""]:
        config, recipe = self.sae.config, self.recipe
        warm = sparsity_factor(step, self.n_steps, recipe.sparsity_warmup)
        if self._controller is not None:
            return self._controller.coefficient * warm
        fixed = recipe.l0_penalty if config.l0 is not None else config.sparsity
        return torch.full((), fixed * warm, device=device)  # a copy from the host would wait

    @torch.no_grad()
    def _log(self, loss: Loss, x: Float[Tensor, "B D"], step: int, lr: float) -> None:
        error, variance = (x - loss.x_hat).square().sum(), (x - x.mean(0)).square().sum()
        values = {
            "loss": loss.total,
            **{f"loss/{name}": term for name, term in loss.terms.items()},
            "l0": _mean_l0(loss),
            "fve": 1 - error / variance,
            "coefficient": self._coefficient(step, x.device),
        }
        row = {
            "step": step,
            "tokens": (step + 1) * self.batch_size,
            "lr": lr,
            "dead_share": len(self.books.dead) / self.sae.config.d_sae,
            "dense_products": float(is_dense(loss.latents)),
        }
        row |= {name: float(value) for name, value in values.items()}
        self.log.append(row)

    def finish(self, scale: float) -> None:
        """After the last step: read the books to the end, and fold the input scale in."""
        self.books.close()
        self.sae.requires_grad_(False)
        self.sae.fold(scale)


def train(
    trainees: Sequence[Trainee], stream: ActivationStream, progress: Progress, sink: LogSink = lambda sae_id, row: None
) -> None:
    """Train every SAE on the stream, which has been started, then fold each one's input scale into it.

    Every row of a training log also goes to `sink`.
    """
    for trainee in trainees:
        trainee.start(stream)
    every = max(1, stream.n_steps // N_LOGGED)
    for step, batch in enumerate(progress.track("train", stream.batches(), stream.n_steps)):
        logged = step % every == 0 or step == stream.n_steps - 1
        alive = [trainee for trainee in trainees if trainee.failure is None]
        for trainee in alive:
            trainee.step(batch[trainee.site, trainee.seed], step, logged=logged)
            if logged:
                sink(trainee.id, trainee.log[-1])
        if logged and alive:
            progress.note = _summary(alive)
    for trainee in trainees:
        trainee.finish(stream.scale[trainee.site])


def _summary(trainees: Sequence[Trainee]) -> str:
    rows = [trainee.log[-1] for trainee in trainees]
    fve = [row["fve"] for row in rows]
    l0 = [row["l0"] for row in rows]
    return f"fve {min(fve):.3f}..{max(fve):.3f}  l0 {min(l0):.0f}..{max(l0):.0f}"


def _mean_l0(loss: Loss) -> Float[Tensor, ""]:
    return active_per_token(loss.latents).float().mean()


def is_dense(f: Latents) -> bool:
    """Whether dense products work on these latents."""
    return isinstance(f, Tensor) or isinstance(f.pattern, Dense)


def waiting_costs(device: torch.device) -> bool:
    """Whether the host runs ahead of the device, so that asking it for a number stops both."""
    return device.type == "cuda"


def geometric_median(x: Float[Tensor, "B D"], rounds: int = 100) -> Float[Tensor, "D"]:
    """The point with the least summed distance to all tokens, by Weiszfeld's iteration."""
    median = x.mean(0)
    for _ in range(rounds):
        weight = 1 / torch.linalg.vector_norm(x - median, dim=1).clamp(min=1e-12)
        median = weight @ x / weight.sum()
    return median
