"""The training stage of a run: from its plans, or from its last checkpoint, to SAEs in its folder."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from sae_bench.errors import UserError
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Training
from sae_bench.runs.config import RunConfig, parse_interval
from sae_bench.runs.plan import SAEPlan, training_bytes, training_disk_bytes
from sae_bench.runs.provenance import environment
from sae_bench.saes.kernel_choice import dense_above
from sae_bench.saes.save import save_sae
from sae_bench.training.buffer import ActivationStream
from sae_bench.training.checkpoint import Checkpoint, Checkpoints, Keeper, State, random_state, restore_random_state
from sae_bench.training.logging import LogSink
from sae_bench.training.loop import train
from sae_bench.training.trainer import Trainee

log = logging.getLogger(__name__)

ORDER_SEED = 0
"""Documents come in one order for every run, so that runs on one corpus evaluate on the same tokens."""

FACTS = ("activations_captured", "fingerprint", "passes_over_corpus", "eval_overlap")
"""What an SAE's record says of the text it was trained on; `eval_overlap`: see `shared_runs`."""

STREAM, RANDOM = "stream", "random"
"""Parts of a checkpoint besides the SAEs."""


@dataclass(frozen=True)
class Leg:
    """A training that was finished before `--extend-tokens` went further: its tokens in all, and its configuration."""

    tokens: int
    config_hash: str


def token_stream(lm: LanguageModel, config: RunConfig, split: str, n_tokens: int) -> TokenStream:
    """The run's training or evaluation tokens."""
    return TokenStream(
        config.dataset,
        lm.tokenizer,
        split=split,  # type: ignore[arg-type]
        context_size=config.context_size,
        n_tokens=n_tokens,
        order_seed=ORDER_SEED,
        column=config.text_column,
        max_context=lm.max_context,
        skip_tokens=config.eval_skip if split == "eval" else 0,
    )


def interpretation_stream(lm: LanguageModel, config: RunConfig) -> TokenStream:
    """The tokens that latents are interpreted on: held out, and after those of the evaluation."""
    return TokenStream(
        config.dataset,
        lm.tokenizer,
        split="eval",
        context_size=config.context_size,
        n_tokens=config.interp_tokens_wanted,
        order_seed=ORDER_SEED,
        column=config.text_column,
        max_context=lm.max_context,
        skip_tokens=(config.eval_skip, config.eval_tokens),
        flag="--interp-tokens",
    )


def activation_stream(
    lm: LanguageModel, config: RunConfig, plans: Sequence[SAEPlan], *, first: int = 0
) -> ActivationStream:
    """The one stream of activations for some SAEs, from activation number `first` on."""
    return ActivationStream(
        lm,
        token_stream(lm, config, "train", config.tokens),
        list(dict.fromkeys(plan.site for plan in plans)),
        batch_size=config.batch_size,
        buffer_tokens=config.buffer_tokens,
        reuse=config.reuse,
        seeds=config.seeds,
        reserved_bytes=training_bytes(plans),
        first=first,
    )


