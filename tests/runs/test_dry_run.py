"""A run is planned without network, for a device that is elsewhere too; and with random weights it is a control."""

import json
import re
import socket
import time

import pytest
import torch
from command import bench, flags
from tiny import tiny_gemma2, tiny_tokenizer

from sae_bench.device import choose_device
from sae_bench.errors import UserError
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.model_names import HUB_MODELS
from sae_bench.lm.sites import Site
from sae_bench.runs import costs
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.config import RunConfig
from sae_bench.runs.costs import CARDS, LMWork, Peaks, encoding_seconds, peaks_of, step_seconds
from sae_bench.runs.plan import SAEPlan
from sae_bench.runs.rates import known_rate, remember_rate
from sae_bench.saes.base import SAEConfig
from sae_bench.training.recipe import recipe_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    return {
        "--arch": "topk", "--l0": 6, "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 48,
        "--tokens": 1200, "--reuse": 2, "--batch-size": 120, "--eval-tokens": 300, "--context-size": 32,
    }  # fmt: skip


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def planned(capsys, *arguments: object) -> str:
    assert bench(*arguments, "--dry-run") == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("model", [*HUB_MODELS, "demo"])
def test_every_listed_model_is_planned_without_network(capsys, monkeypatch, at_work, no_network, model, device):
    monkeypatch.setenv("SAE_BENCH_CACHE", str(at_work / "nothing is in it"))
    monkeypatch.setattr(costs, "_seconds", lambda work, device: 0.01)  # not what is measured here
    text = planned(capsys, "--arch", "topk", "--model", model, "--device", device)
    assert HUB_MODELS.get(model, model) in text
    assert ("on cuda, which this machine does not have" in text) == (device == "cuda" and not torch.cuda.is_available())
    assert re.search(r"training .* tokens/s, computed\), evaluation .* tokens/s, computed\): \S+ ", text)
    assert ("GPU-hours on H100\n" in text) == (device == "cuda")


def test_a_plan_for_cuda_counts_what_cuda_needs(capsys, at_work):
    """Two halves of the buffer on a CPU, a third one on a GPU: 500,000 more activations of 2,304 in bfloat16."""
    sizes = {
        "--arch": "topk",
        "--model": "gemma-2-2b",
        "--dtype": "bfloat16",
        "--tokens": "8M",
        "--buffer-tokens": "1M",
    }
    texts = [planned(capsys, *flags(sizes | {"--device": device})) for device in ("cpu", "cuda")]
    cpu, cuda = (float(re.search(r"memory +about ([\d.]+) GB", text)[1]) for text in texts)
    assert cuda - cpu == pytest.approx(500_000 * 2304 * 2 / 1e9, abs=0.3)


def test_cuda_that_is_not_here_can_be_planned_for_and_not_run_on(capsys, settings, at_work):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert bench(*flags(settings | {"--device": "cuda", "--out": at_work / "cuda"}), "--quiet") == 2
    assert '--device "cuda"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("built_for", "n_cards", "advice"),
    [
        (None, 0, "is built without CUDA: install one that has it"),
        ("13.0", 0, "PyTorch sees no NVIDIA GPU: see what nvidia-smi says"),
        ("13.0", 1, "there is cuda:0 alone; choose"),
        ("13.0", 4, "there is cuda:0 to cuda:3; choose"),
    ],
)
def test_cuda_that_cannot_be_had_says_what_is_missing(monkeypatch, built_for, n_cards, advice):
    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error: invalid device ordinal")

    monkeypatch.setattr(torch, "empty", fail)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cards)
    with pytest.raises(UserError, match=f'--device "cuda:7": .*{advice}'):
        choose_device("cuda:7", "auto")


def topk(d_in: int, d_sae: int, l0: float, arch: str = "topk") -> SAEPlan:
    site, config = Site(0, "resid_post", "m", "output", d_in), SAEConfig(d_in=d_in, d_sae=d_sae, l0=l0)
    return SAEPlan(ArchSpec(name=arch), site, config, recipe_for("paper", {}))


