"""Our SAEs in other formats and back, as other architectures, on the hub, and their results in SAEBench's files."""

from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from command import files
from test_formats import opened

from sae_bench import ARCHITECTURES, SAEConfig, SparseAutoencoder
from sae_bench.cli.runs import Format
from sae_bench.errors import UserError
from sae_bench.formats import neuronpedia
from sae_bench.formats.export import WRITERS, export
from sae_bench.formats.ours import write
from sae_bench.records.schema import SAEDescription, SiteDescription
from sae_bench.saes.convert import TARGETS, convert, to_built_in

ARCHS = ("gated", "jumprelu", "relu", "topk")
D, F, K = 24, 64, 6
# What is stored as we have it comes back to the bit; b_dec, where it is taken out of a bias and put back, to rounding.
HOLDS = {
    "saelens": dict.fromkeys((*ARCHS, "abs_topk", "matching_pursuit"), "exactly"),
    "gemma-scope": {"jumprelu": "exactly"},
    "gemma-scope-2": {"jumprelu": "exactly"},
    "dictionary_learning": {"relu": "exactly", "jumprelu": "exactly", "gated": "rounded", "topk": "rounded"},
    "sparsify": {"topk": "rounded"},
}
CASES = [(form, arch) for form, archs in HOLDS.items() for arch in archs]
SITE = {
    "layer": 3, "kind": "resid_post", "path": "model.layers.3", "side": "output", "d_in": D,
    "name": "layer_3.resid_post",
}  # fmt: skip


