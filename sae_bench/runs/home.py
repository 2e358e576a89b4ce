"""A run's local files by the names that the run has for them, from wherever a command names them.

Paths in run.json begin at the working directory that the run was begun in, which is known as the run's folder sees it,
or at that folder where the first command named no such path.
A command may have other paths for the same files: from another working directory, through a link, or of a copy. What
they hold decides; records and hashes go on saying what the run was begun with, by `RunConfig.called`.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sae_bench.lm.corpus import corpus_hash, is_local
from sae_bench.lm.model_names import HUB_MODELS
from sae_bench.plugin_files import files_of_plugin, placed
from sae_bench.records.content import content_hash
from sae_bench.records.files import sha256
from sae_bench.records.run_folder import RunFolder
from sae_bench.registry import CORPORA, MODELS
from sae_bench.runs.config import RunConfig

PluginFiles = Mapping[str, str]
"""SHA-256 of a plugin's own file, and of those that it reads, by their paths from its folder."""


def begun_in(config: RunConfig, folder: RunFolder) -> dict[str, str]:
    """The working directory as the run's folder sees it, for run.json, if a path in the settings begins at it.

    Else it is in no file: run.json is published, and where somebody worked is nobody's business. Paths of later
    commands begin at the run's folder then.
    """
    names = [config.model, config.dataset, *config.plugins, *config.probe_set, *(sae.source for sae in config.saes)]
    if not any(os.path.exists(name) and not os.path.isabs(name) for name in names):
        return {}
    try:
        return {"begun_in": Path(os.path.relpath(Path.cwd(), folder.path.resolve())).as_posix()}
    except ValueError:  # another drive
        return {}


class Home:
    """Where the paths of a run begin, and what it calls the files that this command names otherwise."""

    def __init__(self, folder: RunFolder, manifest: Mapping[str, Any]) -> None:
        self.path = (folder.path.resolve() / manifest.get("begun_in", ".")).resolve()
        self._manifest = manifest
        self._is_here = self.path == Path.cwd()

    def here(self, name: str) -> str:
        """The run's name of a file as a path from here; a name that is no path of one, as it is."""
        path = self.path / name
        return name if self._is_here or Path(name).is_absolute() or not os.path.exists(path) else str(placed(path))

    def called(self, config: RunConfig, was: RunConfig) -> dict[str, str]:
        """By this command's names of model, corpus, plugins and files, those that the run `was` begun with has."""
        plugins, saes = dict(self._manifest["plugins"]), self._saes()
        found = {
            config.model: was.model if self._is_one_model(config, was) else config.model,
            config.dataset: was.dataset if self._is_one_corpus(config, was) else config.dataset,
        }
        for plugin in config.plugins:
            name = self._plugin(plugin, plugins)
            plugins.pop(name, None)
            found[plugin] = name
        found |= {sae.source: saes.get(sae.sha256, self._from_home(sae.source)) for sae in config.saes}
        for file in config.probe_set:
            same = (name for name in was.probe_set if self._is_one_file(file, name) or self._is_copy(file, name))
            found[file] = next(same, self._from_home(file))
        return {here: name for here, name in found.items() if here != name}

    def _saes(self) -> dict[str, str]:
        """What the run calls SAEs from elsewhere, by their content."""
        return {sae["sha256"]: sae["source"] for part in self._manifest["asked"][::-1] for sae in part.get("saes", ())}

    def _is_one_model(self, config: RunConfig, was: RunConfig) -> bool:
        """Of two folders their whole identity is compared once the model is loaded: `begun.check_unchanged`."""
        if config.world is not None:
            return config.world == was.world
        published = {*HUB_MODELS, *HUB_MODELS.values(), *MODELS}
        if config.model in published:
            return HUB_MODELS.get(config.model, config.model) == HUB_MODELS.get(was.model, was.model)
        return os.path.isdir(config.model) and was.model not in published

    def _is_one_corpus(self, config: RunConfig, was: RunConfig) -> bool:
        """That a corpus at the run's own place has changed, is said later, with all that has."""
        if config.dataset in CORPORA or was.dataset in CORPORA or not is_local(config.dataset):
            return False
        if self._is_one_file(config.dataset, was.dataset):
            return True
        there = os.path.exists(os.path.expanduser(config.dataset))
        return there and corpus_hash(config.dataset) == self._manifest["dataset_sha256"]

    def _is_one_file(self, here: str, name: str) -> bool:
        mine, theirs = Path(here).expanduser(), self.path / Path(name).expanduser()
        return os.path.exists(mine) and os.path.exists(theirs) and mine.samefile(theirs)

    def _is_copy(self, here: str, name: str) -> bool:
        mine, theirs = Path(here), self.path / name
        return mine.name == theirs.name and mine.is_file() and theirs.is_file() and sha256(mine) == sha256(theirs)

    def _plugin(self, plugin: str, known: Mapping[str, PluginFiles]) -> str:
        """The name of a plugin among those that the run has; a new one's is made."""
        for name in known:
            if self._is_one_file(plugin, name):
                return name
        for name, was in known.items():
            if is_alike(name, was, plugin, hashes_of_plugin(plugin, was)):
                return name
        return self._from_home(plugin)

    def _from_home(self, path: str) -> str:
        """A path from here as one from home, if it is one."""
        if self._is_here or Path(path).is_absolute() or not os.path.exists(path):
            return path
        try:
            return Path(os.path.relpath(path, self.path)).as_posix()
        except ValueError:  # another drive
            return str(Path(path).absolute())


