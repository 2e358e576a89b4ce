"""A run's folder asked for more: what is added, what stays as it is, and what would change numbers that are there."""

import shlex
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import ValidationError

from sae_bench.errors import UserError
from sae_bench.lm.model_names import HUB_MODELS
from sae_bench.progress import Progress
from sae_bench.records.redact import redact_json
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.begun import FORMAT
from sae_bench.runs.config import RunConfig
from sae_bench.runs.deciding import ASKED, EVALUATION, KEPT, WAY
from sae_bench.runs.home import Home, found_again
from sae_bench.runs.import_saes import name_sources
from sae_bench.synthetic.settings import NAME, SIZES

ELSE = "choose another --out, or --overwrite to delete it"


def grown(config: RunConfig, folder: RunFolder, progress: Progress, *, extended: bool = False) -> RunConfig:
    """The run that a folder holds together with what this command asks for; `extended`: with more training tokens.

    Raises:
        UserError: something asked for would change numbers that are there; the message has the command that does not.
    """
    folder.check_free({config.training_hash, config.evaluation_hash, config.collection_hash})
    manifest = folder.manifest()
    if manifest is None:
        return config
    was, home = _run_in(folder, manifest), Home(folder, manifest)
    config = _as_begun(config, was, home, _added_before(manifest))
    changed = _conflicts(was, config)
    if extended and "tokens" in changed and config.tokens > was.tokens:
        del changed["tokens"]
    if changed:
        raise UserError(_refusal(was, config, home, folder, changed))
    _check_added(manifest, config, folder)
    _check_plugins(manifest, config, home, folder)
    _check_sources(manifest, config, home, folder)
    _check_judged(was, config, folder)
    kept = _kept(manifest, was, config, home, folder, progress)
    merged = {**kept, **_evaluation(was, config, folder, progress)}
    parts = [part for part in manifest["asked"] if _of(part) != _of(redact_json(config.asked))]
    earlier = tuple(found_again(part, config, home) for part in parts)
    called = {**{home.here(name): name for name in was.probe_set}, **_names(parts, earlier), **config.called}
    return config.model_copy(update={**merged, "earlier": earlier, "called": called})


def _as_begun(config: RunConfig, was: RunConfig, home: Home, added: Sequence[Mapping[str, Any]]) -> RunConfig:
    """This command's settings with the names that the run has for what they name; `added` are its added recipes."""
    names = {recipe["sha256"]: recipe["name"] for recipe in added}
    if was.recipe is not None:
        names[was.recipe.sha256] = was.recipe.name
    as_named = [one.model_copy(update={"name": names.get(one.sha256, one.name)}) for one in config.recipes]
    named = {"recipe": as_named[0], "added_recipes": tuple(as_named[1:])} if as_named else {}
    return config.model_copy(update={"called": home.called(config, was), **named})


def _added_before(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The recipes that commands before this one added."""
    return [recipe for part in manifest["asked"] for recipe in part.get("added_recipes", ())]


def _names(parts: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the run calls the SAEs from elsewhere that earlier commands asked for, by where they are."""
    pairs = zip(parts, here, strict=True)
    return {
        now["source"]: sae["source"]
        for part, found in pairs
        for sae, now in zip(part.get("saes", ()), found.get("saes", ()), strict=True)
    }


def _kept(
    manifest: Mapping[str, Any], was: RunConfig, config: RunConfig, home: Home, folder: RunFolder, progress: Progress
) -> dict[str, Any]:
    """What the run has of `deciding.KEPT`, where this command does not say it; what that changes is said."""
    kept = {
        name: getattr(was, name) for name in KEPT if name in manifest["kept"] and name not in config.model_fields_set
    }
    if words := [_flag(name, value) for name, value in kept.items() if value != getattr(config, name)]:
        progress.say(f"the run in {folder.path} keeps what this command does not say: {' '.join(words)}")
    return kept | ({"probe_set": tuple(map(home.here, was.probe_set))} if "probe_set" in kept else {})


def _run_in(folder: RunFolder, manifest: Mapping[str, Any]) -> RunConfig:
    """The settings of the run that the folder holds."""
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"the run in {folder.path} was made by an earlier version, which knew its SAEs by other hashes: it can be "
            f"read (table, compare, report, verify), and is finished with that version alone; {ELSE}"
        )
    try:
        return RunConfig.of_run(manifest)
    except ValidationError:
        raise UserError(f"the run in {folder.path} has settings that this version does not know: {ELSE}") from None


