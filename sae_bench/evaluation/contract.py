"""The contract of tasks: what each must satisfy, built-in or not; `sae_bench.testing` is its door."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sae_bench.evaluation.settings import TextSettings
from sae_bench.evaluation.task import (
    BaseTask,
    EvalBatch,
    EvalSetting,
    JudgedLatent,
    LatentTask,
    LMLosses,
    Passages,
    Result,
    Task,
    TextTask,
)
from sae_bench.lm.tokens import opening_id
from sae_bench.records.schema import Metric
from sae_bench.registry import ARCHITECTURES, TASKS
from sae_bench.saes.active import as_active
from sae_bench.saes.base import SAEConfig, SparseAutoencoder
from sae_bench.saes.kernels import kernels

MAX_CONTEXT = 64
"""The most tokens that the contract's language model takes at once, were there one."""


def check_task(name: str, *, tokenizer: PreTrainedTokenizerBase | None = None, **settings: Any) -> None:
    """Raise AssertionError if the task breaks the contract, be it about tokens, about latents, or with its own text.

    One with text of its own is read with these `settings` (`TextSettings`), and its text made into tokens by
    `tokenizer`, or into bytes without one.
    """
    cls = TASKS[name]
    try:
        require(isinstance(getattr(cls, "version", None), str), 'it declares no version; write version = "1"')
        if issubclass(cls, Task):
            _check_token_task(cls)
        elif issubclass(cls, LatentTask):
            _check_latent_task(cls)
        elif issubclass(cls, TextTask):
            _check_text_task(cls, TextSettings(**settings), tokenizer or _bytes_tokenizer())
        else:
            raise AssertionError("it is neither a Task nor a LatentTask nor a TextTask")
    except AssertionError as error:
        raise AssertionError(f'task "{name}": {error}') from error


def _check_token_task(cls: type[Task]) -> None:
    data, one_token = _EvalData(cls, n_documents=7), _EvalData(cls, n_documents=1)
    _check_metrics(cls)
    result = data.run()
    for of, found in ((data, result), (data, data.run(factor=0.0)), (one_token, one_token.run())):
        _check_result(cls, found, {"by_document": of.setting.n_documents, "per_latent": of.setting.sae.config.d_sae})
    for sizes in ([1] * data.n, [data.n - 9, 9]):
        _require_same_scores(result, data.run(sizes), f"serving {len(sizes)} batches")
    _require_same_scores(result, data.run(dense=True), "an active set that is stored as a matrix")
    _require_same_scores(result, data.run(meanwhile=one_token.run), "another instance at work meanwhile")


def _check_latent_task(cls: type[LatentTask]) -> None:
    scorers = [Metric(name, "up", "", "the score of a scorer") for name in ("one", "other")]

    def run(latents: Sequence[JudgedLatent], meanwhile: Callable[[], object] = lambda: None) -> Result:
        task = cls(scorers)
        _check_metrics(task)
        meanwhile()
        for latent in latents:
            task.update(latent)
        result = task.finish()
        _check_result(task, result, {})
        return result

    scored = [JudgedLatent(i, {"one": i / 10, "other": 0.5}, {}, {}) for i in (3, 5, 8)]
    unscored = JudgedLatent(9, {"one": None, "other": 0.25}, {"one": "too few examples"}, {"refusal": 2})
    result = run([*scored, unscored])
    for latents in ([], [unscored], scored[:1]):
        run(latents)
    _require_same_scores(result, run([unscored, *scored[::-1]]), "another order of latents")
    _require_same_scores(result, run([*scored, unscored], lambda: run(scored)), "another instance at work meanwhile")


