"""A run's SAEs as the planner's numbers: bytes as in the dry run, and seconds as computed there or measured here."""

from collections.abc import Collection, Sequence

from sae_bench.autointerp.sample import collection_bytes
from sae_bench.distributed.fleet import CPU, peaks_for
from sae_bench.distributed.planner import CellPlan, plan_cells
from sae_bench.distributed.sharing import pays, share_captures
from sae_bench.distributed.work import Devices, Room, SAEWork, SharedWork, SiteWork
from sae_bench.evaluation.loop import BATCH_BYTES, PAIR_BYTES, WORKING_BYTES
from sae_bench.lm.activations import ActivationModel
from sae_bench.lm.losses import TILE_BYTES
from sae_bench.lm.sites import Site
from sae_bench.runs.config import RunConfig
from sae_bench.runs.costs import LMWork, Peaks, active, encoding_seconds, step_seconds
from sae_bench.runs.dry_run import PROCESS_BYTES
from sae_bench.runs.plan import SAEPlan
from sae_bench.runs.rates import known_part, step_part
from sae_bench.training.serving import buffer_bytes

START_SECONDS = 30.0
"""From a cell's beginning to its first activation - processes, the model's weights, text - until it is measured here:
an assumption."""


def plan_sweep(
    config: RunConfig,
    lm: ActivationModel,
    plans: Sequence[SAEPlan],
    fleet: Sequence[Devices],
    trained: Collection[str] = (),
) -> CellPlan:
    """The cells of a run's SAEs, for a fleet; as `sweep_work`.

    Raises:
        UserError: one SAE alone is too much for a device.
    """
    return plan_cells(*sweep_work(config, lm, plans, fleet, trained), fleet)


def paying_trainers(
    config: RunConfig,
    lm: ActivationModel,
    plans: Sequence[SAEPlan],
    fleet: Sequence[Devices],
    trained: Collection[str] = (),
) -> int:
    """How many devices a shared capture serves where the sweep is done sooner with it; 0 where it is not.

    Those `trained` count, for they are still to be evaluated: that halves on two devices that both work on cells.
    """
    works, shared = sweep_work(config, lm, plans, fleet, trained)
    sharing = share_captures(works, shared, fleet)
    return sharing.n_trainers if sharing and pays(plan_cells(works, shared, fleet), sharing) else 0


def sweep_work(
    config: RunConfig,
    lm: ActivationModel,
    plans: Sequence[SAEPlan],
    fleet: Sequence[Devices],
    trained: Collection[str] = (),
) -> tuple[list[SAEWork], SharedWork]:
    """What every SAE takes on each kind of device, and what every cell takes; those `trained` are so already."""
    speeds = [Speed(config, lm, devices.kind) for devices in fleet]
    work, ctx, word = speeds[0].work, config.context_size, lm.dtype.itemsize
    largest = 4 * max((plan.n_parameters for plan in plans if plan.id not in trained), default=0)
    widest = max((plan.site.d_in for plan in plans), default=0)
    reply = 4 * widest + word * lm.d_model + round(PAIR_BYTES * max((active(plan) for plan in plans), default=0))
    base = PROCESS_BYTES + lm.n_bytes
    tiles = 4 * TILE_BYTES.get(lm.device.type, TILE_BYTES["cuda"])
    working = 2 * word * lm.d_model + WORKING_BYTES * max(widest, lm.d_model) + reply
    sites = {site: _site_work(site, config, lm, speeds) for site in dict.fromkeys(plan.site for plan in plans)}
    works = [
        SAEWork(
            id=plan.id,
            site=sites[plan.site],
            seed=plan.config.seed,
            seconds=tuple(speed.of_sae(plan, trained=plan.id in trained) for speed in speeds),
            lm_seconds=tuple(speed.evaluate(work.after(plan.site)) for speed in speeds),
            n_bytes=_sae_room(plan, config, trained=plan.id in trained),
            trained=plan.id in trained,
        )
        for plan in plans
    ]
    shared = SharedWork(
        start_seconds=tuple(speed.start for speed in speeds),
        pass_seconds=tuple(speed.evaluate(work.clean_pass) for speed in speeds),
        layer_seconds=tuple(speed.capture_layer + speed.evaluate(work.passes_before * work.layer) for speed in speeds),
        capture_seconds=tuple(speed.capture_layer for speed in speeds),
        n_bytes=(
            base + 2 * largest,
            base + tiles + BATCH_BYTES + ctx * working,
            base + (_collection(config, []) if config.collects else 0),
        ),
        lm_bytes=lm.n_bytes,
    )
    return works, shared


