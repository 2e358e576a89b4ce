"""SAEBench's core evaluation of one saved SAE: its `run_evals`, which is what it does for each SAE, on given contexts.

    {"sae": folder, "contexts": file, "contexts_per_batch": n}  ->  {"seconds": 70, "metrics": {...}, "peak_gib": 12}
    {"result": file}  ->  {"unlike": [...]}                 whether its schema takes a result file, and what it changed

The language model is loaded once, before anything is timed. Contexts come tokenised, and as many as there are are used
by its reconstruction pass and again by its sparsity pass. Its metrics of weights alone, which we do not have, are off.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import TypeAdapter
from sae_bench.evals.core.eval_config import CoreEvalConfig  # type: ignore[import-not-found]
from sae_bench.evals.core.eval_output import CoreEvalOutput  # type: ignore[import-not-found]
from sae_bench.evals.core.main import run_evals  # type: ignore[import-not-found]
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae  # type: ignore[import-not-found]
from sae_lens import SAE  # type: ignore[import-not-found]
from sae_lens.training.activations_store import ActivationsStore  # type: ignore[import-not-found]
from safetensors.torch import load_file
from transformer_lens import HookedTransformer  # type: ignore[import-not-found]

from workers.protocol import peak_gib, serve


def main() -> None:
    setting = json.loads(sys.argv[1])
    torch.set_num_threads(setting["threads"])
    model = HookedTransformer.from_pretrained_no_processing(setting["model"], device="cpu", dtype=torch.float32)
    ignored = {model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, model.tokenizer.bos_token_id}

    def answer(message: Mapping[str, Any]) -> dict[str, Any]:
        if "result" in message:
            content = json.loads(Path(message["result"]).read_text())
            read = asdict(TypeAdapter(CoreEvalOutput).validate_python(content))
            return {"unlike": [name for name in content if json.loads(json.dumps(read[name])) != content[name]]}
        contexts = load_file(message["contexts"])["contexts"]
        n_batches = len(contexts) // message["contexts_per_batch"]
        _, sae, _ = load_and_format_sae("", SAE.load_from_disk(message["sae"]), "cpu")
        config = CoreEvalConfig(
            model_name=setting["model"],
            batch_size_prompts=message["contexts_per_batch"],
            n_eval_reconstruction_batches=n_batches,
            n_eval_sparsity_variance_batches=n_batches,
            context_size=contexts.shape[1],
            compute_kl=True,
            compute_ce_loss=True,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
            exclude_special_tokens_from_reconstruction=True,
        )
        data = Dataset.from_dict({"tokens": contexts.tolist()})
        start = time.perf_counter()
        store = ActivationsStore.from_sae(model, sae, context_size=contexts.shape[1], dataset=data)
        metrics, _ = run_evals(sae, store, model, config, ignore_tokens=ignored)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "metrics": metrics, "peak_gib": peak_gib()}

    serve(answer, ["sae-bench", "sae-lens", "transformer-lens", "torch"])


if __name__ == "__main__":
    main()
