"""What a task is: it declares its metrics, takes in what it is fed, and returns scores. One instance serves one SAE.

A `Task` is about tokens: it is fed every batch of the one evaluation pass. It never runs the language model; it says
what it needs (`needs_lm_loss`), and the pass that feeds all tasks of all SAEs provides it.

A `LatentTask` is about single latents: it is fed the sampled latents that a judge has explained and scored, one after
the other, and none of them if there is no judge. It knows as little of the judge as the others know of the language
model: collecting and judging are the harness's.

A `TextTask` brings text of its own, with labels or whatever else it knows of it (`OwnText`): it says which contexts it
wants, and at which positions, and is fed the activations there. They are captured once for all SAEs of a site.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_bench.evaluation.settings import TextSettings
from sae_bench.lm.activations import KnownFeatures
from sae_bench.records.schema import Metric, Score
from sae_bench.registry import TASKS
from sae_bench.saes.active import Active
from sae_bench.saes.base import SparseAutoencoder


@dataclass(frozen=True)
class Result:
    """What a task found: a score for every metric it declares, and what further analysis needs."""

    scores: dict[str, Score]
    by_document: dict[str, list[float]] = field(default_factory=dict)
    per_latent: dict[str, list[float] | list[int]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    caption: str | None = None
    """What a table with these scores must say below it, without a full stop; the harness puts the site before it."""

    def checked(self) -> "Result":
        """The result, if a record can hold it: what cannot be had is None, with a note.

        Raises:
            ValueError, TypeError: it holds a number that is not finite, or something that is no JSON.
        """
        for name, score in self.scores.items():
            for value in (score.value, score.stderr):
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"{name} is {value}")
        for table in (self.by_document, self.per_latent):
            for name, values in table.items():
                if not all(map(math.isfinite, values)):
                    raise ValueError(f"{name} has values that are not finite")
        json.dumps(self.details, allow_nan=False)
        return self


@dataclass(frozen=True)
class LMLosses:
    """Per predicted token, in nats: cross-entropies of the language model, clean, spliced and ablated."""

    document: Int[Tensor, " m"]
    clean: Float[Tensor, " m"]
    spliced: Float[Tensor, " m"]
    zero_ablated: Float[Tensor, " m"]
    mean_ablated: Float[Tensor, " m"]
    kl: Float[Tensor, " m"]
    """KL(clean || spliced) between next-token distributions."""
    frequency: Int[Tensor, " m"] | None = None
    """How often the word that is predicted occurs among the evaluation tokens; None where nobody has counted."""


@dataclass(frozen=True)
class EvalBatch:
    """The counted tokens of some contexts (special positions are left out) as one SAE sees them."""

    x: Float[Tensor, "n D"]
    f: Active
    x_hat: Float[Tensor, "n D"]
    document: Int[Tensor, " n"]
    losses: LMLosses | None
    """None unless a task of the run has `needs_lm_loss`."""
    position: Int[Tensor, " n"] | None = None
    """Place of each token in its context, from 0 at the BOS; None where activations come from no context."""
    truth: Float[Tensor, "n N"] | None = None
    """How much of each known feature is in x; None unless a task of the run has `needs_truth`."""


@dataclass(frozen=True)
class JudgedLatent:
    """A sampled latent, what a judge made of it by each scorer, and how often which failure came instead of an answer.

    A score is None, with a note, where there is none; it must not enter a mean.
    """

    latent: int
    scores: dict[str, float | None]
    notes: dict[str, str]
    failures: dict[str, int]


@dataclass(frozen=True)
class EvalSetting:
    """What is the same for all batches."""

    sae: SparseAutoencoder
    mean: Float[Tensor, " D"]
    """Mean activation at the site over the whole evaluation set."""
    n_documents: int
    device: torch.device
    siblings: Sequence[SparseAutoencoder] = ()
    """The SAEs of the run that differ from this one in the seed alone, for tasks with `needs_siblings`."""
    world: KnownFeatures | None = None
    """The features that activations are made of, where they are known, for tasks with `needs_truth`."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What is the same for all SAEs at the site, by a name that its task gives it: the first makes it."""


@dataclass(frozen=True)
class Passages:
    """Contexts whose activations a task wants, and where; a task's own subclass says what it knows of them.

    What is captured of all passages of one object is held at once, so few thousand make one object.
    """

    contexts: Sequence[Sequence[int]]
    """Token ids, of any length up to the model's; each begins as the harness's contexts do, with `opening_id`."""
    positions: Sequence[Sequence[int]] | None = None
    """In each context, the positions that are wanted. None: the last one of each."""

    @property
    def wanted(self) -> list[list[int]]:
        """The positions, context by context: the rows of x in this order."""
        if self.positions is None:
            return [[len(context) - 1] for context in self.contexts]
        return [list(of) for of in self.positions]