def make(arch: str, scale: float = 3.0) -> SparseAutoencoder:
    """A folded SAE of an architecture with random weights: biases, thresholds and gains of all signs and sizes."""
    sae = ARCHITECTURES[arch](SAEConfig(d_in=D, d_sae=F, l0=K, seed=1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            if weight.ndim == 1:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
            if name == "theta_parameter":
                weight.abs_().clamp_(min=1e-3).log_()
    return sae.fold(scale).requires_grad_(False)


def inputs(n: int = 400) -> torch.Tensor:
    return 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(3))


def make_run(folder: Path, *saes: SparseAutoencoder) -> Path:
    """The part of a run's folder that exporting looks at."""
    for sae in saes:
        sae_id, site = f"{sae.name}.layer_3.resid_post", SiteDescription(**SITE)
        description = SAEDescription.model_construct(id=sae_id, arch=sae.name, label=sae.name, site=site)
        metadata = {"model_name": "owner/model", "hook_name": "blocks.3.hook_resid_post"}
        write(folder / "saes" / sae_id, sae, description, metadata)
    (folder / "records").mkdir()
    return folder


def outputs(sae: SparseAutoencoder) -> tuple[torch.Tensor, torch.Tensor]:
    x = inputs()
    return sae.encode(x).to_dense(), sae(x)


@pytest.mark.parametrize(("form", "arch"), CASES)
def test_ours_to_another_format_and_back_is_what_it_was(tmp_path, form, arch):
    sae = make(arch)
    (written,) = export(make_run(tmp_path / "run", sae), form, tmp_path / "out")
    foreign = opened(written if written.is_dir() else written.parent)
    back = foreign.build()
    assert back.name == arch
    module = form == "gemma-scope-2"  # it names the module itself
    said = ("path:model.layers.3", None) if module else ("resid_post", 3)
    assert (foreign.place.kind, foreign.place.layer) == said
    for name, weight in sae.named_parameters():
        other = dict(back.named_parameters())[name]
        if HOLDS[form][arch] == "exactly" or name in ("W_enc", "W_dec", "b_dec", "r_mag"):
            assert torch.equal(other, weight), name
        else:
            torch.testing.assert_close(other, weight, rtol=0, atol=2e-6)
    for ours, theirs in zip(outputs(sae), outputs(back), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("form", "arch"), [("dictionary_learning", "jumprelu"), ("saelens", "topk")])
def test_an_export_has_the_same_bytes_in_every_process(tmp_path, monkeypatch, form, arch):
    run, made = make_run(tmp_path / "run", make(arch)), []
    for number in (7, 12345):
        monkeypatch.setattr("os.getpid", lambda number=number: number)
        export(run, form, tmp_path / str(number))
        made.append(files(tmp_path / str(number)))
    assert made[0] == made[1]


@pytest.mark.parametrize("arch", ARCHS)
def test_an_sae_of_ours_is_itself_again(tmp_path, arch):
    sae = make(arch)
    run = make_run(tmp_path / "run", sae)
    back = opened(run).build()
    assert all(torch.equal(other, weight) for other, weight in zip(back.parameters(), sae.parameters(), strict=True))


@pytest.mark.parametrize(
    ("form", "arch"),
    [
        ("gemma-scope", "gated"), ("gemma-scope", "relu"), ("gemma-scope-2", "abs_topk"), ("sparsify", "jumprelu"),
        ("dictionary_learning", "matching_pursuit"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, form, arch):
    fitting = make("topk" if form == "sparsify" else "jumprelu")
    with pytest.raises(
        UserError, match=f"^{arch}.layer_3.resid_post does not fit into {form}, which holds .*, not {arch}: "
    ):
        export(make_run(tmp_path / "run", fitting, make(arch)), form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Bounded(ARCHITECTURES["relu"]):
    """A plugin's: what its latents are above a bound cannot be told by its base class."""

    name = "mine"

    def encode(self, x):
        f = super().encode(x)
        return f.with_values(f.values.clamp(max=1))


class Shifted(ARCHITECTURES["relu"]):
    """A plugin's: a jumprelu that keeps its thresholds under a name of its own."""

    name = "shifted"
    nonlinearity = "jumprelu"
    stored_names = {"t": "threshold"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.t = torch.nn.Parameter(torch.linspace(0, 0.02, F))

    def encode(self, x):
        return self.select(x, keep=lambda z: z > self.t)


def test_a_plugin_says_how_it_is_exported_or_is_refused(monkeypatch):
    mine = Bounded(SAEConfig(d_in=D, d_sae=F, l0=K))
    with pytest.raises(UserError, match=r'"mine" does not say how it is exported: give it as_built_in\(\)'):
        to_built_in(mine)
    same = make("jumprelu")
    monkeypatch.setattr(Bounded, "as_built_in", lambda sae: same)
    assert to_built_in(mine) is same


def test_a_plugin_that_names_its_nonlinearity_is_exported_as_the_built_in_one():
    mine = Shifted(SAEConfig(d_in=D, d_sae=F, l0=K)).fold(3.0).requires_grad_(False)
    other = to_built_in(mine)
    assert type(other) is ARCHITECTURES["jumprelu"]
    (f, x_hat), (f_other, x_hat_other) = outputs(mine), outputs(other)
    assert 0.05 < float((f > 0).float().mean()) < 0.5
    assert torch.equal(f_other, f)
    assert torch.equal(x_hat_other, x_hat)


def test_tensors_that_are_not_those_of_the_named_nonlinearity_are_refused(monkeypatch):
    monkeypatch.setattr(Shifted, "stored_names", {})
    with pytest.raises(UserError, match=r"not the tensors of a jumprelu SAE: .*\bt \(64,\)"):
        to_built_in(Shifted(SAEConfig(d_in=D, d_sae=F, l0=K)).fold(3.0))


EXACT = [("gated", "jumprelu"), ("jumprelu", "gated"), ("relu", "jumprelu"), ("relu", "gated")]


# --- conversions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "to"), EXACT)
def test_exact_conversions_compute_the_same(arch, to):
    sae = make(arch)
    other = convert(sae, to)
    assert other.name == to
    (f, x_hat), (f_other, x_hat_other) = outputs(sae), outputs(other)
    assert 0.05 < float((f > 0).float().mean()) < 0.95
    torch.testing.assert_close(f_other, f, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x_hat_other, x_hat, rtol=1e-4, atol=1e-4)


def test_gated_to_jumprelu_by_hand():
    """pi = x; r = ln 2: magnitudes 2 x + b_mag, and theta = max(b_mag - 2 b_gate, 0), of which one is below zero."""
    sae = ARCHITECTURES["gated"](SAEConfig(d_in=2, d_sae=2, l0=1))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
        sae.r_mag.fill_(2.0).log_()
        sae.b_mag.copy_(torch.tensor([3.0, -4.0]))
        sae.b_enc.copy_(torch.tensor([-1.0, 0.5]))
    sae.folded = True
    other = convert(sae.requires_grad_(False), "jumprelu")
    assert other.W_enc.tolist() == [[2, 0], [0, 2]]
    assert other.theta.tolist() == [5, 0], "3 + 2, and -4 - 1 cut at zero"
    x = torch.tensor([[1.0, 0.0], [1.5, 3.0], [0.5, 1.0]])
    assert sae.encode(x).to_dense().tolist() == other.encode(x).to_dense().tolist() == [[0, 0], [6, 2], [0, 0]]


def test_a_calibrated_topk_keeps_k_latents_on_average_and_the_same_values():
    sae = make("topk")
    x = inputs(500)
    other = convert(sae, "jumprelu", x)
    assert other.theta.unique().numel() == 1
    f, f_other = sae.encode(x).to_dense(), other.encode(x).to_dense()
    assert int((f_other > 0).sum()) == 500 * K
    both = (f > 0) & (f_other > 0)
    torch.testing.assert_close(f_other[both], f[both])
    assert not torch.equal((f_other > 0).sum(1), (f > 0).sum(1)), "on one token it is another number"


@pytest.mark.parametrize(("arch", "to"), [("gated", "topk"), *product(("abs_topk", "matching_pursuit"), TARGETS)])
def test_what_has_no_conversion_is_refused(arch, to):
    with pytest.raises(UserError, match=f'an SAE of {arch} has no conversion to "{to}"'):
        convert(make(arch), to, inputs())


def test_every_format_that_is_written_can_be_asked_for():
    assert {*get_args(Format)} == {*WRITERS, neuronpedia.FORMAT}  # which is no SAE's, but its latents'
