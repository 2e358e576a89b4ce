"""Known models have their published shapes; random weights are a class's own; too little memory is said in time."""

import json
from pathlib import Path

import pytest
import torch
from tiny import save_tiny
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sae_bench import device as devices
from sae_bench.errors import UserError
from sae_bench.lm import load
from sae_bench.lm.load import language_model_shape, load_language_model
from sae_bench.lm.model_names import HUB_MODELS, known_shape
from sae_bench.records.names import cache_folder

CPU = torch.device("cpu")
LISTED = [*HUB_MODELS, "demo"]


@pytest.mark.parametrize("name", ["gemma-2-2b", "gemma-2-9b", "gemma-3-270m", "gpt2", "pythia-70m", "pythia-160m"])
def test_a_model_of_the_known_shape_has_the_published_number_of_parameters(name):
    shape = known_shape(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape["config"]))
    assert sum(weight.numel() for weight in model.parameters()) == shape["parameters"]


def test_every_listed_model_is_known_by_its_short_and_its_hub_name():
    assert all(known_shape(name) for name in [*LISTED, *HUB_MODELS.values()])
    assert known_shape("google/gemma-2-9b-it") == known_shape("gemma-2-9b")
    assert known_shape("owner/gemma-2-9b") is None


def test_gemma_caps_its_logits_and_its_windows_alternate():
    config = AutoConfig.for_model(**known_shape("gemma-2-9b")["config"])
    assert (config.final_logit_softcapping, config.attn_logit_softcapping, config.sliding_window) == (30, 50, 4096)
    assert config.layer_types == ["sliding_attention", "full_attention"] * 21


def test_a_cached_configuration_wins_over_the_known_one(monkeypatch, tmp_path):
    folder = save_tiny(tmp_path, "gemma2")
    monkeypatch.setattr(load, "try_to_load_from_cache", lambda *args, **kwargs: str(folder / "config.json"))
    lm = language_model_shape("gemma-2-2b", dtype=torch.float32)
    assert (lm.d_model, lm.n_layers) == (32, 4)
    assert lm.name == "google/gemma-2-2b"


def random_lm(folder: Path, seed: int, dtype: torch.dtype = torch.float32):
    return load_language_model(str(folder), device="cpu", dtype=dtype, random_seed=seed)


def test_random_weights_are_a_seeds_own_and_not_the_checkpoints(gemma2_folder):
    trained = load_language_model(str(gemma2_folder), device="cpu", dtype=torch.float32)
    before = torch.get_rng_state()
    first, again, other = random_lm(gemma2_folder, 0), random_lm(gemma2_folder, 0), random_lm(gemma2_folder, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.weight_hash() == again.weight_hash()
    assert len({trained.weight_hash(), first.weight_hash(), other.weight_hash()}) == 3
    assert first.name == f"{gemma2_folder} with random weights (seed 0)"
    assert random_lm(gemma2_folder, 0, torch.bfloat16).dtype == torch.bfloat16


def test_random_weights_are_those_that_the_class_initialises(gemma2_folder):
    model = random_lm(gemma2_folder, 0).model
    assert model.config.initializer_range == 0.2
    assert model.model.layers[1].mlp.up_proj.weight.std().item() == pytest.approx(0.2, rel=0.05)
    assert not model.model.norm.weight.any()  # Gemma's norms multiply by 1 + weight


def test_random_weights_need_no_checkpoint(tmp_path):
    (save_tiny(tmp_path, "llama") / "model.safetensors").unlink()
    assert random_lm(tmp_path, 3).n_layers == 4


def refuse(*args, **kwargs):
    raise OSError("We couldn't connect to the hub")


def test_a_known_model_is_drawn_without_network_but_for_its_tokenizer(monkeypatch, tokenizer):
    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(UserError, match=r"check the network.*a folder with config\.json and the tok") as error:
        load_language_model("pythia-70m", device="cpu", dtype=torch.bfloat16, random_seed=0)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **kwargs: tokenizer)
    lm = load_language_model("pythia-70m", device="cpu", dtype=torch.bfloat16, random_seed=0)
    assert sum(weight.numel() for weight in lm.model.parameters()) == 70_426_624
    assert lm.name == "EleutherAI/pythia-70m with random weights (seed 0)"
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_language_model("pythia-70m", device="cpu", dtype=torch.bfloat16)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Set the memory that the machine has, in kB, and what the container may have, in bytes."""

    def has(available: int, limit: int | str | None = None, used: int = 0, reclaimable: int = 0) -> None:
        (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {available} kB\n")
        monkeypatch.setattr(devices, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(devices, "CGROUP", tmp_path)
        if limit is not None:
            for name, value in (("max", limit), ("current", used), ("stat", f"anon 5\ninactive_file {reclaimable}")):
                (tmp_path / f"memory.{name}").write_text(f"{value}\n")

    return has


def test_free_memory_is_the_machines_or_the_containers_whichever_is_less(machine, monkeypatch, tmp_path):
    machine(1000)
    assert devices.free_bytes(CPU) == 1000 * 1024
    machine(1000, "max")
    assert devices.free_bytes(CPU) == 1000 * 1024
    machine(1000, 900_000, 500_000, 100_000)
    assert devices.free_bytes(CPU) == 500_000
    monkeypatch.setattr(devices, "MEMINFO", tmp_path / "none")
    assert devices.free_bytes(CPU) is None


@pytest.mark.parametrize("seed", [None, 0])
def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(machine, monkeypatch, gemma2_folder, seed):
    n_bytes = load_language_model(str(gemma2_folder), device="cpu", dtype=torch.float32).n_bytes
    machine(1000, n_bytes)
    load_language_model(str(gemma2_folder), device="cpu", dtype=torch.float32, random_seed=seed)
    machine(1000, n_bytes - 1)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=r"needs 0\.00 GB in float32, and cpu has 0\.00 GB left.*bfloat16") as error:
        load_language_model(str(gemma2_folder), device="cpu", dtype=torch.float32, random_seed=seed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [None, 0])
def test_a_cuda_device_is_asked_for_its_memory(monkeypatch, gemma2_folder, seed):
    monkeypatch.setattr(devices, "has_cuda", lambda device: device.type == "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4096, 1 << 30))
    monkeypatch.setattr(devices, "MEMINFO", Path("none"))
    with pytest.raises(UserError, match=r"cuda has 0\.00 GB left: free some, or try another --device"):
        load_language_model(str(gemma2_folder), device="cuda", dtype=torch.bfloat16, random_seed=seed)


def test_the_demo_model_has_the_known_shape(monkeypatch):
    """Where it was made on this machine already."""
    monkeypatch.delenv("SAE_BENCH_CACHE", raising=False)
    found = sorted(cache_folder().glob("gemma-3-270m-*/config.json"))
    if not found:
        pytest.skip("the demo model was not made here")
    made, known = json.loads(found[0].read_text()), AutoConfig.for_model(**known_shape("demo")["config"]).to_dict()
    for field in ("dtype", "architectures", "transformers_version", "rms_norm_eps", "use_bidirectional_attention"):
        made.pop(field, None)
    assert {name: known.get(name) for name in made} == made