class OwnText(ABC):
    """The text that a task brings: read once for all SAEs of a run, before a language model is there."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, str]:
        """What decides numbers besides the SAE and the model, by what it is: hashes of contents, choices.

        Records made with another identity are made anew, and boards refuse to mix them.
        """

    @abstractmethod
    def describe(self) -> str:
        """What it is and how much of it, in a line, for `--dry-run`."""

    @abstractmethod
    def passages(self, tokenizer: PreTrainedTokenizerBase, max_context: int) -> Iterable[Passages]:
        """The passages in the language model's tokens; the same, in the same order, at every call."""

    def of_site(self, passages: Passages, x: Float[Tensor, "n D"]) -> Any:
        """What all SAEs of a site share and only x decides, such as probes on x itself; worked out once a site."""
        return None


class BaseTask(ABC):
    """What the kinds of tasks share."""

    name: ClassVar[str]
    """Short name, set by registration."""
    version: ClassVar[str]
    """Raised when a change alters a value; boards refuse to mix versions."""
    metrics: Sequence[Metric]
    """Of the class, or of an instance once it is made."""
    on_request: ClassVar[bool] = False
    """Whether a run without `--tasks` leaves it out."""

    @abstractmethod
    def finish(self) -> Result:
        """Called once, at the end; returns a score for every declared metric."""


class Task(BaseTask):
    """Base of all tasks about tokens."""

    needs_lm_loss: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False
    """Whether it asks for the features that activations are made of: then it applies to a synthetic world alone, and a
    run on a language model leaves it out unless it is asked for."""
    needs_siblings: ClassVar[bool] = False
    """Whether it compares an SAE with those of other seeds: then it is due anew when another seed joins the run."""

    @abstractmethod
    def start(self, setting: EvalSetting) -> None:
        """Called once, before the first batch."""

    @abstractmethod
    def update(self, batch: EvalBatch) -> None:
        """Called for every batch."""


class LatentTask(BaseTask):
    """Base of all tasks about latents that were explained and scored.

    Args:
        scorers: for each scorer of the run a metric of its name, under which `JudgedLatent.scores` has its scores.
    """

    def __init__(self, scorers: Sequence[Metric]) -> None:
        self.scorers = scorers

    @abstractmethod
    def update(self, latent: JudgedLatent) -> None:
        """Called for every judged latent."""


class TextTask(BaseTask):
    """Base of all tasks that bring text of their own. `metrics` are of the class.

    Args:
        text: what `read` returned: one object for all SAEs of a run.
    """

    on_request = True

    chosen_units: ClassVar[bool] = False
    """Whether what it measures decides which units enter its sums: then rounding may choose a few others."""

    def __init__(self, text: Any) -> None:
        self.text = text

    @classmethod
    @abstractmethod
    def read(cls, settings: TextSettings) -> OwnText:
        """Read the task's text.

        Raises:
            UserError: something that it needs is missing, a package or a file; the message says how to get it.
        """

    @abstractmethod
    def update(self, passages: Any, x: Float[Tensor, "n D"], sae: SparseAutoencoder, of_site: Any) -> None:
        """Called for every object that `OwnText.passages` gives, with the raw activations there, row by row.

        `of_site` is what `OwnText.of_site` returned for them.
        """


def default_tasks(*, features_known: bool = True) -> tuple[str, ...]:
    """The tasks of a run that names none; without known features, none of those that ask for them."""
    left_out = {name for name, task in token_tasks(TASKS).items() if task.needs_truth and not features_known}
    return tuple(name for name in TASKS if not TASKS[name].on_request and name not in left_out)


def token_tasks(names: Iterable[str]) -> dict[str, type[Task]]:
    """The tasks about tokens among these; UserError if one of these does not exist."""
    return {name: cls for name in names if issubclass(cls := TASKS[name], Task)}


def latent_tasks(names: Iterable[str]) -> dict[str, type[LatentTask]]:
    """The tasks about latents among these; UserError if one of these does not exist."""
    return {name: cls for name in names if issubclass(cls := TASKS[name], LatentTask)}


def text_tasks(names: Iterable[str]) -> dict[str, type[TextTask]]:
    """The tasks that bring text among these; UserError if one of these does not exist."""
    return {name: cls for name in names if issubclass(cls := TASKS[name], TextTask)}


def read_texts(names: Iterable[str], settings: TextSettings) -> dict[str, OwnText]:
    """The text that each of these tasks brings, if it does; UserError as `TextTask.read`."""
    return {name: cls.read(settings) for name, cls in text_tasks(names).items()}
