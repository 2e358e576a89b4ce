"""The contract of plugins: what every architecture and every task must satisfy, built-in or not.

    from sae_bench.testing import check_architecture, check_task
    check_architecture("jumprelu", theta_init="quantile")    # in a test of your plugin, once it is registered
    check_task("feature_density")

Both run in a second on small random data and raise AssertionError, saying what is broken and what to do about it.

Shapes: B tokens, D = d_in, F = d_sae.
"""

import copy
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sae_bench.errors import UserError
from sae_bench.evaluation.task import (
    BaseTask,
    EvalBatch,
    EvalSetting,
    JudgedLatent,
    LatentTask,
    LMLosses,
    Result,
    Task,
)
from sae_bench.lm.sites import Site
from sae_bench.records.schema import Metric
from sae_bench.registry import ARCHITECTURES, TASKS
from sae_bench.runs.config import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.saes.active import Active, Latents, as_active, kernels
from sae_bench.saes.base import Loss, SAEConfig, SparseAutoencoder, Step, initial_decoder
from sae_bench.saes.convert import to_built_in
from sae_bench.saes.save import load_sae, save_sae
from sae_bench.saes.selection import Capacity
from sae_bench.training.recipe import Preset
from sae_bench.training.trainer import SAETrainer, StepSettings

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
                _check_life(cls, config, _scaled_activations(n_tokens, d_in, seed))
            except (AssertionError, UserError) as error:
                raise AssertionError(f'architecture "{name}" ({config!r}): {error}') from error
    _require(n_checked > 0, f'architecture "{name}": `check` refuses every configuration; let l0=3 through')


def _check_declarations(cls: type[SparseAutoencoder]) -> None:
    _require(cls.control in ("k", "target", "coefficient"), f"control = {cls.control!r}; see SparsityControl")
    _require(set(cls.recipes) <= set(PRESETS), f"recipes for {sorted(cls.recipes)}; the presets are {PRESETS}")
    for preset in PRESETS:
        settle(ArchSpec(name=cls.name), preset)  # refuses what is neither an option nor a field of a recipe
    strict = cls.options_type.model_config.get("extra") == "forbid"
    _require(strict, 'options accept misspelt names; keep extra="forbid" of Options')


def _check_life(cls: type[SparseAutoencoder], config: SAEConfig, x: Float[Tensor, "B D"]) -> None:
    """Construction, training, inference, folding and saving of one SAE."""
    _check_construction(cls, config)
    sae, twin = _trained(cls(config), x), _trained(cls(config), x)
    _require(_same(sae, twin), "two trainings on the same data differ; draw random numbers from a seeded generator")
    _require(_all_float32(sae), "training turned a parameter from float32 into something else; keep it float32")
    if sae.unit_norm_decoder:
        _require_unit_rows(sae, "after training; set unit_norm_decoder = False if they are free")
    silent = cls(config)
    with torch.no_grad():
        silent.W_enc.zero_()
        silent.b_enc.fill_(-1.0)
    every = torch.arange(config.d_sae)
    for stage in (cls(config), sae, silent):
        for tokens in (x, x[:1]):
            _check_encode(stage, tokens)
            for dead in (every[:0], every[1:3], every):
                _check_loss(stage, tokens, dead)
    for scale in SCALES:
        _check_release(sae, x, scale)


def _check_construction(cls: type[SparseAutoencoder], config: SAEConfig) -> None:
    with torch.random.fork_rng(devices=[]):
        one = cls(config)
        torch.rand(1)
        other = cls(config)
    _require(_same(one, other), "one seed gives two different SAEs; draw from a generator seeded with config.seed")
    _require(_all_float32(one), "a parameter is not float32; thresholds in bfloat16 stop learning")
    memory = {parameter.untyped_storage().data_ptr() for parameter in one.parameters()}
    _require(len(memory) == len([*one.parameters()]), "two parameters share memory; make the second a clone")
    start = initial_decoder(config.d_in, config.d_sae, config.seed)
    complaint = "W_dec does not start at `initial_decoder`, up to a factor per row; all architectures start alike"
    _require_close(functional.normalize(one.W_dec, dim=1), start, complaint)


@torch.no_grad()
def _check_encode(sae: SparseAutoencoder, x: Float[Tensor, "B D"]) -> None:
    f = sae.encode(x)
    dense = _dense(f)
    _require(dense.shape == (len(x), sae.config.d_sae), f"encode returns shape {tuple(dense.shape)}, not [B, F]")
    _require(bool(((dense >= 0) & dense.isfinite()).all()), "encode returns negative latents, or infinite ones")
    _require_close(sae(x), sae.decode(f), "forward(x) is not decode(encode(x)); leave `forward` to the base class")
    order = torch.arange(len(x)).flip(0)
    _require_close(_dense(sae.encode(x[order])), dense[order], "permuting the tokens does not permute the latents")
    alone = torch.cat([_dense(sae.encode(x[i : i + 1])) for i in range(min(len(x), 5))])
    _require_close(alone, dense[:5], "a token's latents depend on the rest of its batch; use nothing but the token")