def _check_text_task(cls: type[TextTask], settings: TextSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    _check_metrics(cls)
    text = cls.read(settings)
    require(
        dict(cls.read(settings).identity) == dict(text.identity), "what `read` returns has another identity each time"
    )
    require(all(isinstance(of, str) and of for of in text.identity.values()), "identity holds what is no text")
    require(bool(text.identity), "identity is empty: it says by what hash its text is known")
    require("\n" not in text.describe(), "describe() has more than a line")
    everything = list(text.passages(tokenizer, MAX_CONTEXT))
    require(bool(everything), "passages() yields nothing")
    for passages in everything:
        _check_passages(passages, opening_id(tokenizer))
    again = [one.contexts for one in text.passages(tokenizer, MAX_CONTEXT)]
    same = [list(map(list, one)) for one in again] == [list(map(list, one.contexts)) for one in everything]
    require(same, "passages() gives other contexts at a second call")
    sae = ARCHITECTURES["relu"](SAEConfig(d_in=6, d_sae=24, l0=3)).requires_grad_(False)
    silent = ARCHITECTURES["relu"](SAEConfig(d_in=6, d_sae=24, l0=3)).requires_grad_(False)
    silent.b_enc[:] = -1e9
    x = [_embedded(passages) for passages in everything]

    def run(of: SparseAutoencoder, meanwhile: Callable[[], object] = lambda: None) -> Result:
        task = cls(text)
        for i, passages in enumerate(everything):
            task.update(passages, x[i].clone(), of, text.of_site(passages, x[i].clone()))
            if i == 0:
                meanwhile()
        result = task.finish()
        _check_result(task, result, {"per_latent": of.config.d_sae})
        return result

    with torch.no_grad():
        result = run(sae)
        run(silent)
        _require_same_scores(result, run(sae), "a second run")
        _require_same_scores(result, run(sae, lambda: run(silent)), "another instance at work meanwhile")


def _check_passages(passages: Passages, opening: int) -> None:
    wanted = passages.wanted
    require(len(wanted) == len(passages.contexts) > 0, "passages have no contexts, or not positions for each")
    for context, positions in zip(passages.contexts, wanted, strict=True):
        require(0 < len(context) <= MAX_CONTEXT, f"a context has {len(context)} tokens, of at most {MAX_CONTEXT}")
        require(context[0] == opening, f"a context begins with {context[0]}, not with opening_id, {opening}")
        inside = all(0 <= at < len(context) for at in positions)
        require(inside, f"positions {list(positions)} of a context of {len(context)}; count from 0")


def _embedded(passages: Passages) -> Float[Tensor, "n D"]:
    """Activations of no model, but of the tokens: a random vector of each, that before it weighing half."""
    table = 5 * scaled_activations(1024, 6, seed=0)
    rows = []
    for context, positions in zip(passages.contexts, passages.wanted, strict=True):
        vectors = table[torch.tensor(list(context)) % len(table)]
        rows += [vectors[at] + vectors[max(at - 1, 0)] / 2 for at in positions]
    return torch.stack(rows)


def _bytes_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer whose words are bytes."""
    alphabet = ["<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>")


def _check_metrics(task: BaseTask | type[BaseTask]) -> None:
    metrics = getattr(task, "metrics", ())
    require(bool(metrics) and all(isinstance(metric, Metric) for metric in metrics), "it declares no metrics")
    names = [metric.name for metric in metrics]
    require(len(set(names)) == len(names), f"it declares a metric twice: {names}")


def _check_result(task: BaseTask | type[BaseTask], result: Result, lengths: Mapping[str, int]) -> None:
    """`lengths` of the values in a table of the result."""
    declared, found = {metric.name for metric in task.metrics}, set(result.scores)
    require(found == declared, f"finish() lacks {declared - found or 'nothing'}, adds {found - declared or 'nothing'}")
    for name, score in result.scores.items():
        require(score.value is not None or bool(score.note), f"{name} is None without a note; say why it is undefined")
        for number in (score.value, score.stderr):
            require(number is None or math.isfinite(number), f"{name} is {score}; what cannot be had is None")
    for table, length in lengths.items():
        for name, values in getattr(result, table).items():
            require(len(values) == length, f"{table}[{name!r}] has {len(values)} values instead of {length}")
    try:
        json.dumps(asdict(result), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"the result is no JSON ({error}); use plain lists, and None for NaN") from error


class _EvalData:
    """Random activations of some documents; the first has one token, and hence nothing to predict."""

    def __init__(self, cls: type[Task], n_documents: int) -> None:
        self.cls = cls
        self.document = torch.arange(n_documents).repeat_interleave(torch.arange(n_documents) * 3 + 1)
        self.n = len(self.document)
        self.x = 5 * scaled_activations(self.n, 6, seed=0)
        sae = ARCHITECTURES["relu"](SAEConfig(d_in=6, d_sae=24, l0=3)).requires_grad_(False)
        sae.b_enc[:2] = -1e9  # two dead latents
        self.losses = 3 + torch.rand(5, self.n, generator=torch.Generator().manual_seed(0))
        other = ARCHITECTURES["relu"](SAEConfig(d_in=6, d_sae=24, l0=3, seed=1)).requires_grad_(False)
        siblings = (other,) if cls.needs_siblings else ()
        world = _World(self.x) if cls.needs_truth else None
        self.setting = EvalSetting(sae, self.x.double().mean(0), n_documents, torch.device("cpu"), siblings, world)

    @torch.no_grad()
    def run(
        self,
        sizes: Sequence[int] | None = None,
        *,
        factor: float = 0.9,
        dense: bool = False,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Result:
        """What the task finds in batches of these sizes, where x_hat is `factor` times what the SAE decodes."""
        task = self.cls()
        task.start(self.setting)
        meanwhile()
        for rows in torch.arange(self.n).split(list(sizes or [self.n])):
            x, document = self.x[rows], self.document[rows]
            with kernels("dense" if dense else "sparse"):
                f = as_active(self.setting.sae.encode(x))
            x_hat = factor * self.setting.sae.decode(f)
            predicts = document > 0
            losses = LMLosses(document[predicts], *self.losses[:, rows][:, predicts]) if task.needs_lm_loss else None
            truth = self.x[rows].relu() if task.needs_truth else None
            task.update(EvalBatch(x, f, x_hat, document, losses, truth=truth))
        return task.finish()


@dataclass(frozen=True)
class _World:
    """Features that are the axes."""

    x: Float[Tensor, "n D"]

    @property
    def features(self) -> Float[Tensor, "D D"]:
        return torch.eye(self.x.shape[1])

    @property
    def bias(self) -> Float[Tensor, " D"]:
        return torch.zeros(self.x.shape[1])

    def truth(self, tokens: Int[Tensor, "n S"]) -> Float[Tensor, "n D"]:
        return self.x[tokens[:, 0]].relu()


def _require_same_scores(one: Result, other: Result, change: str) -> None:
    for name in one.scores:
        for field in ("value", "stderr", "n"):
            a, b = (getattr(result.scores[name], field) for result in (one, other))
            same = a == b if None in (a, b) else math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
            require(same, f"{change} turns {name}'s {field} from {a} into {b}; keep sums on self, divide in finish()")


def scaled_activations(n: int, d_in: int, seed: int) -> Float[Tensor, "n D"]:
    """Tokens with a large common mean and E||x||^2 = 1, as the trainer serves them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_in, generator=generator) + 3 * torch.randn(d_in, generator=generator)
    return x / x.square().sum(1).mean().sqrt()


def require(holds: bool, complaint: str) -> None:
    if not holds:
        raise AssertionError(complaint)
