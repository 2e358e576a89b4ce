"""What SAELens's synthetic data and metrics make of numbers drawn here: what ours are held against.

    PYTHON_WITH_SAE_LENS tests/synthetic/sae_lens_world.py        # writes sae_lens_world.safetensors beside itself

Shapes: 40 features in 12 dimensions, 16 latents, 500 samples; float32; everything from one seed.
"""

from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

SEED, N, D, F, B, RANK = 11, 40, 12, 16, 500, 5
ROOTS, CHILDREN, DEPTH = 4, 3, 2
STEPS, LR = 25, 1e-2


def main():
    from sae_lens.synthetic import activation_generator as generator
    from sae_lens.synthetic import evals
    from sae_lens.synthetic.correlation import LowRankCorrelationMatrix
    from sae_lens.synthetic.feature_dictionary import FeatureDictionary, orthogonalize_embeddings
    from sae_lens.synthetic.firing_probabilities import zipfian_firing_probabilities
    from sae_lens.synthetic.hierarchy import HierarchyConfig, generate_hierarchy

    draw = torch.Generator().manual_seed(SEED)
    start, factor = torch.randn(N, D, generator=draw), 0.2 * torch.randn(N, RANK, generator=draw)
    bias, mean = torch.randn(D, generator=draw), 4 + torch.rand(N, generator=draw)
    found = {"start": start, "factor": factor, "bias": bias, "mean": mean}
    found["directions"] = orthogonalize_embeddings(start, num_steps=STEPS, lr=LR, chunk_size=16)
    found["p"] = p = zipfian_firing_probabilities(N, exponent=0.5, max_prob=0.4, min_prob=5e-4)
    shape = {"total_root_nodes": ROOTS, "branching_factor": CHILDREN, "max_depth": DEPTH}
    for name, portion in (("exclusive", 1.0), ("free", 0.0)):
        config = HierarchyConfig(**shape, mutually_exclusive_portion=portion, scale_children_by_parent=True)
        hierarchy = generate_hierarchy(N, config, seed=0)
        corrected = p * hierarchy.compute_probability_correction_factors(p)
        found[f"compensated.{name}"] = corrected.clamp(max=1.0)

    low_rank = LowRankCorrelationMatrix(factor, 1 - factor.square().sum(1))
    sampler = generator.ActivationGenerator(N, p, correlation_matrix=low_rank)
    torch.manual_seed(SEED)
    found["eps"], found["eta"] = torch.randn(B, RANK), torch.randn(B, N)
    torch.manual_seed(SEED)
    rows = generator._generate_low_rank_correlated_features(
        B, *sampler.low_rank_correlation, sampler.correlation_thresholds, torch.device("cpu")
    )
    found["fires"] = torch.zeros(B, N).index_put(rows, torch.tensor(1.0))

    found["drawn"] = drawn = (mean + torch.randn(B, N, generator=draw)).relu() * (
        torch.rand(B, N, generator=draw) < 0.5
    )
    sampler.mean_firing_magnitudes = mean
    modify = generator._normalize_modifiers(hierarchy.modifier)  # the last: no siblings shut out, which is by lot
    found["a"] = a = modify(drawn, sampler)
    dictionary = FeatureDictionary(N, D, bias=True, initializer=None)
    dictionary.feature_vectors.data, dictionary.bias.data = found["directions"], bias
    found["x"] = dictionary(a).detach()

    found["W_dec"] = rows = torch.randn(F, D, generator=draw) + 2 * found["directions"][:F]
    f = (found["x"] - bias) @ torch.nn.functional.normalize(rows, dim=1).T
    found["f"] = f = torch.where(f > 3, f, 0)
    score = evals.compute_classification_metrics(f, a, rows, found["directions"])
    of_rows = [of(rows, found["directions"]) for of in (evals.mean_correlation_coefficient, evals.feature_uniqueness)]
    found["scores"] = torch.tensor([*of_rows, score.precision, score.recall, score.f1_score])
    about = {"package": f"sae_lens {version('sae_lens')}", "torch": torch.__version__, "seed": str(SEED)}
    found = {name: value.contiguous() for name, value in found.items()}
    save_file(found, Path(__file__).with_suffix(".safetensors"), about)


if __name__ == "__main__":
    main()
