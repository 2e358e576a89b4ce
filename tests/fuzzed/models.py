"""Language models and SAEs, whole and changed."""

import contextlib
import json
from pathlib import Path
from typing import Any

from fuzzed.target import Make, Target, Wrong


def _model(family: str = "gemma2", pieces: str | None = None, **settings: Any) -> Make:
    def make(folder: Path) -> list[Path]:
        from command import write_corpus
        from tiny import FAMILIES, save_tiny, tiny_tokenizer

        model = folder / "model"
        if pieces is None:
            save_tiny(model, family)
        else:
            FAMILIES[family]().save_pretrained(model, max_shard_size=pieces)
            tiny_tokenizer(family).save_pretrained(model)
        if settings:
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps(config | settings))
        write_corpus(Path("../text.jsonl"), 60)  # beside the copies: it is read in once
        return [path for path in model.iterdir() if path.is_file()]

    return make


def _read_model(folder: Path) -> None:
    import torch

    from sae_bench.lm.load import load_language_model

    lm = load_language_model(str(folder / "model"), device="cpu", dtype=torch.float32)
    (site,) = lm.find_sites(["resid_post"], [1])
    tokens = lm.stream("../text.jsonl", split="train", context_size=16, n_tokens=60, order_seed=0,
                       column="text", skip_tokens=(), flag="--tokens", part=None)  # fmt: skip
    for batch in tokens.batches(4):
        (x,) = lm.capture(batch.tokens, [site]).values()
        if not torch.isfinite(x).all():
            raise Wrong("activations that are not finite were not noticed")


QUANTISED = {
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "gptq": {"bits": 4, "group_size": 32, "desc_act": False},
    "awq": {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "fp8": {"activation_scheme": "dynamic", "weight_block_size": [16, 16]},
    "compressed-tensors": {"format": "pack-quantized", "config_groups": {"g": {"targets": ["Linear"]}}},
    "hqq": {"quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
    "torchao": {"quant_type": "int8_weight_only"}, "mxfp4": {"modules_to_not_convert": ["lm_head"]},
    "quanto": {"weights": "int8"}, "eetq": {"weights": "int8"}, "bitnet": {"linear_class": "bitlinear"},
}  # fmt: skip
"""Settings of methods of quantisation, by `quant_method`."""


def _quantised(folder: Path) -> list[Path]:
    """A model in pieces for each method; most need packages that are not installed, and say so."""
    files = []
    for method, settings in QUANTISED.items():
        config = {"quantization_config": {"quant_method": method, **settings}}
        files += _model("llama", "30KB", **config)(folder / method)
    return [path for path in files if path.name == "config.json" or path.suffix != ".json"]


def _read_quantised(folder: Path) -> None:
    """The one that was changed, in a plan and in a run; a whole one may be a line, too, for it was never quantised."""
    import torch

    from sae_bench.errors import UserError
    from sae_bench.lm.load import language_model_shape

    whole = folder.parent / "whole"
    changed = [path for path in folder.rglob("*") if path.is_file()
               and path.read_bytes() != (whole / path.relative_to(folder)).read_bytes()]  # fmt: skip
    for of in {path.parent for path in changed}:
        with contextlib.suppress(UserError):
            language_model_shape(str(of), dtype=torch.float32)
        _read_model(of.parent)


# SAEs


def _sae(kind: str) -> Make:
    def make(folder: Path) -> list[Path]:
        import foreign_files as of

        folder.mkdir(parents=True)
        if kind == "ours":
            from formats.test_hostile_files import saved_sae

            saved_sae(folder)
        elif kind == "dictionary_learning":
            of.write_dictionary_learning(folder / "d", "JumpReluAutoEncoder")
        elif kind == "saelens":
            of.write_saelens(folder / "s", "jumprelu")
        else:
            getattr(of, f"write_{kind.replace('-', '_')}")(folder)
        return [path for path in folder.rglob("*") if path.is_file()]

    return make


def _read_sae(folder: Path) -> None:
    import torch

    from sae_bench.formats.open import find_sources, open_sae

    (below,) = folder.iterdir()
    while len(found := [*below.iterdir()]) == 1 and found[0].is_dir():
        (below,) = found
    (source,) = find_sources(str(below))
    source.sha256()
    sae = open_sae(source).build()
    if not all(torch.isfinite(value).all() for value in sae.parameters()):
        raise Wrong("weights that are not finite were not noticed")
    sae.encode(torch.randn(3, sae.config.d_in))


FORMATS = ("ours", "saelens", "sparsify", "dictionary_learning", "gemma-scope", "gemma-scope-2", "qwen-scope",
           "goodfire", "llama-scope", "llamascopium")  # fmt: skip

LMS = {
    "model": Target(_model(), _read_model, 200),
    "model in pieces": Target(_model("gpt2", "30KB"), _read_model, 200),
    "quantised model": Target(_quantised, _read_quantised, 200),
}
SAES = {f"SAE {kind}": Target(_sae(kind), _read_sae) for kind in FORMATS}