def _of(part: Mapping[str, Any]) -> dict[str, Any]:
    """Which SAEs were asked for, on which tasks: none and the default tasks are told apart by the reader."""
    return {name: value for name, value in part.items() if value not in ([], None) or name == "tasks"}


def _conflicts(was: RunConfig, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """By field, the run's value and the one asked for, where the latter would change numbers that are there."""
    then, now = (redact_json(of.as_called(of.model_dump(mode="json"))) for of in (was, config))
    training = [name for name in then if name not in {*ASKED, *EVALUATION, *KEPT, *WAY}]
    found = {name: (then[name], now[name]) for name in (*training, "eval_skip") if then[name] != now[name]}
    if "recipe" in found:
        found.pop("part", None)  # which follows from it
    if config.eval_tokens < was.eval_tokens:
        found["eval_tokens"] = (was.eval_tokens, config.eval_tokens)
    if config.random_lm and was.random_lm and was.seeds[0] != config.seeds[0]:
        found["seeds"] = (then["seeds"], now["seeds"])  # the first draws the language model
    return found


def _refusal(
    was: RunConfig, config: RunConfig, home: Home, folder: RunFolder, changed: Mapping[str, tuple[Any, Any]]
) -> str:
    """What conflicts, as flags, and the command that does not."""
    words = [f"{_flag(name, then)}, not {_flag(name, now, short=True)}" for name, (then, now) in changed.items()]
    fits = {name: getattr(was, name) for name in changed if name != "seeds"}
    fits |= {name: home.here(fits[name]) for name in ("model", "dataset") if name in fits}
    if "seeds" in changed:
        fits["seeds"] = tuple(dict.fromkeys([*was.seeds, *config.seeds]))
    fitting = config.model_copy(update=fits)
    longer = "tokens" in changed and config.tokens > was.tokens and len(changed) == 1
    further = "; to train its SAEs further, add --extend-tokens" if longer else ""
    return (
        f"--out {folder.path} holds a run with other settings ({'; '.join(words)}), which its numbers depend on. What "
        f"is missing of it: {command(fitting)} --out {shlex.quote(str(folder.path))}{further}; or {ELSE}"
    )


def _evaluation(was: RunConfig, config: RunConfig, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """What the run is evaluated on: what is asked for, or what it has, if that is more."""
    if config.n_held_out >= was.n_held_out:
        return {}
    progress.say(
        f"--limit {config.limit}: the run in {folder.path} is evaluated on {was.n_held_out:,} tokens, and stays so"
    )
    return {"eval_tokens": was.eval_tokens, "limit": was.limit}


def _check_plugins(manifest: Mapping[str, Any], config: RunConfig, home: Home, folder: RunFolder) -> None:
    """What plugins brought takes part in all that comes; their code runs for nobody who does not name it."""
    here = {*map(config.called_as, config.plugins)}
    if missing := [home.here(name) for name in manifest["plugins"] if name not in here]:
        named = config.model_copy(update={"plugins": (*missing, *config.plugins)})
        raise UserError(
            f"the run in {folder.path} has --plugin {missing[0]}, without which it cannot go on. Name it, too: "
            f"{command(named)} --out {shlex.quote(str(folder.path))}"
        )


def _check_added(manifest: Mapping[str, Any], config: RunConfig, folder: RunFolder) -> None:
    """Whom an added recipe has tuned, no other one tunes."""
    for before, now in product(_added_before(manifest), config.added_recipes):
        if before["sha256"] != now.sha256 and (both := [label for label in now.archs if label in before["archs"]]):
            raise UserError(
                f"--added-recipe {now.name}: the run in {folder.path} has {', '.join(both)} by {before['name']} "
                f"{before['sha256'][:8]}, another file: name that, or {ELSE}"
            )


def _check_sources(manifest: Mapping[str, Any], config: RunConfig, home: Home, folder: RunFolder) -> None:
    """SAEs from elsewhere that the run has are looked at again, with the others."""
    known = {sae.sha256 for sae in config.saes}
    for imported in (sae for part in manifest["asked"] for sae in part.get("saes", ()) if sae["sha256"] not in known):
        try:
            found = name_sources([home.here(imported["source"])])
            changed = [sae["sha256"] for sae in found] != [imported["sha256"]]
        except UserError as error:
            why = f"which cannot be had any more: {error}"
        else:
            why = "which has changed since: bring the old files back" if changed else ""
        if why:
            raise UserError(f"the run in {folder.path} has --sae {imported['source']}, {why}; {ELSE}")


def _check_judged(was: RunConfig, config: RunConfig, folder: RunFolder) -> None:
    """Text that latents are judged on comes after the evaluation's: what was judged on another is judged anew."""
    if config.eval_tokens == was.eval_tokens or config.judge_model is not None:
        return
    if any(record.details.get("judge") for record in folder.records()):
        raise UserError(
            f"--eval-tokens {config.eval_tokens}: the latents of the run in {folder.path} were judged on the text "
            f"after {was.eval_tokens:,} tokens, and would have to be judged anew: give --judge-model, or leave "
            f"--eval-tokens at {was.eval_tokens}, or choose another --out"
        )


def command(config: RunConfig) -> str:
    """The command line that asks for these settings, without --out."""
    hub = {*HUB_MODELS, *HUB_MODELS.values()}
    size = config.model.partition(":")[2]
    own_world = config.world is not None and size not in SIZES
    model = f"{config.model}.toml" if own_world else config.model
    told = {"preset": config.preset, "model": NAME if own_world else model, "archs": config.archs, "saes": config.saes}
    usual = RunConfig.build(told, hub_models=hub)
    parts = [] if config.preset == "short" else [_flag("preset", config.preset)]
    parts += [_flag(name, getattr(config, name)) for name in ("archs", "saes") if getattr(config, name)]
    parts += [] if model == "demo" else [_flag("model", model)]
    for name in RunConfig.flags():
        value = getattr(config, name)
        if name not in (*told, "controls") and value != getattr(usual, name) and not _is_unsaid(value):
            parts.append(_flag(name, value))
    return " ".join(["python bench.py", *parts])


def _flag(name: str, value: Any, *, short: bool = False) -> str:
    """A setting as its flag; `short` leaves the flag out where a value is enough."""
    flags = RunConfig.flags()
    if name not in flags:  # what follows from others
        return "a synthetic world of other numbers" if name == "world" else "other rules by which text is held out"
    flag = f"--{flags[name].name.replace('_', '-')}"
    if _is_unsaid(value):
        return f"no {flag}"
    if value is True:
        return flag
    values = value if isinstance(value, tuple | list) else [value]
    words = " ".join(shlex.quote(_word(one)) for one in values)
    return words if short else f"{flag} {words}"


def _is_unsaid(value: Any) -> bool:
    """Whether a setting is one that no flag says; 0 is a number."""
    return value is None or value is False or value in ((), [])


def _word(value: Any) -> str:
    if hasattr(value, "label"):
        return str(value.label)
    if hasattr(value, "source"):
        return str(value.source)
    if hasattr(value, "path"):  # a recipe
        return str(value.path or value.name)
    if isinstance(value, dict):  # the same, as a run's folder has it
        return str(value["name"])
    if hasattr(value, "dollars"):
        return f"{value.dollars:g}usd" if value.dollars is not None else str(value.tokens)
    return f"{value:g}" if isinstance(value, float) else str(value)
