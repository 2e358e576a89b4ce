"""`--emit saebench`: what the records say, as files of SAEBench's core evaluation, so that its tools show it.

Their names hold their definitions, worked out from our sums with the whole evaluation set as the one batch, for some of
theirs depend on the batch: `mse` is divided by its number of tokens once more, `explained_variance` takes the variance
about zero. -1 is their sign for what was not measured. Our own values stand under our names in the unstructured part.
"""

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_bench.errors import UserError
from sae_bench.formats.saelens import config_of
from sae_bench.records.files import write_json
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Record
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.save import load_sae

NOT_MEASURED = -1.0
MOST_LATENTS = 32_768
"""Up to this width the cosines between all latents are worked out; their number grows with its square."""

TASKS = ("reconstruction", "saebench_core", "delta_lm_loss", "feature_density")
SCHEMA = "0.6.0"
"""The version of SAEBench whose core files these are."""


def emit(folder: RunFolder, records: Sequence[Record]) -> None:
    """Write one file for each SAE that has a record of every task it takes."""
    by_sae: dict[str, dict[str, Record]] = {}
    for record in records:
        if not record.failure:
            by_sae.setdefault(record.sae.id, {})[record.task] = record
    for sae_id, of in by_sae.items():
        if of.keys() >= {*TASKS}:
            path = folder.path / "saebench" / f"{sae_id}_custom_sae_eval_results.json"
            write_json(path, core_result(sae_id, of, load_sae(folder.sae_path(sae_id))))


def core_result(sae_id: str, records: Mapping[str, Record], sae: SparseAutoencoder) -> dict[str, Any]:
    """The content of a file.

    Raises:
        UserError: the records do not say when they were made, which their files do.
    """
    provenance = records["reconstruction"].provenance
    if provenance.time is None:
        raise UserError(
            f"the records of {sae_id} do not say when they were made, as files of SAEBench do: delete them and run the "
            "same command again"
        )
    densities = [count / records["feature_density"].details["n_tokens"] for count in
                 records["feature_density"].per_latent["count"]]  # fmt: skip
    weights = weight_metrics(sae)
    own = {name: score.value for record in records.values() for name, score in record.scores.items()}
    metadata = {"model_name": provenance.model, "hook_name": records["reconstruction"].sae.site.path}
    return {
        "eval_type_id": "core",
        "eval_config": {
            "model_name": provenance.model, "llm_dtype": provenance.lm_dtype, "batch_size_prompts": 1,
            "n_eval_reconstruction_batches": 1, "n_eval_sparsity_variance_batches": 1, "dataset": provenance.dataset,
            "context_size": provenance.config["context_size"], "compute_kl": True, "compute_ce_loss": True,
            "compute_l2_norms": True, "compute_sparsity_metrics": True, "compute_variance_metrics": True,
            "compute_featurewise_density_statistics": True, "compute_featurewise_weight_based_metrics": True,
            "exclude_special_tokens_from_reconstruction": True, "verbose": False,
        },
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{provenance.config_hash}/{sae_id}")),
        "datetime_epoch_millis": int(datetime.datetime.fromisoformat(provenance.time).timestamp() * 1000),
        "eval_result_metrics": metrics(records, own, densities, weights, sae.config.d_in),
        "eval_result_details": [
            {"index": i, "feature_density": density, "consistent_activation_heuristic": NOT_MEASURED}
            | {name: values[i] for name, values in weights.items()}
            for i, density in enumerate(densities)
        ],
        "sae_bench_commit_hash": f"sae-arch-bench {provenance.versions['sae-arch-bench']}",
        "sae_lens_id": "custom_sae",
        "sae_lens_release_id": sae_id,
        "sae_lens_version": "6.0.0",
        "sae_cfg_dict": config_of(sae, metadata),
        "eval_result_unstructured": {
            "sae_arch_bench": own,
            "definitions": "docs/formulas.md of sae-arch-bench; zero ablation keeps special positions clean",
            "eval_fingerprint": provenance.eval_fingerprint,
            "written_for": f"SAEBench {SCHEMA}",
        },
    }  # fmt: skip