class Speed:
    """How long the parts of the work take on one kind of device: as measured here where they were, else computed."""

    def __init__(self, config: RunConfig, lm: ActivationModel, kind: str) -> None:
        self._config, self._lm, self._device = config, lm, lm.device
        self._measured_here = kind == CPU  # a card's steps are not timed one by one
        self._found: dict[str, float | None] = {}
        self.work = LMWork(lm, config)
        self.peaks: Peaks = peaks_for(kind, lm.dtype)
        self.start = 1 / (self._known("start") or 1 / START_SECONDS)
        self.n_steps = config.tokens * config.reuse // config.batch_size
        through = self._known("capture")
        """Tokens that go through one layer in a second."""
        self.capture_layer = config.tokens / through if through else self._computed(config.tokens * self.work.layer)
        self._evaluated = self._known("evaluation")
        self.measured = bool(through and self._evaluated)

    def _known(self, part: str) -> float | None:
        if part not in self._found:
            here = self._measured_here
            self._found[part] = known_part(part, self._lm, self._config, threads=1) if here else None
        return self._found[part]

    def _computed(self, flops: float) -> float:
        return self.peaks.seconds(flops, half=self.work.half)

    def evaluate(self, flops: float) -> float:
        """So many operations of the language model for each held-out token."""
        n_tokens = self._config.n_held_out
        if self._evaluated:
            return n_tokens * flops / self.work.layer / self._evaluated
        return self._computed(n_tokens * flops)

    def of_sae(self, plan: SAEPlan, *, trained: bool = False) -> float:
        """An SAE's steps, its replays, and its own products in evaluation, if the replays as measured hold them not."""
        in_replays = self._evaluated and self.work.has_losses
        own = 0.0 if in_replays else encoding_seconds(plan, self._config.n_held_out, self.peaks)
        return (0.0 if trained else self._steps(plan)) + own + self.evaluate(self.work.after(plan.site))

    def _steps(self, plan: SAEPlan) -> float:
        known = self._known(step_part(plan.arch.label, plan.config.d_in, plan.config.d_sae))
        step = 1 / known if known else step_seconds(plan, self._config.batch_size, self._device, self.peaks)
        return self.n_steps * step


def _site_work(site: Site, config: RunConfig, lm: ActivationModel, speeds: Sequence[Speed]) -> SiteWork:
    buffer = buffer_bytes([site], lm.dtype, config.tokens, config.buffer_tokens, overlap=lm.device.type == "cuda")
    return SiteWork(
        name=site.name,
        depth=min(site.layer + 1, lm.n_layers),
        seconds=tuple(speed.evaluate(speed.work.ablations(site)) for speed in speeds),
        n_bytes=(buffer, config.context_size * (lm.dtype.itemsize + 4) * site.d_in, 0),
        stream_bytes=4 * config.tokens * config.reuse * site.d_in,
    )


def _sae_room(plan: SAEPlan, config: RunConfig, *, trained: bool) -> Room:
    weights = 4 * plan.n_parameters
    training = 0 if trained else 3 * weights
    if not config.collects:
        return training, weights, weights
    latents = _collection(config, [plan.config.d_sae]) - _collection(config, []) + 1  # each is rounded down
    return training, weights, weights + latents


def _collection(config: RunConfig, widths: Sequence[int]) -> int:
    return collection_bytes(config.latents_wanted, widths, config.interp_tokens_wanted, config.context_size)
