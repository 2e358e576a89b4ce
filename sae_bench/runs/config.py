"""A run as data: frozen, validated, hashed. Flags and suite files both end here, and records repeat it in full.

A preset, `short` or `paper`, fills in what is not said: sizes here, the rest in `training.recipe`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from sae_bench.autointerp.settings import DEFAULT_TOKENS, JudgeConfig
from sae_bench.errors import UserError, did_you_mean
from sae_bench.evaluation.settings import TextSettings
from sae_bench.parsing import Bytes, Count, Flag, Heading, parse_count, parse_layers
from sae_bench.records.files import digest_of
from sae_bench.records.names import file_name
from sae_bench.runs.arch_spec import ArchSpec, Strict
from sae_bench.runs.contradictions import Consistent
from sae_bench.runs.deciding import ASKED, KEPT, WAY, Identified
from sae_bench.runs.tuned import TunedRecipe
from sae_bench.synthetic.settings import WorldSettings, is_synthetic, run_defaults, world_settings
from sae_bench.training.recipe import Preset

HUB_DATASET = "monology/pile-uncopyrighted"
"""What models from the hub are trained on unless told otherwise, as Gemma Scope was trained on the Pile."""


def parse_interval(text: str) -> dict[str, float | int]:
    """Read a time as {"seconds": 600.0} ("10m"; s, m, h), or a number of steps as {"steps": 600} ("600")."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if not match or not float(match[1]) or ("." in match[1] and not match[2]):
        raise ValueError(f"{text!r} is neither a time nor a number of steps: write 10m, 30s or 1000")
    if not match[2]:
        return {"steps": int(match[1])}
    return {"seconds": float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]}


def _absolute(path: object) -> object:
    """A folder as it is called from elsewhere, too."""
    return str(Path(path).expanduser().absolute()) if isinstance(path, str) and path else path


def _checked_interval(text: object) -> str:
    parse_interval(str(text))
    return str(text)


_RUN_DEFAULTS: dict[Preset, dict[str, Any]] = {
    "paper": {
        "tokens": 8_000_000_000, "eval_tokens": 1_000_000, "context_size": 1024, "batch_size": 4096,
        "buffer_tokens": 1_000_000, "reuse": 1, "widths": (131_072,), "l0s": (50.0,),
    },
    "short": {
        "tokens": 65_536, "eval_tokens": 4096, "context_size": 128, "batch_size": 1024,
        "buffer_tokens": 262_144, "reuse": 8, "widths": (2048,), "l0s": (32.0,),
    },
}  # fmt: skip


class ImportedSAE(Strict):
    """An SAE that is evaluated and not trained: where it is from, and the hash of its files."""

    source: str
    sha256: str


