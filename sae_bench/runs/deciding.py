"""Which of a run's settings decides what. It is said here alone; docs/growing.md has it as a table.

    ASKED        which SAEs there are, and on which tasks: another command may ask for more in the same folder
    EVALUATION   what they are measured on: more of it is measured anew for all, less of it is refused
    KEPT         what tasks with text of their own read, and latents are collected by: as it was unless it is said
    WAY          how the run goes; no number depends on it, or a record says itself what does
    all others   what each SAE learns from, and how: another value would be another training of all

An SAE's training is known by the hash of these last beside the SAE's own name and recipe, a record by that of them
and EVALUATION. Which other SAEs were asked for is in neither: what they are trained or measured beside changes no bit.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_bench.records.files import digest_of

ASKED = ("archs", "saes", "layers", "sites", "widths", "l0s", "sparsity", "seeds", "tasks", "plugins", "added_recipes")

EVALUATION = ("eval_tokens", "eval_skip", "limit")

KEPT = ("chance", "n_latents", "interp_tokens", "hard_negatives", "probe_sets", "probe_set", "absorption_words")

WAY = (
    *(
        "earlier",
        "called",
        "controls",
        "checkpoint_every",
        "activations_cache",
        "cache_limit",
        "scorers",
    ),  # controls are archs
    *("judge_model", "judge_base_url", "explainer_model", "explainer_base_url", "explainer_excerpts", "judge_excerpts"),
    *("judge_budget", "judge_prices", "judge_concurrency", "judge_timeout", "judge_optional"),
)


class Identified:
    """A run's settings as what they decide is known by."""

    if TYPE_CHECKING:  # what a `RunConfig` has
        dataset: str
        plugins: tuple[str, ...]
        saes: Any
        added_recipes: Any
        world: Any
        random_lm: Any
        seeds: Any
        eval_tokens: Any
        eval_skip: Any
        limit: Any
        n_held_out: Any
        called: Mapping[str, str]
        model: str
        model_fields_set: set[str]
        model_dump: Callable[..., dict[str, Any]]

        @property
        def identity(self) -> dict[str, Any]: ...

    @property
    def asked(self) -> dict[str, Any]:
        """What this command asks for: which SAEs, on which tasks."""
        said = self.model_fields_set  # a site that nobody named does not say where an SAE from elsewhere belongs
        unsaid = {"sites"} - said | (set() if self.added_recipes else {"added_recipes"})
        return self.as_called(self.model_dump(mode="json", include={*ASKED} - unsaid))

    def called_as(self, name: str) -> str:
        """What the run in the folder calls a local file, or whatever else has this name here."""
        return self.called.get(name, name)

    @property
    def folder_name(self) -> str | None:
        """What records call a model in a folder that is at another place than where its run was begun; else None."""
        return self.called.get(self.model) if os.path.isdir(self.model) else None

    def as_called(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings, or some of them, with the run's names for local files."""
        found = dict(settings)
        for name in found.keys() & {"model", "dataset"}:
            found[name] = self.called_as(settings[name])
        for name in found.keys() & {"plugins", "probe_set"}:
            found[name] = [*map(self.called_as, settings[name])]
        if "saes" in found:
            found["saes"] = [{**sae, "source": self.called_as(sae["source"])} for sae in settings["saes"]]
        return found

    @property
    def of_training(self) -> dict[str, Any]:
        """The settings that decide what becomes of an SAE, whichever others there are; see `deciding`."""
        of = {name: value for name, value in self.identity.items() if name not in {*ASKED, *EVALUATION}}
        return of | ({"seeds": [self.seeds[0]]} if self.random_lm else {})  # the language model is drawn from it

    @property
    def of_evaluation(self) -> dict[str, Any]:
        """Those that decide what an SAE's records say, as records repeat them."""
        limit = self.limit if self.n_held_out < self.eval_tokens else None
        return self.of_training | {"eval_tokens": self.eval_tokens, "eval_skip": self.eval_skip, "limit": limit}

    @property
    def by_content(self) -> dict[str, Any]:
        """`identity` with what local files hold in the place of their paths: however these are named, it is one."""
        from sae_bench.lm.corpus import corpus_hash, is_local  # they load numpy, which --help does without
        from sae_bench.lm.model_names import HUB_MODELS
        from sae_bench.records.content import content_hash
        from sae_bench.registry import MODELS

        said: dict[str, Any] = self.identity
        found: dict[str, Any] = {
            "plugins": [content_hash(Path(one)) if os.path.isfile(one) else one for one in self.plugins]
        }
        found["saes"] = [[sae.sha256, "" if os.path.exists(sae.source) else sae.source] for sae in self.saes]
        if self.model not in (*HUB_MODELS, *MODELS) and os.path.isdir(self.model):
            files = sorted(path for path in Path(self.model).rglob("*") if path.is_file())
            names = [path.relative_to(self.model).as_posix() for path in files]
            found["model"] = digest_of(list(zip(names, map(content_hash, files), strict=True)))
        if self.world is None and os.path.exists(os.path.expanduser(self.dataset)) and is_local(self.dataset):
            found["dataset"] = corpus_hash(self.dataset)
        return {**said, **{name: of for name, of in found.items() if of and name in said}}

    @property
    def training_hash(self) -> str:
        """SHA-256 (hex) by which an SAE's files and checkpoints are known."""
        return digest_of(self.of_training)

    @property
    def evaluation_hash(self) -> str:
        """SHA-256 (hex) by which records are known."""
        return digest_of(self.of_evaluation)

    @property
    def collection_hash(self) -> str:
        """SHA-256 (hex) by which collected latents are known: their text comes after that of the evaluation."""
        return digest_of(self.of_evaluation | {"limit": None})
