"""Which sparse autoencoder architecture is best: trained, evaluated and ranked on one stream of activations.

This module names what a plugin needs. Importing it is cheap: each name is loaded when it is first used.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_bench.autointerp.scorer import Scorer as Scorer
    from sae_bench.evaluation.document_sums import DocumentSums as DocumentSums
    from sae_bench.evaluation.stderr import jackknife_stderr as jackknife_stderr
    from sae_bench.evaluation.stderr import mean_stderr as mean_stderr
    from sae_bench.evaluation.stderr import ratio_stderr as ratio_stderr
    from sae_bench.evaluation.task import EvalBatch as EvalBatch
    from sae_bench.evaluation.task import EvalSetting as EvalSetting
    from sae_bench.evaluation.task import JudgedLatent as JudgedLatent
    from sae_bench.evaluation.task import LatentTask as LatentTask
    from sae_bench.evaluation.task import Result as Result
    from sae_bench.evaluation.task import Task as Task
    from sae_bench.records.schema import Metric as Metric
    from sae_bench.records.schema import Score as Score
    from sae_bench.registry import ARCHITECTURES as ARCHITECTURES
    from sae_bench.registry import SCORERS as SCORERS
    from sae_bench.registry import TASKS as TASKS
    from sae_bench.registry import register_architecture as register_architecture
    from sae_bench.registry import register_scorer as register_scorer
    from sae_bench.registry import register_task as register_task
    from sae_bench.saes.active import Active as Active
    from sae_bench.saes.active import decode as decode
    from sae_bench.saes.active import select as select
    from sae_bench.saes.active import select_all as select_all
    from sae_bench.saes.base import Latents as Latents
    from sae_bench.saes.base import Loss as Loss
    from sae_bench.saes.base import Options as Options
    from sae_bench.saes.base import SAEConfig as SAEConfig
    from sae_bench.saes.base import SparseAutoencoder as SparseAutoencoder
    from sae_bench.saes.base import Step as Step
    from sae_bench.saes.base import active_per_token as active_per_token
    from sae_bench.saes.base import count_per_latent as count_per_latent
    from sae_bench.saes.base import reconstruction_loss as reconstruction_loss
    from sae_bench.saes.base import upper_quantile as upper_quantile

__version__ = "0.1.0"

_NAMES = {
    "autointerp.scorer": ("Scorer",),
    "saes.active": ("Active", "decode", "select", "select_all"),
    "evaluation.document_sums": ("DocumentSums",),
    "registry": ("ARCHITECTURES", "SCORERS", "TASKS", "register_architecture", "register_scorer", "register_task"),
    "saes.base": (
        "Latents", "Loss", "Options", "SAEConfig", "SparseAutoencoder", "Step",
        "active_per_token", "count_per_latent", "reconstruction_loss", "upper_quantile",
    ),
    "evaluation.stderr": ("jackknife_stderr", "mean_stderr", "ratio_stderr"),
    "evaluation.task": ("EvalBatch", "EvalSetting", "JudgedLatent", "LatentTask", "Result", "Task"),
    "records.schema": ("Metric", "Score"),
}  # fmt: skip
_HOME = {name: module for module, names in _NAMES.items() for name in names}

# In an uninstalled checkout the plugin folders stand beside this package; an installed package contains them.
_here = Path(__file__).parent
if not (_here / "architectures").is_dir() and (_here.parent / "architectures").is_dir():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