class TrainStage:
    """Trains some SAEs of a run; `earlier` are the legs that it extends, if any.

    `start` does what can fail for a reason that the user can mend, before the first step: it reads data, runs the
    model, looks for disk space.
    """

    def __init__(
        self,
        lm: LanguageModel,
        config: RunConfig,
        plans: Sequence[SAEPlan],
        folder: RunFolder,
        progress: Progress,
        earlier: Sequence[Leg] = (),
    ) -> None:
        self.lm, self.config, self.plans, self.folder, self.progress = lm, config, plans, folder, progress
        self.stream = activation_stream(lm, config, plans, first=earlier[-1].tokens if earlier else 0)
        totals = [0, *(leg.tokens for leg in earlier)]
        self._n_before = sum((after - before) * config.reuse // config.batch_size for before, after in pairwise(totals))
        self._earlier = list(earlier)
        if earlier and not self.stream.n_steps:
            raise UserError(f"--tokens {config.tokens}: that is less than one batch more than before: raise it")
        hashes = [config.hash, *(leg.config_hash for leg in reversed(earlier))]
        self._checkpoints = Checkpoints(folder.checkpoints_path, hashes)

    @property
    def n_steps(self) -> int:
        """Steps in all, those of earlier legs included."""
        return self._n_before + self.stream.n_steps

    def start(self) -> None:
        """Find the last checkpoint, if any, and be ready to train from there.

        Raises:
            UserError: the data, the model or the disk do not allow it.
        """
        self._check_disk()
        found = self._checkpoints.load([*(plan.id for plan in self.plans), STREAM, RANDOM])
        above = found.facts["dense_above"] if found else self._crossovers()
        self.trainees = [
            Trainee(
                plan.id,
                plan.build(),
                plan.site,
                plan.config.seed,
                plan.recipe,
                kernels=self.config.kernels,
                compile=self.config.compile,
                dense_above=above.get(_shape(plan)),
            )
            for plan in self.plans
        ]
        self._above, self._n_done = above, 0
        self.stream.tokens.watch = token_stream(self.lm, self.config, "eval", self.config.n_held_out).shared_runs()
        if found is not None:
            self._go_on(found)
            return
        if self._earlier:
            raise UserError(
                f"{self.folder.checkpoints_path} has no whole checkpoint of the training's end, which --extend-tokens "
                "needs: train anew with --overwrite, or in another --out"
            )
        self.stream.start(self.progress)
        for trainee in self.trainees:
            self._prepare(trainee)
            try:
                trainee.initialise(self.stream)
            except Exception as error:  # noqa: BLE001 (whatever it is, the others go on)
                trainee.fail(error, 0)
        self._facts = self._facts_now()

    def _prepare(self, trainee: Trainee) -> None:
        try:
            trainee.prepare(self.n_steps, self.config.batch_size, self.lm.device)
        except torch.OutOfMemoryError:
            raise UserError(
                f"no memory for the {len(self.trainees)} SAEs at once: ask for fewer, or for a smaller --width"
            ) from None

    def _go_on(self, found: Checkpoint) -> None:
        if found.config_hash != self.config.hash and found.step != self._n_before:
            raise UserError("the training that --extend-tokens is to extend has not ended: run the old command first")
        for trainee in self.trainees:
            self._prepare(trainee)
            trainee.load_state_dict(found.parts[trainee.id])
        self._n_done, self._facts = found.step, found.facts
        if found.facts["model"] != (model := self._model()):
            raise UserError(
                f'model "{self.lm.name}" is not the one that the checkpoint was made with (weights or dtype differ: '
                f"{found.facts['model']} -> {model}): bring it back with --revision, or start anew with --overwrite"
            )
        if (now := environment(self.lm.device)) != found.facts["environment"]:
            changed = [key for key in now if now[key] != found.facts["environment"].get(key)]
            log.warning("the checkpoint was made with other %s: bits may differ", " and ".join(changed))
        self.progress.say(f"going on after step {found.step:,} of {self.n_steps:,}")
        state = found.parts[STREAM]
        self.stream.scale = {site: state["scale"][site.name] for site in self.stream.sites}
        self.stream.mean = {site: state["mean"][site.name].to(self.lm.device) for site in self.stream.sites}
        if found.step < self.n_steps:
            if found.step == self._n_before:
                self.stream.start(self.progress)
            else:
                self.stream.resume(state, self.progress)
        restore_random_state(found.parts[RANDOM])

    def _check_disk(self) -> None:
        n_bytes = training_disk_bytes(self.plans)
        own = sum(
            file.stat().st_size for name in ("checkpoints", "saes") for file in (self.folder.path / name).rglob("*.*")
        )
        free = own + shutil.disk_usage(_existing(self.folder.path.absolute())).free
        if free < n_bytes:
            raise UserError(
                f"--out {self.folder.path} needs about {n_bytes / 1e9:.1f} GB for SAEs and checkpoints, and "
                f"{free / 1e9:.1f} GB are free: make room, or choose another --out"
            )

    def _crossovers(self) -> dict[str, float]:
        """For each shape, the density above which dense products are faster; empty unless it is asked for."""
        if self.config.kernels != "auto":
            return {}
        found = {}
        for plan in {_shape(plan): plan for plan in self.plans}.values():
            d_in, d_sae = plan.config.d_in, plan.config.d_sae
            found[_shape(plan)] = dense_above(d_in, d_sae, self.config.batch_size, self.lm.device)
            self.progress.say(
                f"kernels: dense products above {found[_shape(plan)]:.0%} active pairs at {d_in} x {d_sae}"
            )
        return found

    def _take(self, n_done: int) -> tuple[Mapping[str, State], Mapping[str, Any]]:
        """Everything that the step after `n_done` depends on."""
        parts: dict[str, State] = {trainee.id: trainee.state_dict() for trainee in self.trainees}
        parts[STREAM] = self.stream.state_dict(n_done - self._n_before)
        parts[RANDOM] = random_state()
        return parts, self._facts_now()

    def _facts_now(self) -> dict[str, Any]:
        return {
            "activations_captured": self.stream.n_captured,
            "fingerprint": self.stream.tokens.fingerprint,
            "passes_over_corpus": self.stream.tokens.passes,
            "eval_overlap": self.stream.tokens.watch.share if self.stream.tokens.watch else None,
            "dense_above": self._above,
            "environment": environment(self.lm.device),
            "model": self._model(),
        }

    def _model(self) -> dict[str, str]:
        return {"sha256": self.lm.weight_hash(), "dtype": str(self.lm.dtype)}

    def run(self, sink: LogSink) -> None:
        """Train, and save what came of it.

        Raises:
            KeyboardInterrupt: a signal said to stop; a checkpoint is written.
        """
        if self._n_done < self.n_steps:
            keeper = Keeper(self._checkpoints, self._take, **parse_interval(self.config.checkpoint_every))  # type: ignore[arg-type]
            train(self.trainees, self.stream, self.progress, sink, n_done=self._n_done, keeper=keeper)
            self._facts = self._facts_now()
        facts = {name: self._facts[name] for name in FACTS}
        self.progress.say(f"{facts['eval_overlap']:.1%} of the held-out tokens lie in runs of 13 that were trained on")
        for plan, trainee in zip(self.plans, self.trainees, strict=True):
            try:
                trainee.finish(self.stream.scale[plan.site])
            except Exception as error:  # noqa: BLE001 (whatever it is, the others go on)
                trainee.fail(error, self.n_steps)
            n_steps = self.n_steps if trainee.failed_at is None else trainee.failed_at
            training = {
                **facts,
                "tokens_seen": n_steps * self.config.batch_size,
                "n_steps": n_steps,
                "input_scale": self.stream.scale[plan.site],
                "seconds": round(trainee.seconds, 3),
                "kernels": self.config.kernels,
                "dense_above": trainee.dense_above,
                "micro_batch": trainee.micro_batch,
                "steps_skipped": trainee.books.n_skipped,
                "failure": trainee.failure,
                "legs": [asdict(leg) for leg in self._earlier],
            }
            save_sae(
                self.folder.sae_path(plan.id),
                trainee.sae,
                plan.describe().model_copy(update={"training": Training(**training)}),
                sae_metadata(self.lm, self.config, plan.site),
                trainee.log,
                self.config.hash,
            )
            self.folder.drop_stale_records(plan.id)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _shape(plan: SAEPlan) -> str:
    return f"{plan.config.d_in}x{plan.config.d_sae}"


def sae_metadata(lm: LanguageModel, config: RunConfig, site: Site) -> dict[str, Any]:
    """What other tools need to know to use an SAE; hook names are TransformerLens's."""
    hooks = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z"}
    return {
        "model_name": lm.name,
        "hook_name": f"blocks.{site.layer}.{hooks[site.kind]}" if site.kind in hooks else site.path,
        "module_path": site.path,
        "module_side": site.side,
        "prepend_bos": True,
        "context_size": config.context_size,
        "dataset_path": config.dataset,
    }
