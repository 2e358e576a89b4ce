"""(a) Does all that training does on the device give what the CPU gives in float64, and what is equal bit for bit?"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from workers.ours import set_density

from gpu import resume
from gpu.model import Text, language_model, make_text, stream
from gpu.report import Report
from gpu.scale import Scale
from sae_bench import ARCHITECTURES, TASKS, SAEConfig, SparseAutoencoder, Step
from sae_bench.evaluation.loop import Candidate, evaluate
from sae_bench.evaluation.task import token_tasks
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site, find_site
from sae_bench.progress import Progress
from sae_bench.registry import known_architectures
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.plan import settle
from sae_bench.saes.kernels import kernels
from sae_bench.saes.rules import Above, Largest, LargestOfBatch, Rule
from sae_bench.saes.screening import screened
from sae_bench.training.buffer import ActivationBuffer
from sae_bench.training.loop import train
from sae_bench.training.serving import Serving
from sae_bench.training.trainer import SAETrainer, StepSettings

ABOUT = "(a) Device against CPU"
QUIET = Progress(quiet=True)
D_IN, D_SAE, N_TOKENS, L0 = 96, 1024, 512, 16

FULL = 1e-4
"""Relative error (Frobenius norm) allowed against float64."""

SELECTIONS: Mapping[str, Mapping[str, Any]] = {
    "sparse": {"choice": "sparse", "screening": "off"},
    "sparse, screened": {"choice": "sparse", "screening": "on"},
    "dense": {"choice": "dense"},
}
"""Arguments of `kernels`. Each is tried with every architecture."""


def run(report: Report, scale: Scale) -> None:
    """Every row."""
    report.facts |= {"about": ABOUT, "tolerance": FULL}
    for arch in known_architectures(False):
        for name, how in SELECTIONS.items():
            report.run("loss and gradients", f"{arch}, {name}", partial(check_gradients, scale.device, arch, how))
    for name in RULES:
        report.run("screening", name, partial(check_screening, scale.device, name))
    text = make_text(scale)
    tiny = Scale.toy(scale.device, scale.scratch)
    host = Scale.toy(torch.device("cpu"), scale.scratch)
    lm = language_model(tiny, text)
    on_host = language_model(host, text, dtype=torch.float64)
    on_host.model.load_state_dict(lm.model.state_dict())
    report.run("capture", "activations", partial(check_capture, lm, on_host, text, tiny))
    report.run("capture", "overlap", partial(check_overlap, lm, text, tiny))
    for arch in known_architectures(False):
        report.run(
            "training", arch, partial(check_training, lm, on_host, text, tiny, arch, scale.n_compared), seconds=5
        )
    for arch in known_architectures(False):
        report.run("repeatability", arch, partial(check_repeats, lm, text, tiny, arch), seconds=3)
    report.run("evaluation", "metrics", partial(check_evaluation, lm, on_host, text, tiny), seconds=5)
    report.run(
        "command line", "stopped and resumed", partial(resume.check, lm, text, tiny, scale.n_resumed), seconds=20
    )


def made(arch: str, x: Tensor, d_sae: int = D_SAE) -> SparseAutoencoder:
    """An SAE on the CPU with about the wanted L0, whose thresholds lie halfway between two tokens."""
    options, _ = settle(ArchSpec(name=arch), "short")
    sae = ARCHITECTURES[arch](SAEConfig(d_in=x.shape[1], d_sae=d_sae, l0=L0, options=options))
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
        sae.initialise(x)
    other = copy.deepcopy(sae)
    set_density(sae, x, L0 / d_sae)
    set_density(other, x, L0 / d_sae + 1 / len(x))
    with torch.no_grad():
        for parameter, value in zip(sae.parameters(), other.parameters(), strict=True):
            parameter.lerp_(value, 0.5)
    return sae


def check_gradients(device: torch.device, arch: str, how: Mapping[str, Any]) -> dict[str, Any]:
    """Loss, reconstruction and every gradient of a batch against the CPU's in float64; some latents count as dead."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_TOKENS, D_IN, generator=generator) / D_IN**0.5 + 0.02
    sae = made(arch, x)
    expected, n_expected = outcome(sae.double(), x.double(), {"choice": "dense"})
    found, n_found = outcome(sae.float().to(device), x.to(device), how)
    errors = {name: distance(value, expected[name]) for name, value in found.items()}
    worst = max(errors, key=lambda name: errors[name])
    return {
        "error": errors[worst], "of": worst, "tolerance": FULL, "L0": n_found / N_TOKENS,
        "pairs more or less": n_found - n_expected, "ok": errors[worst] <= FULL,
    }  # fmt: skip