def metrics(
    records: Mapping[str, Record],
    own: Mapping[str, float | None],
    densities: Sequence[float],
    weights: Mapping[str, Sequence[float]],
    d_in: int,
) -> dict[str, dict[str, float]]:
    """SAEBench's categories, with its definitions."""
    sums = records["reconstruction"].by_document
    more = records["saebench_core"].by_document
    n = sum(sums["tokens"])
    error = sum(sums["squared_error"]) / n

    def mean(name: str) -> float:
        return float(sum(more[name]) / n)

    known = {name: NOT_MEASURED if value is None else value for name, value in own.items()}
    length = mean("norm_squared")
    about_zero = 1 - error / (length - (length / d_in) ** 2)
    total = sum(densities)
    above = {cut: [density for density in densities if density > cut] for cut in (0.01, 0.1)}
    means = {name: sum(values) / len(values) for name, values in weights.items()}
    return {
        "model_behavior_preservation": {
            "kl_div_score": NOT_MEASURED, "kl_div_with_ablation": NOT_MEASURED, "kl_div_with_sae": known["kl"],
        },
        "model_performance_preservation": {
            "ce_loss_score": known["loss_recovered"], "ce_loss_with_ablation": known["ce_zero"],
            "ce_loss_with_sae": known["ce_spliced"], "ce_loss_without_sae": known["ce_clean"],
        },
        "reconstruction_quality": {
            "explained_variance": about_zero, "explained_variance_legacy": known["explained_variance_legacy"],
            "mse": error / n, "cossim": known["cosine"],
        },
        "shrinkage": {
            "l2_norm_in": mean("norm"), "l2_norm_out": mean("norm_hat"), "l2_ratio": known["l2_ratio"],
            "relative_reconstruction_bias": known["gamma"],
        },
        "sparsity": {"l0": known["l0"], "l1": mean("l1")},
        "token_stats": {
            "total_tokens_eval_reconstruction": records["delta_lm_loss"].scores["ce_clean"].n,
            "total_tokens_eval_sparsity_variance": int(n),
        },
        "misc_metrics": {
            "freq_over_1_percent": len(above[0.01]) / len(densities),
            "freq_over_10_percent": len(above[0.1]) / len(densities),
            "normalized_freq_over_1_percent": sum(above[0.01]) / total if total else 0.0,
            "normalized_freq_over_10_percent": sum(above[0.1]) / total if total else 0.0,
            "average_max_encoder_cosine_sim": means["max_encoder_cosine_sim"],
            "average_max_decoder_cosine_sim": means["max_decoder_cosine_sim"],
            "frac_alive": sum(density > 0 for density in densities) / len(densities),
        },
    }  # fmt: skip


@torch.no_grad()
def weight_metrics(sae: SparseAutoencoder) -> dict[str, list[float]]:
    """SAEBench's metrics of weights alone, for each latent."""
    own = dict(sae.named_parameters())
    rows = own["W_enc"].T if "W_enc" in own else sae.W_dec  # tied
    encoder, decoder = (normalize(W, dim=1, eps=1e-30) for W in (rows, sae.W_dec))
    bias = own.get("b_mag", own.get("b_enc", torch.zeros(len(rows))))  # they take a gated SAE's magnitudes'
    return {
        "encoder_bias": bias.tolist(),
        "encoder_norm": torch.linalg.vector_norm(rows, dim=1).tolist(),
        "encoder_decoder_cosine_sim": (encoder * decoder).sum(1).tolist(),
        "max_decoder_cosine_sim": largest_cosines(decoder),
        "max_encoder_cosine_sim": largest_cosines(encoder),
    }


def largest_cosines(rows: Tensor) -> list[float]:
    """For each row the largest cosine with another one."""
    if not 1 < len(rows) <= MOST_LATENTS:
        return [NOT_MEASURED] * len(rows)
    found = []
    for start in range(0, len(rows), 1024):
        cosines = rows[start : start + 1024] @ rows.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -torch.inf
        found.append(cosines.amax(1))
    return [float(value) for value in torch.cat(found)]
