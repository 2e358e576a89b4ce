"""SAEBench's absorption on given words, activations and probes: its own calculator, and what it makes of the words.

    {"sae": folder, "words": file, "letters": {letter: {"words": [...], "direction": [...], "split": [...]}}}
        ->  {"fraction": {word: 1.0}, "full": {word: true}, "means": {...}}
    {"f1": [...]}  ->  {"n": 2}                             how many latents these F1 of one, two, ... make split ones
    {"word": " stone", "examples": [" apple", ...]}  ->  {"prompt": "..."}

The language model is one that has seen all: it looks a prompt's last word up among the activations of the file. That
words come out of other prompts than SAEBench draws is then all the same to it.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from sae_bench.evals.absorption import feature_absorption as setting  # type: ignore[import-not-found]
from sae_bench.evals.absorption.feature_absorption_calculator import (  # type: ignore[import-not-found]
    FeatureAbsorptionCalculator,
)
from sae_bench.evals.absorption.k_sparse_probing import (  # type: ignore[import-not-found]
    LETTERS,
    add_feature_splits_to_metrics_df,
)
from sae_bench.evals.absorption.main import _aggregate_results_df  # type: ignore[import-not-found]
from sae_bench.evals.absorption.prompting import (  # type: ignore[import-not-found]
    VERBOSE_FIRST_LETTER_TEMPLATE,
    VERBOSE_FIRST_LETTER_TOKEN_POS,
    create_icl_prompt,
)
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae  # type: ignore[import-not-found]
from sae_lens import SAE  # type: ignore[import-not-found]
from safetensors.torch import load_file
from torch import Tensor

from workers.protocol import serve


class SeenAll:
    """What the calculator asks of a language model, answered from activations of words."""

    def __init__(self, x: Mapping[str, Tensor]) -> None:
        self.x = x

    def to_tokens(self, prompt: str) -> Tensor:
        return torch.zeros(1, 1)  # every prompt is as long as the others

    def run_with_cache(self, prompts: Sequence[str], names_filter: Sequence[str]) -> tuple[None, dict[str, Tensor]]:
        asked = VERBOSE_FIRST_LETTER_TEMPLATE.format(word="")
        words = [prompt.rpartition("\n")[2].removesuffix(asked) for prompt in prompts]
        x = torch.stack([self.x[word] for word in words])
        return None, {names_filter[0]: x[:, None].expand(-1, -VERBOSE_FIRST_LETTER_TOKEN_POS, -1)}


def absorption(message: Mapping[str, Any]) -> dict[str, Any]:
    _, sae, _ = load_and_format_sae("", SAE.load_from_disk(message["sae"]), "cpu")
    x = load_file(message["words"])
    calculator = FeatureAbsorptionCalculator(
        model=SeenAll(x),
        icl_word_list=list(x),
        max_icl_examples=10,
        base_template=VERBOSE_FIRST_LETTER_TEMPLATE,
        word_token_pos=VERBOSE_FIRST_LETTER_TOKEN_POS,
        full_absorption_probe_cos_sim_threshold=setting.FULL_ABSORPTION_PROBE_COS_THRESHOLD,
        absorption_fraction_probe_cos_sim_threshold=setting.ABSORPTION_FRACTION_PROBE_COS_THRESHOLD,
        probe_projection_proportion_threshold=setting.ABSORPTION_PROBE_PROJECTION_PROPORTION_THRESHOLD,
        absorption_fraction_max_absorbing_latents=setting.ABSORPTION_FRACTION_MAX_ABSORBING_LATENTS,
    )
    rows = []
    for letter, of in message["letters"].items():
        direction, split = torch.tensor(of["direction"]), of["split"]
        found = calculator.calculate_absorption(sae, of["words"], direction, split, layer=0, show_progress=False)
        rows += [
            {
                "letter": letter, "token": one.word, "absorption_fraction": float(one.absorption_fraction),
                "is_full_absorption": bool(one.is_full_absorption), "num_probe_true_positives": len(of["words"]),
                "split_feats": split,
            }
            for one in found.word_results
        ]  # fmt: skip
    table = pd.DataFrame(rows)
    means = _aggregate_results_df(table)[["mean_absorption_fraction", "full_absorption_rate", "num_split_feats"]].mean()
    fraction = dict(zip(table["token"], table["absorption_fraction"].tolist(), strict=True))
    full = dict(zip(table["token"], table["is_full_absorption"].tolist(), strict=True))
    return {"fraction": fraction, "full": full, "means": means.to_dict()}


def n_split(f1: Sequence[float]) -> int:
    row = {f"f1_sparse_sae_{k}": value for k, value in enumerate(f1, start=1)}
    row |= {f"sparse_sae_k_{k}_feats": torch.arange(k).numpy() for k in range(1, len(f1) + 1)}
    table = pd.DataFrame([{"letter": letter, **row} for letter in LETTERS])
    add_feature_splits_to_metrics_df(table, max_k_value=len(f1))
    return len(table["split_feats"].iloc[0])


def answer(message: Mapping[str, Any]) -> dict[str, Any]:
    if "f1" in message:
        return {"n": n_split(message["f1"])}
    if "word" in message:
        examples = message["examples"]
        prompt = create_icl_prompt(
            message["word"], examples, VERBOSE_FIRST_LETTER_TEMPLATE, max_icl_examples=len(examples),
            shuffle_examples=False, prepend_separator_to_first_example=True,
        )  # fmt: skip
        return {"prompt": prompt.base}
    return absorption(message)


def main() -> None:
    torch.set_num_threads(json.loads(sys.argv[1])["threads"])
    serve(answer, ["sae-bench", "sae-lens", "scikit-learn", "torch"])


if __name__ == "__main__":
    main()