def test_a_step_takes_what_its_arithmetic_and_its_bytes_take():
    """By hand, 1,000 activations, 100 x 1,000, 10 active; a device of 1 GFLOP/s and 1 GB/s, twice that in half."""
    peaks = Peaks("toy", 2e9, 1e9, 1e9)
    encoder, pairs = 2 * 1000 * 100 * 1000 / 1e9, 4 * 4 * 1000 * 10 * 100 / 1e9
    weights = (2 + 5) * 4 * 100 * 1000 / 1e9 + 28 * (2 * 100 * 1000 + 100 + 1000) / 1e9
    assert step_seconds(topk(100, 1000, 10), 1000, CPU, peaks) == pytest.approx(encoder + pairs + weights, rel=0.01)
    screened = encoder / 2 + pairs * 5 / 4 + weights
    assert step_seconds(topk(100, 1000, 10), 1000, CUDA, peaks) == pytest.approx(screened, rel=0.01)


def test_a_pursuit_takes_its_steps_more_and_what_is_not_trained_nothing():
    """As above: 10 steps of a product, 0.2 s, or, where bytes are faster, of 16 bytes for each of a million z."""
    for bandwidth, pass_seconds in (1e6, 0.2), (1e9, 0.016):
        peaks = Peaks("toy", 2e9, 1e9, bandwidth)
        like_topk = step_seconds(topk(100, 1000, 10), 1000, CPU, peaks)
        pursuit = step_seconds(topk(100, 1000, 10, "matching_pursuit"), 1000, CPU, peaks)
        of_its_own = (100 * 1000 + 1000) * costs.ADAM_BYTES / bandwidth  # W_enc and b_enc, which it has not
        assert pursuit - like_topk == pytest.approx(10 * pass_seconds - of_its_own, rel=1e-6)
    assert step_seconds(topk(100, 1000, 10, "pca"), 1000, CPU, peaks) == 0
    one = encoding_seconds(topk(100, 1000, 10), 1000, peaks)
    assert encoding_seconds(topk(100, 1000, 10, "matching_pursuit"), 1000, peaks) - one == pytest.approx(10 * 0.016)


def test_a_card_is_known_by_its_name_and_others_are_measured(monkeypatch):
    monkeypatch.setattr(costs, "has_cuda", lambda device: device.type == "cuda")
    names = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA H100 PCIe": "H100 PCIe", "NVIDIA H200": "H200",
             "NVIDIA A100-SXM4-80GB": "A100"}  # fmt: skip
    for name, card in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        (peaks,) = peaks_of(CUDA, torch.bfloat16, here=True)
        assert (peaks.name, peaks.bandwidth) == (card, 0.8 * CARDS[card][2])
    (peaks,) = peaks_of(CPU, torch.float32, here=True)
    assert peaks.name == "this CPU"
    assert 1e8 < peaks.single == peaks.half < 1e14
    assert 1e8 < peaks.bandwidth < 1e13


def test_a_plan_states_what_an_earlier_run_measured(capsys, settings, at_work, monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path))
    first = settings | {"--arch": "relu", "--out": at_work / "rates"}
    assert "tokens/s, computed)" in planned(capsys, *flags(first))
    assert bench(*flags(first), "--quiet") == 0
    capsys.readouterr()
    text = planned(capsys, *flags(first | {"--tokens": 6000, "--out": at_work / "more"}))
    rates = json.loads((tmp_path / "rates.json").read_text())
    (rate,) = (rate for key, rate in rates.items() if key.startswith("training") and "1 relu at layer_1" in key)
    assert f"({rate['tokens_per_second']:,.0f} tokens/s, measured here in" in text
    assert text.count("measured here in") == 2
    assert rate["tokens_per_second"] * rate["seconds"] == pytest.approx(20 * 120)