def outcome(sae: SparseAutoencoder, x: Tensor, how: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
    """What a batch's loss and gradients are, and how many pairs are active."""
    sae.zero_grad()
    dead = torch.arange(0, D_SAE, 50, device=x.device)
    with kernels(**how):
        loss = sae.loss(x, Step(torch.full((), 0.01, device=x.device, dtype=x.dtype), dead))
    loss.total.backward()
    found = {"loss": loss.total, "x_hat": loss.x_hat, "fired": loss.latents.count_per_latent()}
    found |= {name: parameter.grad for name, parameter in sae.named_parameters() if parameter.grad is not None}
    active = int(loss.latents.active_per_token().sum())
    return {name: value.detach().clone() for name, value in found.items()}, active


RULES: Mapping[str, Callable[[Tensor], Rule]] = {
    "above": lambda z: Above(float(z.quantile(1 - L0 / D_SAE))),
    "above, one for each": lambda z: Above(z.quantile(1 - L0 / D_SAE, dim=0).float()),
    "largest": lambda z: Largest(L0),
    "largest of some": lambda z: Largest(L0, among=torch.arange(0, D_SAE, 3, device=z.device)),
    "largest of the batch": lambda z: LargestOfBatch(L0 * len(z)),
}


def check_screening(device: torch.device, name: str, d_in: int = 2048) -> dict[str, Any]:
    """Is a pair missed or added that lies further from the border than float32 can tell? Some tokens are enormous."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N_TOKENS, d_in, generator=generator) / d_in**0.5
    x[::50] *= 300
    x[:, :3] *= 40
    W = torch.randn(D_SAE, d_in, generator=generator) / d_in**0.5
    z = x.double() @ W.double().T
    rule = RULES[name](z.to(device))
    x, W, b_enc = x.to(device), W.to(device), torch.zeros(D_SAE, device=device)
    found = screened(x, W, b_enc, [rule], 1.0, centred=True)
    assert found is not None, "screening gave up"
    (pairs, values), exact = found[0], rule(x @ W.T)
    if exact.dtype != torch.bool:
        exact = torch.zeros(len(x), D_SAE, dtype=torch.bool, device=device).scatter_(1, exact, True)
    mine = torch.zeros_like(exact)
    mine[pairs.token, pairs.latent] = True
    least = torch.where(exact, z.to(device), torch.inf)
    border = least.amin() if "batch" in name else least.amin(1, keepdim=True)
    if isinstance(rule, Above):
        border = torch.as_tensor(rule.threshold, device=device).double()
    rounding = x.norm(dim=1, keepdim=True) * W.norm(dim=1) * d_in**0.5 * 2.0**-21
    clear = (z.to(device) - border).abs() > rounding
    wrong = int(((mine != exact) & clear).sum())
    apart = float(
        ((values - z.to(device)[pairs.token, pairs.latent]) / rounding[pairs.token, pairs.latent]).abs().max()
    )
    return {"pairs": len(values), "differ": int((mine != exact).sum()), "differ clearly": wrong,
            "values apart, in roundings": apart, "ok": wrong == 0 and apart <= 1}  # fmt: skip


def distance(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||, in float64 on the CPU; infinite for what is not finite."""
    a, b = found.detach().cpu().double(), expected.detach().cpu().double()
    error = float((a - b).norm() / b.norm().clamp(min=1e-30))
    return error if error == error else float("inf")


def check_capture(lm: LanguageModel, on_host: LanguageModel, text: Text, scale: Scale) -> dict[str, Any]:
    """Activations of a batch against float64."""
    sites = [find_site(lm.model, "resid_post", scale.layer), find_site(lm.model, "attn_out", scale.layer)]
    tokens = next(stream(lm, text, scale, "train", 500).batches(4)).tokens
    found, expected = lm.capture(tokens, sites), on_host.capture(tokens, sites)
    error = max(distance(found[site], expected[site]) for site in sites)
    return {"error": error, "tolerance": FULL, "ok": error <= FULL}


def buffer_of(
    lm: LanguageModel, text: Text, scale: Scale, n_tokens: int = 4000, **options: Any
) -> tuple[ActivationBuffer, Site]:
    """A buffer of several cycles, each with several passes."""
    site = find_site(lm.model, "resid_post", scale.layer)
    tokens = stream(lm, text, scale, "train", n_tokens)
    given = {"batch_size": scale.batch, "buffer_tokens": 1500, "reuse": 3, "seeds": [0]}
    return ActivationBuffer(lm, tokens, [site], Serving(**(given | options)), QUIET), site


def check_overlap(lm: LanguageModel, text: Text, scale: Scale) -> dict[str, Any]:
    """Batches captured on a stream beside training are those captured in turn."""
    served = []
    for overlap in (False, True):
        buffer, site = buffer_of(lm, text, scale, overlap=overlap)
        kept = []
        for batch in buffer.batches():
            x = batch[site, 0]
            kept.append(x.clone())
            for _ in range(20):  # work for the main stream, beside which the side runs
                x = x @ x.T @ x / x.square().sum()
        served.append(torch.stack(kept))
    error = distance(served[1], served[0])
    return {"equal": torch.equal(*served), "error": error, "batches": len(served[0]), "ok": torch.equal(*served)}


def trained(lm: LanguageModel, text: Text, scale: Scale, arch: str, n_tokens: int = 2000, **changes: Any) -> SAETrainer:
    """An SAE trained on the model's activations, as a run does it."""
    buffer, site = buffer_of(lm, text, scale, n_tokens)
    options, recipe = settle(ArchSpec(name=arch), "short")
    sae = ARCHITECTURES[arch](SAEConfig(d_in=site.d_in, d_sae=256, l0=8, options=options))
    settings = StepSettings(buffer.n_steps, scale.batch, lm.device, **changes)
    trainer = SAETrainer(arch, sae, (site, 0), recipe, settings)
    trainer.initialise(buffer.mean[site], buffer.sample(site, 4096))
    train([trainer], buffer, QUIET)
    trainer.stats.close()
    return trainer


def check_training(
    lm: LanguageModel, on_host: LanguageModel, text: Text, scale: Scale, arch: str, n_tokens: int
) -> dict[str, Any]:
    """A whole training against the CPU's: what it reaches, for rounding changes the way there."""
    model = copy.deepcopy(on_host.model).float()
    host = LanguageModel(model, on_host.tokenizer, on_host.name)
    found, expected = (trained(model, text, scale, arch, n_tokens) for model in (lm, host))
    last, there = found.log[-1], expected.log[-1]
    apart = abs(last["fve"] - there["fve"])
    ok = found.failure is None and apart < 0.03 and abs(last["l0"] / there["l0"] - 1) < 0.2
    return {
        "fve": last["fve"], "fve on CPU": there["fve"], "l0": last["l0"], "l0 on CPU": there["l0"],
        "first loss": found.log[0]["loss"], "first loss on CPU": expected.log[0]["loss"],
        "skipped": found.stats.n_skipped, "note": found.failure or "", "ok": ok,
    }  # fmt: skip


def check_repeats(lm: LanguageModel, text: Text, scale: Scale, arch: str) -> dict[str, Any]:
    """Two equal trainings: how far apart are their weights, as torch is and with its deterministic algorithms?"""
    row: dict[str, Any] = {}
    for how, deterministic, changes in (
        ("auto", False, {}), ("dense", False, {"kernels": "dense"}), ("deterministic", True, {}),
    ):  # fmt: skip
        torch.use_deterministic_algorithms(deterministic)
        try:
            one, other = (trained(lm, text, scale, arch, **changes) for _ in range(2))
        except RuntimeError as error:  # an operation that has no deterministic form
            row["note"] = f"{how}: {error}"[:300]
            continue
        finally:
            torch.use_deterministic_algorithms(False)
        if failure := one.failure or other.failure:
            row["note"] = f"{how}: {failure}"[:300]
            continue
        pairs = list(zip(one.sae.parameters(), other.sae.parameters(), strict=True))
        row[f"equal, {how}"] = all(torch.equal(a, b) for a, b in pairs)
        row[f"apart, {how}"] = max(distance(a, b) for a, b in pairs)
    return row


def check_evaluation(lm: LanguageModel, on_host: LanguageModel, text: Text, scale: Scale) -> list[dict[str, Any]]:
    """Every metric of every architecture against the CPU's with the model in float64."""
    scores = []
    for model in (lm, on_host):
        site = find_site(model.model, "resid_post", scale.layer)
        tokens = next(stream(on_host, text, scale, "train", 2000).batches(32)).tokens
        x = on_host.capture(tokens, [find_site(on_host.model, "resid_post", scale.layer)])
        sample = next(iter(x.values())).flatten(0, 1).float()
        candidates = []
        for arch in known_architectures(False):
            sae = made(arch, sample, 256).requires_grad_(False).fold(1.0).to(model.device)
            candidates.append(
                Candidate(
                    sae, site, {name: task() for name, task in token_tasks(TASKS).items() if not task.needs_truth}
                )
            )
        evaluate(model, stream(model, text, scale, "eval", 1000), candidates, QUIET)
        failures = [f for candidate in candidates for f in candidate.failures.values()]
        assert not failures, failures
        scores.append([
            {name: score.value for result in candidate.results.values() for name, score in result.scores.items()}
            for candidate in candidates
        ])  # fmt: skip
    rows = []
    for arch, found, expected in zip(known_architectures(False), *scores, strict=True):
        apart = {
            name: abs(value - other) / max(abs(other), 1e-2)
            for name, value in found.items()
            if value is not None and (other := expected[name]) is not None
        }
        worst = max(apart, key=lambda name: apart[name])
        rows.append({"architecture": arch, "metrics": len(apart), "error": apart[worst], "of": worst,
                     "tolerance": 10 * FULL, "ok": apart[worst] <= 10 * FULL})  # fmt: skip
    return rows