def _check_loss(sae: SparseAutoencoder, x: Float[Tensor, "B D"], dead: Int[Tensor, " n_dead"]) -> None:
    sae.zero_grad()
    loss = sae.loss(x, Step(torch.tensor(0.05), dead))
    for name, value in {"total": loss.total, **loss.terms}.items():
        _require(value.ndim == 0 and bool(value.isfinite()), f"the loss's {name} is {value}, not a finite scalar")
    _require_close(_dense(loss.latents), _dense(sae.encode(x)), "Loss.latents are not what encode returns")
    _require_close(loss.x_hat, sae(x), "Loss.x_hat is not the reconstruction of inference")
    loss.total.backward()
    gradients = {name: value.grad for name, value in sae.named_parameters() if value.grad is not None}
    for name, gradient in gradients.items():
        _require(bool(gradient.isfinite().all()), f"the gradient of {name} is not finite")
    if bool((_dense(loss.latents) > 0).any()):
        for name in ("W_enc", "W_dec"):
            reached = name in gradients and bool(gradients[name].any())
            _require(reached, f"no gradient reaches {name}; a detach or a step function cuts it off")
    for layout in _LAYOUTS:
        with layout():
            other = sae.loss(x, Step(torch.tensor(0.05), dead)).total
        advice = "take sums over the active latents with sum_per_token, not values.sum(), which counts padding"
        _require_close(other, loss.total, f"the loss depends on how the active set is stored; {advice}")
        found = torch.autograd.grad(other, [sae.get_parameter(name) for name in gradients])
        for (name, expected), gradient in zip(gradients.items(), found, strict=True):
            complaint = f"the gradient of {name} depends on how the active set is stored; {advice}"
            _require_close(gradient, expected, complaint)


_LAYOUTS: tuple[Callable[[], AbstractContextManager[None]], ...] = (
    lambda: kernels("sparse"),
    lambda: kernels("dense"),
    lambda: kernels("sparse", capacity=Capacity(1.0, torch.zeros(()), torch.tensor(False))),
)
"""The ways in which an active set is stored: pairs, the whole matrix, pairs with padding as on a GPU."""


@torch.no_grad()
def _check_release(sae: SparseAutoencoder, x: Float[Tensor, "B D"], scale: float) -> None:
    f, x_hat, norms = _dense(sae.encode(x)), sae(x), torch.linalg.vector_norm(sae.W_dec, dim=1)
    raw, raw_x = copy.deepcopy(sae).fold(scale), scale * x
    advice = "`biases` and `shift_biases` must name every parameter on the scale of pre-activations"
    _require(raw.folded, "fold does not set `folded`; call super().fold(scale)")
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
    _require(restored, "a loaded SAE is not the saved one; keep all state in parameters, all settings in the config")


def _trained(sae: SparseAutoencoder, x: Float[Tensor, "B D"]) -> SparseAutoencoder:
    """An SAE that was served the same batch in every step."""
    recipe, key = settle(ArchSpec(name=sae.name), "short")[1], (Site(0, "resid_post", "layers.0", "output", 0), 0)
    trainer = SAETrainer("checked", sae, key, recipe, StepSettings(n_steps=12, batch_size=len(x), device=x.device))
    trainer.initialise(x.mean(0), x)
    for step in range(trainer.n_steps):
        trainer.step(x, step, logged=True)
    trainer.stats.close()
    _require(trainer.failure is None, f"training breaks down: {trainer.failure}")
    return sae


def check_task(name: str) -> None:
    """Raise AssertionError if the task, about tokens or about latents, breaks the contract."""
    cls = TASKS[name]
    try:
        _require(isinstance(getattr(cls, "version", None), str), 'it declares no version; write version = "1"')
        if issubclass(cls, Task):
            _check_token_task(cls)
        elif issubclass(cls, LatentTask):
            _check_latent_task(cls)
        else:
            raise AssertionError("it is neither a Task nor a LatentTask")
    except AssertionError as error:
        raise AssertionError(f'task "{name}": {error}') from error


def _check_token_task(cls: type[Task]) -> None:
    data, one_token = _EvalData(cls, n_documents=7), _EvalData(cls, n_documents=1)
    _check_metrics(cls)
    result = data.run()
    for of, found in ((data, result), (data, data.run(factor=0.0)), (one_token, one_token.run())):
        _check_result(cls, found, {"by_document": of.setting.n_documents, "per_latent": of.setting.sae.config.d_sae})
    for sizes in ([1] * data.n, [data.n - 9, 9]):
        _require_same_scores(result, data.run(sizes), f"serving {len(sizes)} batches")
    _require_same_scores(result, data.run(dense=True), "an active set that is stored as a matrix")
    _require_same_scores(result, data.run(meanwhile=one_token.run), "another instance at work meanwhile")


