"""What the metrics that people ask for first mean, in plain words: the report says them before the definition."""

from sae_bench.errors import one_line
from sae_bench.records.schema import Metric

PLAIN = {
    "delta_lm_loss": "What the language model loses per token when the reconstruction stands in for its activations",
    "loss_recovered_mean": "How much of the prediction survives: 1 as without the SAE, 0 as with a mean activation",
    "loss_recovered": "How much of the prediction survives: 1 as without the SAE, 0 as with no activation at all",
    "kl": "How far the model's predictions move when the reconstruction stands in for its activations",
    "fve": "How much of what varies in the activations is reproduced: 1 is all of it",
    "fvu": "How much of what varies in the activations is not reproduced",
    "l0": "How many latents are on at a time: fewer are easier to read, more reproduce better",
    "gamma_centred": "Size of the reconstruction's deviations beside the activations' own: below 1 it shrinks them",
    "gamma": "Size of the reconstruction beside the activations: below 1 it shrinks them",
    "dead_share": "Latents that are never on: paid for and not used",
    "dense_10pct_share": "Latents that are on so often that they hardly mean one thing",
    "detection": "Can a judge tell from the explanation alone in which texts a latent fires? .5 is chance",
    "detection_auc": "Does a judge find it likelier, by the explanation, where a latent fires? .5 is chance",
    "fuzzing_auc": "Does a judge find it likelier, by the explanation, that the right words are marked? .5 is chance",
    "fuzzing": "Can a judge tell from the explanation whether the marked words are the right ones? .5 is chance",
    "human_yes": "Of how many latents people say that they mean one thing",
    "human_yes_or_maybe": "Of how many latents people say that they mean one thing, or may",
    "human_detection": "Can people who saw a latent's excerpts tell in which others it fires? .5 is chance",
    "f1": "Do latents fire when the features fire that the activations were made of?",
    "mcc": "Do latents point where the features point that the activations were made of?",
}


def explained(metric: Metric) -> str:
    """What a metric is: in plain words if there are some, and as its task defines it."""
    if (plain := PLAIN.get(metric.name)) is None:
        return one_line(metric.description)
    defined = metric.description[:1].upper() + metric.description[1:]
    return one_line(f"{plain}{'' if plain.endswith('?') else '.'} {defined}")