def at_home(config: RunConfig, folder: RunFolder, manifest: Mapping[str, Any]) -> RunConfig:
    """Settings as a run's folder has them, with local paths that are found from here; they are called as they were."""
    home, named = Home(folder, manifest), {*HUB_MODELS, *HUB_MODELS.values(), *MODELS, *CORPORA}
    paths = {name: home.here(text) for name in ("model", "dataset") if (text := getattr(config, name)) not in named}
    files = {name: tuple(map(home.here, getattr(config, name))) for name in ("plugins", "probe_set")}
    called = {path: getattr(config, name) for name, path in paths.items()}
    for name, of in files.items():
        called |= dict(zip(of, getattr(config, name), strict=True))
    return config.model_copy(update={**paths, **files, "called": called})


def hashes_of_plugin(plugin: str, known: Collection[str] = ()) -> dict[str, str]:
    """`PluginFiles`. `known` were read in other processes: a file may be read when a module is imported first."""
    there = {at: placed(Path(plugin)).parent / at for at in known}
    files = {at: file for at, file in there.items() if file.is_file()} | files_of_plugin(Path(plugin))
    return {at: content_hash(file) for at, file in files.items()}


def plugin_hashes(config: RunConfig, known: Mapping[str, PluginFiles]) -> dict[str, PluginFiles]:
    """What each plugin reads, by the run's name for it; `known` is what it read when the run was begun."""
    found: dict[str, PluginFiles] = {}
    for plugin in config.plugins:
        name = config.called_as(plugin)
        was = known.get(name, {})
        now = hashes_of_plugin(plugin, was)
        found[name] = was if is_alike(name, was, plugin, now) else now
    return found


def is_alike(name: str, was: PluginFiles, other: str, now: PluginFiles) -> bool:
    """Whether two plugins read files of the same names and content: where these lie differs from place to place."""

    def by_name(plugin: str, files: PluginFiles) -> list[tuple[str, str]]:
        own = Path(plugin).name
        return sorted(("" if at == own else Path(at).name, digest) for at, digest in files.items())

    return by_name(name, was) == by_name(other, now)


def found_again(part: Mapping[str, Any], config: RunConfig, home: Home) -> dict[str, Any]:
    """What an earlier command asked for, with its SAEs from elsewhere where they are now; this one may name them."""
    if not part.get("saes"):
        return dict(part)
    now = {sae.sha256: sae.source for sae in config.saes}
    saes = [{**sae, "source": now.get(sae["sha256"], home.here(sae["source"]))} for sae in part["saes"]]
    return {**part, "saes": saes}