def _check_latent_task(cls: type[LatentTask]) -> None:
    scorers = [Metric(name, "up", "", "the score of a scorer") for name in ("one", "other")]

    def run(latents: Sequence[JudgedLatent], meanwhile: Callable[[], object] = lambda: None) -> Result:
        task = cls(scorers)
        _check_metrics(task)
        meanwhile()
        for latent in latents:
            task.update(latent)
        result = task.finish()
        _check_result(task, result, {})
        return result

    scored = [JudgedLatent(i, {"one": i / 10, "other": 0.5}, {}, {}) for i in (3, 5, 8)]
    unscored = JudgedLatent(9, {"one": None, "other": 0.25}, {"one": "too few examples"}, {"refusal": 2})
    result = run([*scored, unscored])
    for latents in ([], [unscored], scored[:1]):
        run(latents)
    _require_same_scores(result, run([unscored, *scored[::-1]]), "another order of latents")
    _require_same_scores(result, run([*scored, unscored], lambda: run(scored)), "another instance at work meanwhile")


def _check_metrics(task: BaseTask | type[BaseTask]) -> None:
    metrics = getattr(task, "metrics", ())
    _require(bool(metrics) and all(isinstance(metric, Metric) for metric in metrics), "it declares no metrics")
    names = [metric.name for metric in metrics]
    _require(len(set(names)) == len(names), f"it declares a metric twice: {names}")


def _check_result(task: BaseTask | type[BaseTask], result: Result, lengths: Mapping[str, int]) -> None:
    """`lengths` of the values in a table of the result."""
    declared, found = {metric.name for metric in task.metrics}, set(result.scores)
    _require(found == declared, f"finish() lacks {declared - found or 'nothing'}, adds {found - declared or 'nothing'}")
    for name, score in result.scores.items():
        _require(score.value is not None or bool(score.note), f"{name} is None without a note; say why it is undefined")
        for number in (score.value, score.stderr):
            _require(number is None or math.isfinite(number), f"{name} is {score}; what cannot be had is None")
    for table, length in lengths.items():
        for name, values in getattr(result, table).items():
            _require(len(values) == length, f"{table}[{name!r}] has {len(values)} values instead of {length}")
    try:
        json.dumps(asdict(result), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"the result is no JSON ({error}); use plain lists, and None for NaN") from error


class _TinySAE(SparseAutoencoder):
    """What tasks are shown; its first two latents are dead."""

    name = "tiny"

    def encode(self, x: Float[Tensor, "B D"]) -> Active:
        return self.select(x, keep=lambda z: (z > 0) & (torch.arange(z.shape[1]) >= 2))

    def loss(self, x: Float[Tensor, "B D"], step: Step) -> Loss:
        raise NotImplementedError


class _EvalData:
    """Random activations of some documents; the first has one token, and hence nothing to predict."""

    def __init__(self, cls: type[Task], n_documents: int) -> None:
        self.cls = cls
        self.document = torch.arange(n_documents).repeat_interleave(torch.arange(n_documents) * 3 + 1)
        self.n = len(self.document)
        self.x = 5 * _scaled_activations(self.n, 6, seed=0)
        sae = _TinySAE(SAEConfig(d_in=6, d_sae=24, l0=3)).requires_grad_(False)
        self.losses = 3 + torch.rand(5, self.n, generator=torch.Generator().manual_seed(0))
        self.setting = EvalSetting(sae, self.x.double().mean(0), n_documents, torch.device("cpu"))

    @torch.no_grad()
    def run(
        self,
        sizes: Sequence[int] | None = None,
        *,
        factor: float = 0.9,
        dense: bool = False,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Result:
        """What the task finds in batches of these sizes, where x_hat is `factor` times what the SAE decodes."""
        task = self.cls()
        task.start(self.setting)
        meanwhile()
        for rows in torch.arange(self.n).split(list(sizes or [self.n])):
            x, document = self.x[rows], self.document[rows]
            with kernels("dense" if dense else "sparse"):
                f = as_active(self.setting.sae.encode(x))
            x_hat = factor * self.setting.sae.decode(f)
            predicts = document > 0
            losses = LMLosses(document[predicts], *self.losses[:, rows][:, predicts]) if task.needs_lm_loss else None
            task.update(EvalBatch(x, f, x_hat, document, losses))
        return task.finish()


def _require_same_scores(one: Result, other: Result, change: str) -> None:
    for name in one.scores:
        for field in ("value", "stderr", "n"):
            a, b = (getattr(result.scores[name], field) for result in (one, other))
            same = a == b if None in (a, b) else math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
            _require(same, f"{change} turns {name}'s {field} from {a} into {b}; keep sums on self, divide in finish()")


def _scaled_activations(n: int, d_in: int, seed: int) -> Float[Tensor, "n D"]:
    """Tokens with a large common mean and E||x||^2 = 1, as the trainer serves them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_in, generator=generator) + 3 * torch.randn(d_in, generator=generator)
    return x / x.square().sum(1).mean().sqrt()


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
    _require(found.shape == expected.shape, f"{complaint} ({tuple(found.shape)} against {tuple(expected.shape)})")
    gap = (found - expected).abs().max().item()
    _require(torch.allclose(found, expected, rtol=1e-4, atol=1e-5), f"{complaint} (differs by {gap:.2g})")


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise AssertionError(complaint)
