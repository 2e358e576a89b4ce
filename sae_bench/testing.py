"""The contract of plugins: what every architecture and every task must satisfy, built-in or not.

    from sae_bench.testing import check_architecture, check_task
    check_architecture("jumprelu", theta_init="quantile")    # in a test of your plugin, once it is registered
    check_task("feature_density")

Both run in a second on small random data and raise AssertionError, saying what is broken and what to do about it.

Shapes: B tokens, D = d_in, F = d_sae.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sae_bench.errors import UserError
from sae_bench.evaluation.contract import check_task, require, scaled_activations
from sae_bench.lm.sites import Site
from sae_bench.registry import ARCHITECTURES
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.saes.active import Latents, as_active
from sae_bench.saes.base import SAEConfig, SparseAutoencoder, initial_decoder
from sae_bench.saes.convert import to_built_in
from sae_bench.saes.kernels import kernels
from sae_bench.saes.knobs import MOST
from sae_bench.saes.save import load_sae, save_sae
from sae_bench.saes.step import Step
from sae_bench.training.recipe import Preset
from sae_bench.training.trainer import SAETrainer, StepSettings

__all__ = ["check_architecture", "check_task"]

SHAPES = ((6, 24, 37), (17, 11, 8))
"""(d_in, d_sae, tokens): a dictionary wider than its input, and one that is narrower."""

PRESETS: tuple[Preset, ...] = ("paper", "short")
SCALES = (0.003, 370.0)
"""Input scales folded in: far from 1 on both sides, so that a parameter that is left out shows."""


def check_architecture(name: str, **options: Any) -> None:
    """Raise AssertionError if the architecture, with these options, breaks the contract."""
    cls = ARCHITECTURES[name]
    n_checked = 0
    for seed, (d_in, d_sae, n_tokens) in enumerate(SHAPES):
        for sparsity in ({"l0": 3.0}, {"coefficient": 2.0}):
            config = SAEConfig(d_in=d_in, d_sae=d_sae, seed=seed, options=options, **sparsity)
            try:
                cls.check(config)
            except ValueError:
                continue  # it says itself that it cannot be built so
            n_checked += 1
            try:
                _check_declarations(cls)
                _check_life(cls, config, scaled_activations(n_tokens, d_in, seed))
            except (AssertionError, UserError) as error:
                raise AssertionError(f'architecture "{name}" ({config!r}): {error}') from error
    require(n_checked > 0, f'architecture "{name}": `check` refuses every configuration; let l0=3 through')


def _check_declarations(cls: type[SparseAutoencoder]) -> None:
    require(set(cls.recipes) <= set(PRESETS), f"recipes for {sorted(cls.recipes)}; the presets are {PRESETS}")
    for preset in PRESETS:
        settle(ArchSpec(name=cls.name), preset)  # refuses what is neither an option nor a field of a recipe
    _check_knobs(cls)
    strict = cls.options_type.model_config.get("extra") == "forbid"
    require(strict, 'options accept misspelt names; keep extra="forbid" of Options')


def _check_knobs(cls: type[SparseAutoencoder]) -> None:
    require(len(cls.knobs) <= MOST, f"{len(cls.knobs)} knobs: `tune` looks for {MOST} of an architecture's own at most")
    require("lr" not in cls.knobs, "lr is among the knobs: it is every architecture's, over one range; leave it out")
    options, recipe = settle(ArchSpec(name=cls.name), "short")
    start = {**recipe.model_dump(), **options}
    for name, given in cls.knobs.items():
        knob = given.of(start[name])
        for end in (knob.low, knob.high):
            settle(ArchSpec(name=cls.name, settings={name: end}), "short")  # refuses what cannot be set so
        inside = isinstance(start[name], int | float) and knob.low <= start[name] <= knob.high
        require(inside or not cls.is_trained, f"knob {name}: {start[name]}, its value, is not in its range")


def _check_life(cls: type[SparseAutoencoder], config: SAEConfig, x: Float[Tensor, "B D"]) -> None:
    """Construction, training, inference, folding and saving of one SAE."""
    _check_construction(cls, config)
    sae, twin = _trained(cls(config), x), _trained(cls(config), x)
    require(_same(sae, twin), "two trainings on the same data differ; draw random numbers from a seeded generator")
    require(_all_float32(sae), "training turned a parameter from float32 into something else; keep it float32")
    if sae.unit_norm_decoder:
        _require_unit_rows(sae, "after training; set unit_norm_decoder = False if they are free")
    silent = cls(config)
    with torch.no_grad():
        if silent.tied:
            silent.W_dec.zero_()
        else:
            silent.W_enc.zero_()
            silent.b_enc.fill_(-1.0)
    every = torch.arange(config.d_sae)
    for stage in (cls(config), sae, silent):
        for tokens in (x, x[:1]):
            _check_encode(stage, tokens)
            for dead in (every[:0], every[1:3], every):
                _check_loss(stage, tokens, dead)
    _check_parts(sae, x)
    for scale in SCALES:
        _check_release(sae, x, scale)


def _check_construction(cls: type[SparseAutoencoder], config: SAEConfig) -> None:
    with torch.random.fork_rng(devices=[]):
        one = cls(config)
        torch.rand(1)
        other = cls(config)
    require(_same(one, other), "one seed gives two different SAEs; draw from a generator seeded with config.seed")
    require(one.control in ("k", "target", "coefficient"), f"control = {one.control!r}; see SparsityControl")
    require(_all_float32(one), "a parameter is not float32; thresholds in bfloat16 stop learning")
    memory = {parameter.untyped_storage().data_ptr() for parameter in one.parameters()}
    require(len(memory) == len([*one.parameters()]), "two parameters share memory; make the second a clone")
    start = initial_decoder(config.d_in, config.d_sae, config.seed)
    complaint = "W_dec does not start at `initial_decoder`, up to a factor per row; all architectures start alike"
    _require_close(functional.normalize(one.W_dec, dim=1), start, complaint)


@torch.no_grad()
def _check_encode(sae: SparseAutoencoder, x: Float[Tensor, "B D"]) -> None:
    f = sae.encode(x)
    dense = _dense(f)
    require(dense.shape == (len(x), sae.config.d_sae), f"encode returns shape {tuple(dense.shape)}, not [B, F]")
    require(bool(dense.isfinite().all()), "encode returns infinite latents")
    if not sae.signed:
        require(bool((dense >= 0).all()), "encode returns negative latents; set signed = True if they mean something")
    _require_close(sae(x), sae.decode(f), "forward(x) is not decode(encode(x)); leave `forward` to the base class")
    order = torch.arange(len(x)).flip(0)
    _require_close(_dense(sae.encode(x[order])), dense[order], "permuting the tokens does not permute the latents")
    alone = torch.cat([_dense(sae.encode(x[i : i + 1])) for i in range(min(len(x), 5))])
    _require_close(alone, dense[:5], "a token's latents depend on the rest of its batch; use nothing but the token")


def _check_loss(sae: SparseAutoencoder, x: Float[Tensor, "B D"], dead: Int[Tensor, " n_dead"]) -> None:
    sae.zero_grad()
    loss = sae.loss(x, Step(torch.tensor(0.05), dead))
    for name, value in {"total": loss.total, **loss.terms}.items():
        require(value.ndim == 0 and bool(value.isfinite()), f"the loss's {name} is {value}, not a finite scalar")
    if not sae.selects_by_batch:
        advice = "set selects_by_batch = True if training keeps latents by a rule over the batch"
        _require_close(
            _dense(loss.latents), _dense(sae.encode(x)), f"Loss.latents are not what encode returns; {advice}"
        )
        _require_close(loss.x_hat, sae(x), "Loss.x_hat is not the reconstruction of inference")
    _require_close(loss.x_hat, sae.decode(loss.latents), "Loss.x_hat is not what decode makes of Loss.latents")
    loss.total.backward()
    gradients = {name: value.grad for name, value in sae.named_parameters() if value.grad is not None}
    for name, gradient in gradients.items():
        require(bool(gradient.isfinite().all()), f"the gradient of {name} is not finite")
    if bool((_dense(loss.latents) != 0).any()):
        for name in ("W_dec",) if sae.tied else ("W_enc", "W_dec"):
            frozen = not sae.get_parameter(name).requires_grad
            reached = frozen or (name in gradients and bool(gradients[name].any()))
            require(reached, f"no gradient reaches {name}; a detach or a step function cuts it off")
    # As pairs, as the whole matrix, and as pairs with padding, as on a GPU.
    for layout in (kernels("sparse"), kernels("dense")):
        with layout:
            other = sae.loss(x, Step(torch.tensor(0.05), dead)).total
        advice = "take sums over the active latents with sum_per_token, not values.sum(), which counts padding"
        _require_close(other, loss.total, f"the loss depends on how the active set is stored; {advice}")
        found = torch.autograd.grad(other, [sae.get_parameter(name) for name in gradients])
        for (name, expected), gradient in zip(gradients.items(), found, strict=True):
            complaint = f"the gradient of {name} depends on how the active set is stored; {advice}"
            _require_close(gradient, expected, complaint)


@torch.no_grad()
def _check_parts(sae: SparseAutoencoder, x: Float[Tensor, "B D"]) -> None:
    """A batch has the same loss in parts, which is what becomes of it where memory is short."""
    parts = (x * torch.linspace(0.5, 1.5, len(x))[:, None]).split(7)
    told = sae.survey(parts) or [None] * len(parts)
    dead = torch.arange(1, 3)
    whole = sae.loss(torch.cat(parts), Step(torch.tensor(0.05), dead))
    losses = [sae.loss(part, Step(torch.tensor(0.05), dead, found)) for part, found in zip(parts, told, strict=True)]
    total = torch.stack([loss.total * len(loss.x_hat) for loss in losses]).sum() / len(x)
    advice = "say in `survey` what a part must know of the batch"
    _require_close(total, whole.total, f"the loss of a batch is not the mean of its parts'; {advice}")
    for name, least in whole.minima.items():
        found = torch.stack([loss.minima[name] for loss in losses]).amin()
        _require_close(found, least, f'"{name}" of a batch is not the least of its parts\'')


@torch.no_grad()
def _check_release(sae: SparseAutoencoder, x: Float[Tensor, "B D"], scale: float) -> None:
    f, x_hat, norms = _dense(sae.encode(x)), sae(x), torch.linalg.vector_norm(sae.W_dec, dim=1)
    raw, raw_x = copy.deepcopy(sae).fold(scale), scale * x
    advice = "`biases` and `shift_biases` must name every parameter on the scale of pre-activations"
    require(raw.folded, "fold does not set `folded`; call super().fold(scale)")
    _require_unit_rows(raw, "after fold; call super().fold(scale)")
    _require_close(raw(raw_x) / scale, x_hat, f"after fold(C), x_hat(C x) is not C x_hat(x); {advice}")
    _require_close(_dense(raw.encode(raw_x)) / scale, norms * f, f"after fold(C), f is not C ||W_dec,i|| f; {advice}")
    if raw.nonlinearity is not None or raw.as_built_in() is not None:
        exported, complaint = to_built_in(raw), "as_built_in gives an SAE that computes something else"
        if raw.nonlinearity is not None:
            complaint += ", or nonlinearity is not what it computes"
        _require_close(exported(raw_x), raw(raw_x), complaint)
        _require_close(_dense(exported.encode(raw_x)), _dense(raw.encode(raw_x)), complaint)
    with tempfile.TemporaryDirectory() as folder:
        save_sae(Path(folder), raw, None, {}, [])
        loaded = load_sae(Path(folder))
    restored = _same(raw, loaded) and torch.equal(raw(raw_x), loaded(raw_x))
    require(restored, "a loaded SAE is not the saved one; keep all state in parameters, all settings in the config")


def _trained(sae: SparseAutoencoder, x: Float[Tensor, "B D"]) -> SparseAutoencoder:
    """An SAE that was served the same batch in every step."""
    recipe, key = settle(ArchSpec(name=sae.name), "short")[1], (Site(0, "resid_post", "layers.0", "output", 0), 0)
    trainer = SAETrainer("checked", sae, key, recipe, StepSettings(n_steps=12, batch_size=len(x), device=x.device))
    trainer.initialise(x.mean(0), x)
    for step in range(trainer.n_steps):
        trainer.step(x, step, logged=True)
    trainer.stats.close()
    require(trainer.failure is None, f"training breaks down: {trainer.failure}")
    return sae


def _dense(f: Latents) -> Float[Tensor, "B F"]:
    return as_active(f).to_dense()


def _same(one: SparseAutoencoder, other: SparseAutoencoder) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _all_float32(sae: SparseAutoencoder) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in sae.parameters())


def _require_unit_rows(sae: SparseAutoencoder, when: str) -> None:
    norms = torch.linalg.vector_norm(sae.W_dec, dim=1)
    _require_close(norms, torch.ones_like(norms), f"decoder rows are not of norm one {when}")


def _require_close(found: Tensor, expected: Tensor, complaint: str) -> None:
    require(found.shape == expected.shape, f"{complaint} ({tuple(found.shape)} against {tuple(expected.shape)})")
    gap = (found - expected).abs().max().item()
    require(torch.allclose(found, expected, rtol=1e-4, atol=1e-5), f"{complaint} (differs by {gap:.2g})")