def test_without_losses_no_layer_after_a_site_is_planned():
    lm = LanguageModel(tiny_gemma2(), tiny_tokenizer(), "tiny")
    (site,) = lm.find_sites(["resid_post"], [1])
    config = RunConfig.model_construct(
        archs=(ArchSpec(name="topk"),), context_size=32, model="tiny", tasks=(), earlier=()
    )
    without = LMWork(lm, config.model_copy(update={"tasks": ("reconstruction",)}))
    assert without.evaluation([site]) == 2 * 2 * without.layer, "layers 0 and 1, for the mean and for the SAE"
    assert LMWork(lm, config).evaluation([site]) > (lm.n_layers + 2) * without.layer


def test_a_damaged_file_of_rates_costs_no_run_its_results(settings, at_work, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path))
    (tmp_path / "rates.json").write_text("{cut o")
    settings = settings | {"--arch": "relu", "--out": tmp_path / "run", "--kernels": "sparse", "--screening": "on"}
    assert bench(*flags(settings), "--quiet") == 0
    assert caplog.text.count("rates.json is damaged, unreadable or of an earlier version") == 1
    training = records_of(tmp_path / "run")[0]["sae"]["training"]
    assert (training["kernels"], training["screening"]) == ("sparse", "on")
    assert not {"dense_above", "screen_below"} & set(training), "nothing was measured"


def test_neither_a_stage_of_no_tokens_nor_a_damaged_file_of_rates_keeps_a_run_or_a_plan_from_its_end(
    monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path))
    lm = LanguageModel(tiny_gemma2(), tiny_tokenizer(), "tiny")
    config = RunConfig.build({"archs": ["topk"]})
    saes = [topk(32, 48, 6).describe()]

    def after(n_tokens):
        remember_rate("training", lm, config, saes, n_tokens, time.monotonic() - 10)
        return known_rate("training", lm, config, saes)

    assert after(0) is None, "as where a finished checkpoint is resumed"
    assert after(100).tokens_per_second == pytest.approx(10, rel=0.01)
    (tmp_path / "rates.json").write_text("{")
    assert known_rate("training", lm, config, saes) is None
    assert caplog.text.count("rates.json is damaged, unreadable or of an earlier version") == 1
    assert after(200).tokens_per_second == pytest.approx(20, rel=0.01)


def records_of(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "records").glob("*.json"))]


def test_a_run_on_random_weights_says_so_everywhere(capsys, settings, at_work, gemma2_folder):
    name = f"{gemma2_folder} with random weights (seed 2)"
    control = settings | {"--seed": 2, "--out": at_work / "control"}
    assert name in planned(capsys, *flags(control), "--random-lm")
    assert bench(*flags(control), "--random-lm", "--quiet") == 0
    assert capsys.readouterr().out.startswith(f"CONTROL: {name}, not the trained one\n\narchitecture")
    assert bench(*flags(control | {"--out": at_work / "trained"}), "--quiet") == 0
    assert capsys.readouterr().out.startswith("architecture")
    assert (at_work / "control" / "leaderboard.md").read_text().startswith("# Leaderboard - CONTROL: ")
    assert (at_work / "trained" / "leaderboard.md").read_text().startswith("# Leaderboard\n")
    random, trained = ({(r["provenance"]["model"], r["provenance"]["model_sha256"], r["provenance"]["config_hash"])
                        for r in records_of(at_work / kind)} for kind in ("control", "trained"))  # fmt: skip
    assert {model for model, *_ in random} == {name}
    assert {model for model, *_ in trained} == {str(gemma2_folder)}
    assert all(a != b for a, b in zip(*random, *trained, strict=True))
    assert bench("verify", at_work / "control", "--quiet") == 0
    capsys.readouterr()
    assert bench("table", at_work / "control", at_work / "trained") == 0
    text = capsys.readouterr().out
    assert text.startswith("CONTROL: ")
    assert sum(line.startswith(f"model {name}") for line in text.splitlines()) == 1, "a table under its own name"


def test_runs_that_do_not_ask_for_it_are_called_as_before_there_were_random_weights():
    config = RunConfig.build({"archs": ["topk"]})
    assert "random_lm" not in config.identity
    assert RunConfig.build({"archs": ["topk"], "random_lm": True}).hash != config.hash
