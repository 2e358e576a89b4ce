"""The training stage of a run: from its plans, or from its last checkpoint, to SAEs in its folder."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch

from sae_bench.device import trim_memory
from sae_bench.errors import UserError
from sae_bench.formats import ours
from sae_bench.formats.hook_names import HOOKS
from sae_bench.lm.activations import ActivationModel
from sae_bench.lm.fingerprint import differences
from sae_bench.lm.sites import Site
from sae_bench.progress import Progress
from sae_bench.records.files import of_our_form
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import SAEDescription, Training
from sae_bench.runs.config import RunConfig, parse_interval
from sae_bench.runs.kernels import shape_of
from sae_bench.runs.plan import SAEPlan, training_bytes
from sae_bench.runs.provenance import changed_environment, environment
from sae_bench.runs.rates import remember_parts, remember_rate, step_part
from sae_bench.runs.records import where_kept
from sae_bench.runs.sources import own_capture
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.kernels import Crossovers
from sae_bench.training.buffer import ActivationBuffer
from sae_bench.training.checkpoint import Checkpoint, Checkpoints, CheckpointSaver, State, checkpointed
from sae_bench.training.initial_values import INIT_SAMPLE
from sae_bench.training.logging import LogSink
from sae_bench.training.loop import train
from sae_bench.training.recipe import Recipe
from sae_bench.training.serving import Key, Scaling, Serving
from sae_bench.training.source import ActivationSource, OpenSource, TextFacts
from sae_bench.training.trainer import SAETrainer, StepSettings, seed_random_numbers

log = logging.getLogger(__name__)

BUFFER = "stream"
"""The part of a checkpoint besides the SAEs."""


@dataclass(frozen=True)
class Leg:
    """A training that was finished before `--extend-tokens` went further: its tokens in all, and its configuration."""

    tokens: int
    config_hash: str


@dataclass(frozen=True)
class Order:
    """What is to be done for every SAE of a run, whichever others are worked on beside it."""

    config: RunConfig
    tasks: tuple[str, ...]
    earlier: tuple[Leg, ...] = ()
    """The legs that the training extends, if any."""
    kernels: Mapping[str, Crossovers] = field(default_factory=dict)
    """As in `RunOutline`."""
    elsewhere: str = ""
    """In what versions, device and threads are others than those that the run was begun with; empty if none."""
    model_fingerprint: str = ""
    """Of the language model that all of it is done with; empty: whichever is there."""


class TrainStage:
    """Trains some SAEs of a run, with checkpoints in a folder of their own.

    Activations are captured here, or come from what `open_source` opens.

    To make one finds the last checkpoint, if any, and does what can fail for a reason that the user can mend, before
    the first step: it reads data and runs the model. `cell` names the checkpoints' folder; empty: that of the whole
    run in one process. `saved` is called after each checkpoint.

    Raises:
        UserError: the data or the model do not allow it.
    """

    def __init__(
        self,
        lm: ActivationModel,
        order: Order,
        plans: Sequence[SAEPlan],
        folder: RunFolder,
        progress: Progress,
        cell: str = "",
        saved: Callable[[], None] = lambda: None,
        open_source: OpenSource | None = None,
    ) -> None:
        config, earlier = order.config, order.earlier
        self.lm, self.config, self.plans, self.folder, self.progress = lm, config, plans, folder, progress
        self._earlier, self._started = list(earlier), time.monotonic()
        seeds = list(dict.fromkeys(plan.config.seed for plan in plans))
        serving = Serving(
            config.batch_size,
            config.buffer_tokens,
            config.reuse,
            seeds,
            reserved_bytes=training_bytes(plans),
            first=earlier[-1].tokens if earlier else 0,
        )
        totals = [0, *(leg.tokens for leg in earlier)]
        self._n_before = sum((after - before) * config.reuse // config.batch_size for before, after in pairwise(totals))
        self.n_steps = self._n_before + serving.n_steps(config.tokens)
        """Steps in all, those of earlier legs included."""
        if earlier and self.n_steps == self._n_before:
            raise UserError(f"--tokens {config.tokens}: that is less than one batch more than before: raise it")
        hashes = [config.training_hash, *(leg.config_hash for leg in reversed(earlier))]
        names, root = [plan.id for plan in plans], folder.checkpoints_path
        elsewhere = [root] if cell and checkpointed(root).issuperset(names) else []  # made in one process
        self._checkpoints = Checkpoints(root / cell, hashes, elsewhere, saved)
        found = self._checkpoints.load([*names, BUFFER])
        self._kernels = order.kernels
        self._remarks = [f"trained elsewhere than the run was begun: {order.elsewhere}"] if order.elsewhere else []
        if found:
            self._kernels = {shape: Crossovers(**at) for shape, at in found.facts["kernels"].items()}
        self._check_checkpoint(found)
        self._n_done = found.step if found else 0
        open_source = open_source or own_capture(lm, config, progress)
        sites = list(dict.fromkeys(plan.site for plan in plans))
        self.source: ActivationSource | None = None  # where the training has ended
        if found is None:
            self.source = open_source(sites, serving)
            self._scaling = self.source.scaling
            self.trainers = [self._begun(plan, self.source) for plan in plans]
            self._facts = self._facts_now()
            return
        with of_our_form(root / cell):
            self._scaling = Scaling.of_state(found.parts[BUFFER], sites, lm.device)
        if found.step == self._n_before < self.n_steps:
            self.source = open_source(sites, serving, scaling=self._scaling)
        elif found.step < self.n_steps:
            self.source = open_source(sites, serving, state=found.parts[BUFFER])
        with of_our_form(root / cell, RuntimeError), self._memory_for_all():
            self.trainers = [SAETrainer(*self._what(plan), found.parts[plan.id]) for plan in plans]
        self._facts = found.facts

    def _begun(self, plan: SAEPlan, source: ActivationSource) -> SAETrainer:
        """An SAE's trainer, with initial values from the data."""
        with self._memory_for_all():
            trainer = SAETrainer(*self._what(plan))
        try:
            trainer.initialise(source.scaling.mean[plan.site], source.sample(plan.site, INIT_SAMPLE))
        except Exception as error:  # noqa: BLE001 (whatever it is, the others go on)
            trainer.fail(error, 0)
        trim_memory(self.lm.device)  # the sample is gone, and what stays lies between its pieces
        return trainer

    def _what(self, plan: SAEPlan) -> tuple[str, SparseAutoencoder, Key, Recipe, StepSettings]:
        """What a trainer is made of."""
        config, at = self.config, self._kernels.get(shape_of(plan))
        seed_random_numbers(plan.id, -1)
        settings = StepSettings(
            self.n_steps, config.batch_size, self.lm.device, config.kernels, at, config.compile, config.screening
        )
        return plan.id, plan.build(), (plan.site, plan.config.seed), plan.recipe, settings

    @contextmanager
    def _memory_for_all(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise UserError(
                f"no memory for the {len(self.plans)} SAEs at once: ask for fewer, or for a smaller --width"
            ) from None

    def _check_checkpoint(self, found: Checkpoint | None) -> None:
        """Raise UserError if the training cannot go on from it, and say that it goes on."""
        if found is None:
            if self._earlier:
                raise UserError(
                    f"{self.folder.checkpoints_path} has no whole checkpoint of the training's end, which "
                    "--extend-tokens needs: train anew with --overwrite, or in another --out"
                )
            return
        if found.config_hash != self.config.training_hash and found.step != self._n_before:
            raise UserError("the training that --extend-tokens is to extend has not ended: run the old command first")
        if other := differences(found.facts["model"], self._model()):
            raise UserError(
                f'model "{self.lm.name}" is not the one that the checkpoint was made with ({"; ".join(other)}): bring '
                "it back, with --revision if it is on the hub, or start anew with --overwrite"
            )
        was, now = found.facts.get("recipes", {}), self._recipes()  # some of its SAEs may be whole, and not be here
        if other := differences({sae: was.get(sae, recipe) for sae, recipe in now.items()}, now):
            raise UserError(
                f"the checkpoint was made with another recipe ({'; '.join(other)}): bring it back, or --overwrite"
            )
        self._remarks = list(found.facts.get("remarks", ()))
        changed = changed_environment(found.facts["environment"], environment(self.lm.device))
        if changed and found.step < self.n_steps:
            log.warning("the checkpoint was made elsewhere (%s): bits may differ", changed)
            self._remarks.append(f"training went on elsewhere after step {found.step:,}: {changed}; bits may differ")
        self.progress.say(f"going on after step {found.step:,} of {self.n_steps:,}")

    def _take(self, n_done: int) -> tuple[Mapping[str, State], Mapping[str, Any]]:
        """Everything that the step after `n_done` depends on."""
        assert self.source is not None, "the training has ended"
        parts: dict[str, State] = {trainer.id: trainer.state_dict() for trainer in self.trainers}
        parts[BUFFER] = self.source.state_dict(n_done - self._n_before)
        return parts, self._facts_now()

    def _facts_now(self) -> dict[str, Any]:
        assert self.source is not None, "the training has ended"
        return {
            **self.source.facts()._asdict(),
            "kernels": {shape: at._asdict() for shape, at in self._kernels.items()},
            "environment": environment(self.lm.device),
            "model": self._model(),
            "recipes": self._recipes(),
            "remarks": self._remarks,
        }

    def _recipes(self) -> dict[str, dict[str, Any]]:
        return {plan.id: plan.describe().whole_recipe for plan in self.plans}

    def _model(self) -> dict[str, Any]:
        return {**self.lm.identity(), "precision": self.lm.precision}

    def run(self, sink: LogSink) -> None:
        """Train, and save what came of it.

        Raises:
            KeyboardInterrupt: a signal said to stop; a checkpoint is written.
        """
        if self.source is not None:
            saver = CheckpointSaver(self._checkpoints, self._take, **parse_interval(self.config.checkpoint_every))  # type: ignore[arg-type]
            train(self.trainers, self.source, self.progress, sink, n_done=self._n_done, saver=saver)
            self._facts = self._facts_now()
            n_tokens, saes = (self.n_steps - self._n_done) * self.config.batch_size, [p.describe() for p in self.plans]
            remember_rate("training", self.lm, self.config, saes, n_tokens, self._started)
            if isinstance(self.source, ActivationBuffer) and self.lm.device.type == "cpu" and not self._n_done:
                self._remember_parts(self.source)  # the host waited for all that it timed
        if (overlap := self._facts["eval_overlap"]) is not None:
            self.progress.say(f"{overlap:.1%} of the held-out tokens lie in runs of 13 that were trained on")
        for plan, trainer in zip(self.plans, self.trainers, strict=True):
            self._save(plan, trainer)

    def _remember_parts(self, buffer: ActivationBuffer) -> None:
        n_layers = min(max(plan.site.layer for plan in self.plans) + 1, self.lm.n_layers)
        rest = time.monotonic() - self._started - buffer.capture_seconds - sum(one.seconds for one in self.trainers)
        parts = {"capture": (float(buffer.n_captured * n_layers), buffer.capture_seconds), "start": (1.0, rest)}
        for plan, trainer in zip(self.plans, self.trainers, strict=True):
            part = step_part(plan.arch.label, plan.config.d_in, plan.config.d_sae)
            n_steps, seconds = parts.get(part, (0.0, 0.0))
            parts[part] = n_steps + self.n_steps * (trainer.failure is None), seconds + trainer.seconds
        remember_parts(self.lm, self.config, parts)

    def _save(self, plan: SAEPlan, trainer: SAETrainer) -> None:
        scale = self._scaling.scale[plan.site]
        try:
            trainer.finish(scale)
        except Exception as error:  # noqa: BLE001 (whatever it is, the others go on)
            trainer.fail(error, self.n_steps)
        n_steps = self.n_steps if trainer.failed_at is None else trainer.failed_at
        n_steps *= trainer.sae.is_trained
        training = {
            **{name: self._facts[name] for name in TextFacts._fields},
            "tokens_seen": n_steps * self.config.batch_size,
            "n_steps": n_steps,
            "input_scale": scale,
            "seconds": round(trainer.seconds, 3),
            "kernels": self.config.kernels,
            "screening": self.config.screening,
            **(trainer.crossovers._asdict() if trainer.crossovers else {}),
            "micro_batch": trainer.micro_batch,
            "steps_skipped": trainer.stats.n_skipped,
            "failure": trainer.failure,
            "remarks": self._remarks,
            "overlap_of": self.config.evaluation_hash,
            "legs": [asdict(leg) for leg in self._earlier],
            **where_kept(self.lm),
        }
        description = plan.describe().model_copy(update={"training": Training(**training)})
        write_sae(self.folder, self.config, self.lm, plan.site, trainer.sae, description, trainer.log)


def write_sae(
    folder: RunFolder, config: RunConfig, lm: ActivationModel, site: Site, sae: SparseAutoencoder,
    description: SAEDescription, log: Iterable[Mapping[str, float | int]] = (),
) -> None:  # fmt: skip
    """Write an SAE into the run's folder, with what other tools need to know to use it; TransformerLens names hooks."""
    metadata = {
        "model_name": lm.name,
        "hook_name": f"blocks.{site.layer}.{HOOKS[site.kind]}" if site.kind in HOOKS else site.path,
        "module_path": site.path,
        "module_side": site.side,
        "prepend_bos": True,
        "context_size": config.context_size,
        "dataset_path": config.called_as(config.dataset),
        **({"model_from_pretrained_kwargs": {"center_writing_weights": True}} if site.centred else {}),
    }
    ours.write(folder.sae_path(description.id), sae, description, metadata, log, config.training_hash)
    folder.drop_stale_records(description.id)
