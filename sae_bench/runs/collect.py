"""Collecting the latents of a run's SAEs, and of the random ones beside them, once for every judge."""

from collections.abc import Collection, Iterable, Sequence

from sae_bench.autointerp.examples import EXCERPT_TOKENS, MIN_FIRED
from sae_bench.autointerp.judges import COLLECTION_VERSION
from sae_bench.autointerp.latents import read_latents, write_latents
from sae_bench.autointerp.random_baseline import RandomSAE, random_baselines
from sae_bench.autointerp.sample import Subject, collect, collection_bytes
from sae_bench.evaluation.task import latent_tasks
from sae_bench.lm.contexts import site_means
from sae_bench.lm.fingerprint import fingerprint
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.config import RunConfig
from sae_bench.runs.latent_records import InterpretedSAE
from sae_bench.runs.sources import interpretation_stream, language_model
from sae_bench.runs.train import Order
from sae_bench.runs.workbench import PlannedSAE, Workbench
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.save import description_of, load_sae


def interpreted(config: RunConfig, saes: Iterable[PlannedSAE], model_fingerprint: str) -> list[InterpretedSAE]:
    """SAEs with the settings that their latents are collected by."""
    shared = {
        "version": COLLECTION_VERSION,
        "config_hash": config.collection_hash,
        "model_fingerprint": model_fingerprint,
        "n_latents": config.latents_wanted,
        "interp_tokens": config.interp_tokens_wanted,
        "hard_negatives": config.hard_negatives,
        "excerpt_tokens": EXCERPT_TOKENS,
        "min_fired": MIN_FIRED,
    }
    return [
        InterpretedSAE(
            sae.description, sae.config, sae.site, shared | {"weights_sha256": sae.description.weights_sha256}
        )
        for sae in saes
    ]


def random_saes(config: RunConfig, saes: Sequence[PlannedSAE]) -> dict[str, PlannedSAE]:
    """The random SAEs that are asked for beside all those of a run; each belongs to the first that it stands for."""
    if not config.chance or not config.collects:
        return {}
    owners: dict[str, str] = {}
    found: dict[str, PlannedSAE] = {}
    for sae in saes:
        (baseline,) = random_baselines([(sae.config, sae.site)])
        random = PlannedSAE(*baseline)
        if owners.setdefault(random.id, sae.id) == sae.id:
            found[sae.id] = random
    return found


def collect_latents(
    bench: Workbench, order: Order, saes: Collection[str], folder: RunFolder, progress: Progress
) -> None:
    """Collect what is missing of some SAEs, given by name, and of the random ones that belong to them."""
    config = order.config
    if not latent_tasks(order.tasks) or not config.collects:
        return
    everything = [PlannedSAE.of(plan) for plan in bench.plans.values()]
    trained = [as_saved(folder, sae) for sae in everything if sae.id in saes]
    random = [sae for owner, sae in random_saes(config, everything).items() if owner in saes]
    without = [
        sae
        for sae in interpreted(config, [*trained, *random], fingerprint(bench.lm.identity()))
        if not sae.failure and read_latents(folder, sae.id, sae.collected_by) is None
    ]
    if without:
        _collect(bench, without, {sae.id for sae in random}, folder, progress)


def as_saved(folder: RunFolder, sae: PlannedSAE) -> PlannedSAE:
    """An SAE with what its files say of it."""
    return PlannedSAE(description_of(folder.sae_path(sae.id)), sae.config, sae.site)


def _collect(
    bench: Workbench, saes: Sequence[InterpretedSAE], random: Collection[str], folder: RunFolder, progress: Progress
) -> None:
    """Collect the latents of some SAEs."""
    config, lm = bench.config, language_model(bench.lm)
    stream, n_latents = interpretation_stream(lm, config), config.latents_wanted
    takes = collection_bytes(n_latents, [sae.config.d_sae for sae in saes], stream.n_tokens, stream.context_size)
    progress.say(
        f"collecting {n_latents} latents of {len(saes)} SAEs from {stream.n_tokens:,} held-out tokens, in about "
        f"{takes / 1e6:,.0f} MB"
    )
    sites = list(dict.fromkeys(sae.site for sae in saes if sae.id in random))
    means = site_means(lm, stream, sites, 1, progress) if sites else {}

    def loaded(sae: InterpretedSAE) -> SparseAutoencoder:
        if sae.id in random:
            return RandomSAE(sae.config).centre(means[sae.site].float().cpu()).to(lm.device)
        return load_sae(folder.sae_path(sae.id), lm.device)

    subjects = [Subject(sae.id, loaded(sae), sae.site) for sae in saes]
    found = collect(lm, stream, subjects, n_latents, progress, hard=config.hard_negatives)
    for sae, collection in zip(saes, found, strict=True):
        write_latents(folder, lm, collection, sae.collected_by)