class RunConfig(Identified, Consistent, JudgeConfig, TextSettings):
    """Everything that decides the numbers of a run. A field with a `Flag` is all that a setting needs."""

    archs: Annotated[tuple[Annotated[ArchSpec, BeforeValidator(ArchSpec.parse)], ...], Flag(Heading.WHAT, "arch")]
    """Architectures, or all; with settings: gated:penalty=ri_l1,lr=5e-4. Default: all; none with --sae."""
    controls: Annotated[bool, Field(strict=True), Flag(Heading.WHAT)] = False
    """Add all controls: what no learning, or less of it, reaches. They may be named with --arch, too."""
    saes: Annotated[tuple[ImportedSAE, ...], Flag(Heading.WHAT, "sae")] = ()
    """SAEs from elsewhere to evaluate: files, folders, globs, runs, gemma-scope:9b-pt-res/layer_20/..., or
    hf:owner/repo/path. Their site is read off them; where they do not say it, --layer and --site have to."""
    model: Annotated[str, Flag(Heading.MODEL)] = "demo"
    """Short name (see `ls models`), Hugging Face name, or folder; or a synthetic world of known features: synthetic,
    synthetic:full, or synthetic:FILE.toml."""
    random_lm: Annotated[bool, Flag(Heading.MODEL)] = False
    """Draw the model's weights anew, from the first --seed: a control. Boards say so."""
    layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(parse_layers), Flag(Heading.MODEL, "layer")
    ] = ()
    """Decoder layers, from 0: 9, 0-17, or all. Default: the middle one."""
    sites: Annotated[tuple[str, ...], Field(min_length=1), Flag(Heading.MODEL, "site")] = ("resid_post",)
    """resid_post, mlp_out, attn_out, all for these three, another kind of `ls sites`, or path:MODULE."""
    widths: Annotated[tuple[Count, ...], Field(min_length=1), Flag(Heading.SAES, "width")]
    """Numbers of latents: 4096, 16k."""
    l0s: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Flag(Heading.SAES, "l0")] = ()
    """Wanted L0s; every architecture is brought to each."""
    sparsity: Annotated[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...], Flag(Heading.SAES)] = ()
    """Raw sparsity coefficients (k for topk) instead of --l0."""
    tokens: Annotated[Count, Flag(Heading.DATA)]
    """Activations captured for training."""
    reuse: Annotated[Count, Flag(Heading.DATA)]
    """Times each captured activation is trained on."""
    eval_tokens: Annotated[Count, Flag(Heading.DATA)]
    """Held-out tokens, the same for every SAE."""
    eval_skip: Annotated[int, BeforeValidator(parse_count), Field(ge=0), Flag(Heading.DATA)] = 0
    """Held-out tokens to pass over first, to tune settings on others than a board evaluates on."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1), Flag(Heading.SAES, "seed")] = (0,)
    """Seeds of initial weights and data order."""
    dataset: Annotated[str, Flag(Heading.DATA)]
    """"embedded" (docstrings), "natural" (texts of the package sae-probes), a local text, jsonl, csv, parquet file or
    folder, or a hub dataset NAME or NAME:CONFIG. Default: the Pile for models of `ls models`, else embedded."""
    text_column: Annotated[str, Flag(Heading.DATA)] = "text"
    """Column that holds the text."""
    tasks: Annotated[tuple[str, ...], Flag(Heading.WHAT)] = ()
    """Tasks to evaluate (see `ls tasks`). Default: all but those that bring text of their own."""
    preset: Annotated[Preset, Flag(Heading.WHAT)] = "short"
    """Training recipe: paper (two million steps) or short."""
    recipe: Annotated[TunedRecipe | None, Flag(Heading.WHAT)] = None
    """Settings that `tune` found for every architecture of the run: its TOML file, or a name. Text that was tuned on
    is left out."""
    added_recipes: Annotated[tuple[TunedRecipe, ...], Flag(Heading.WHAT, "added_recipe")] = ()
    """What `tune` found for architectures that --recipe lacks, by a search that was equal in all else."""
    part: Literal["board", "tuning"] | None = None
    """The part of the text, `near_duplicates.Part`: what is tuned on is in no board that names a recipe."""
    context_size: Annotated[Count, Field(ge=3), Flag(Heading.DATA)]
    """Tokens in a context, BOS included."""
    batch_size: Annotated[Count, Flag(Heading.DATA)]
    """Activations in a training batch."""
    buffer_tokens: Annotated[Count, Flag(Heading.DATA)]
    """Activations in the shuffle buffer: bounds memory."""
    device: Annotated[str, Flag(Heading.RUN)] = "auto"
    """cpu, cuda, cuda:1. Default: cuda where there is one."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Flag(Heading.MODEL)] = "auto"
    """The language model's; SAEs are float32 always. Default: bfloat16 on a GPU; float32 on a CPU, whose products are
    bfloat16 where it has instructions for them."""
    plugins: Annotated[tuple[str, ...], Flag(Heading.WHAT, "plugin")] = ()
    """Python files with architectures, tasks, scorers or models of your own."""
    kernels: Annotated[Literal["auto", "dense", "sparse"], Flag(Heading.RUN)] = "auto"
    """Training on active pairs (sparse), on everything (dense), or whichever is measured to be faster (auto)."""
    screening: Annotated[Literal["auto", "on", "off"], Flag(Heading.RUN)] = "auto"
    """In training find active pairs by a 16-bit product and exact values of few (on), by the whole float32 product
    (off), or whichever is measured to be faster (auto); the same pairs."""
    compile: Annotated[bool, Flag(Heading.RUN)] = False
    """Compile the losses with torch.compile: slow to start, needs a C++ compiler."""
    checkpoint_every: Annotated[str, BeforeValidator(_checked_interval), Flag(Heading.RUN)] = "10m"
    """Time (30s, 10m) or number of steps between two checkpoints."""
    world: WorldSettings | None = None
    """The synthetic world that `model` names."""
    activations_cache: Annotated[str | None, BeforeValidator(_absolute), Flag(Heading.RUN)] = None
    """A folder that keeps activations: for what it has the language model is not run. The numbers are the same."""
    cache_limit: Annotated[Bytes | None, Flag(Heading.RUN)] = None
    """What --activations-cache may take of the disk in all, 200GB. Default: what is free."""
    split: Literal["near-duplicates 1"] | None = None
    """The rules by which text is held out, `near_duplicates.RULE`; none in runs from before they had a name."""
    limit: Annotated[Count | None, Flag(Heading.RUN)] = None
    """Evaluate on at most this many contexts, for a quick look."""
    revision: Annotated[str | None, Flag(Heading.MODEL)] = None
    """Branch, tag or commit of the model on the hub."""
    trust_remote_code: Annotated[bool, Flag(Heading.MODEL)] = False
    """Run Python code that comes with the model. Only for authors you trust."""
    earlier: tuple[dict[str, Any], ...] = ()
    """What commands before this one asked of the same folder: settings of `deciding.ASKED`."""
    called: Mapping[str, str] = Field(default_factory=dict)
    """By this command's names of local files, those that the run in the folder has for them: see `runs.home`."""

    @classmethod
    def flags(cls) -> dict[str, Flag]:
        """Every setting's flag, named, by the name of its field."""
        marks = {name: mark for name, field in cls.model_fields.items() for mark in field.metadata}
        return {name: Flag(mark.heading, mark.name or name) for name, mark in marks.items() if isinstance(mark, Flag)}

    @classmethod
    def build(
        cls,
        *sources: Mapping[str, Any],
        known: Callable[[bool], Sequence[str]] = lambda controls: (),
        hub_models: Collection[str] = (),
    ) -> "RunConfig":
        """Merge settings, later sources over earlier ones, and fill in the preset's values for what is not said.

        Args:
            sources: settings by the names of the fields.
            known: the names of all controls, or those of all other architectures: what "all" stands for.
            hub_models: models that are trained on `HUB_DATASET` unless told otherwise; others on the embedded corpus.

        Raises:
            UserError: a setting is unknown, missing or out of range.
        """
        given: dict[str, Any] = {}
        for source in sources:
            # Wanted L0s and raw coefficients exclude each other: the later source decides.
            if source.get("l0s") and source.get("sparsity"):
                raise UserError("--l0 and --sparsity are two ways to say the same: give one of them")
            for one, other in (("l0s", "sparsity"), ("sparsity", "l0s")):
                if source.get(one):
                    given.pop(other, None)
            given |= source
        from sae_bench.lm.near_duplicates import RULE  # loads numpy, which --help does without

        preset = given.setdefault("preset", "short")
        if not isinstance(preset, str) or preset not in _RUN_DEFAULTS:
            raise UserError(f'unknown preset "{preset}"{did_you_mean(str(preset), _RUN_DEFAULTS)}')
        defaults = _RUN_DEFAULTS[preset] | {
            "dataset": HUB_DATASET if str(given.get("model")) in hub_models else "embedded",
            "split": RULE,
        }
        if is_synthetic(model := given.get("model")):
            given["model"], world = world_settings(str(model))
            defaults |= run_defaults(given["model"]) | {"world": world, "split": None}
        if given.get("recipe"):
            given["part"] = "board"
        if given.get("sparsity"):
            defaults.pop("l0s")
        archs = given.setdefault("archs", () if given.get("saes") else ("all",))
        if isinstance(archs, Sequence) and not isinstance(archs, str):
            expanded = [name for arch in archs for name in (known(False) if arch == "all" else (arch,))]
            expanded += known(True) if given.get("controls") is True else ()
            given["archs"] = [arch for i, arch in enumerate(expanded) if arch not in expanded[:i]]
        try:
            config = cls(**{**defaults, **given})
        except ValidationError as error:
            raise UserError(_one_line(error)) from None
        config.check_together()
        return config

    @property
    def n_held_out(self) -> int:
        """Tokens to evaluate on: `eval_tokens`, or those of `limit` contexts if they are fewer."""
        if self.limit is None:
            return self.eval_tokens
        return min(self.eval_tokens, self.limit * (self.context_size - 1))

    @property
    def interp_tokens_wanted(self) -> int:
        """Tokens to find the latents' excerpts in."""
        return self.interp_tokens or DEFAULT_TOKENS[self.preset]

    @classmethod
    def of_run(cls, manifest: Mapping[str, Any]) -> "RunConfig":
        """The settings of the run that a run.json is of, with what its tasks with text of their own read."""
        kept = manifest.get("kept", {})
        return cls(**{**manifest["config"], **{name: kept[name] for name in KEPT if name in kept}})

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the numbers; tasks and judges only add records, so they are left out."""
        without = {
            name for name in ("saes", "split", "random_lm", "world", "recipe", "part") if not getattr(self, name)
        }
        without |= {"screening"} if self.screening == "auto" else set()
        without |= set() if self.added_recipes else {"added_recipes"}
        return self.as_called(self.model_dump(mode="json", exclude={"tasks", *KEPT, *WAY, *without}))

    @property
    def recipes(self) -> tuple[TunedRecipe, ...]:
        """All that were tuned for this run."""
        return (self.recipe, *self.added_recipes) if self.recipe else ()

    @property
    def tuned(self) -> TunedRecipe | None:
        """All of them as one, to look settings up in."""
        return self.recipe and self.recipe.joined(self.added_recipes)

    def parts(self) -> list["RunConfig"]:
        """Everything that was asked of the folder, as a run of its own each, this one's last."""
        known = {name: value for name, value in self.identity.items() if name not in ASKED}
        parts = [{name: value for name, value in part.items() if name != "tasks"} for part in self.earlier]
        return [*(RunConfig(**known, **part) for part in parts), self]

    @property
    def name(self) -> str:
        """A folder name that tells runs apart: model, architectures, and the settings' hash."""
        archs = "+".join(dict.fromkeys([*(arch.name for arch in self.archs), *(["saes"] if self.saes else [])]))
        return file_name(f"{Path(self.model).name}.{archs}.{self.hash[:8]}")

    @property
    def hash(self) -> str:
        """SHA-256 (hex) by which a run is known that no folder was named for."""
        return digest_of(self.by_content)


def _one_line(error: ValidationError) -> str:
    first, flags = error.errors()[0], RunConfig.flags()
    place = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return f'unknown setting "{place}"{did_you_mean(place, (flag.name for flag in flags.values()))}'
    name = f"--{flags[place].name.replace('_', '-')}" if place in flags else place
    given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
    return f"{name}: {first['msg'].removeprefix('Value error, ').removeprefix('Input ')}{given}"
