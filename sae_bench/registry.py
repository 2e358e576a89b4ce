"""The only door to plugins: short name -> what is called so, for architectures, tasks, scorers, models and corpora.

A plugin file decorates its class, or the function that finds its model, with `@register_architecture("name")`,
`@register_task`, `@register_scorer`, `@register_corpus` or `@register_model`. Built-ins stand in a folder for each
kind, in files of their names; an installed third-party package declares entry points, and a file can also be named on
the command line (`--plugin my_sae.py`). A plugin is code: none runs before its name is asked for, "all" and `ls` being
ways to ask for every name. What fails to load is one line that says where.
"""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from sae_bench.errors import UserError, did_you_mean
from sae_bench.plugin_files import watched

if TYPE_CHECKING:
    from sae_bench.autointerp.scorer import Scorer
    from sae_bench.evaluation.task import BaseTask
    from sae_bench.lm.corpus import Corpus
    from sae_bench.saes.base import SparseAutoencoder

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names become parts of file names, and of labels such as `name:key=value,key=value`."""


REGISTERED: list[str] = []
"""Everything that was registered in this process, in this order: what a plugin file adds shows here."""


class Registry(Generic[T]):
    """What there is of one kind, classes or functions, by short name; imported when asked for.

    Args:
        kind: what is registered, for messages ("architecture").
        group: its entry points' group ("sae_bench.architectures").
        package: the built-ins' package, if it is called otherwise than the group.
    """

    def __init__(self, kind: str, group: str, package: str | None = None) -> None:
        self.kind, self.group, self.package = kind, group, package or group
        self._classes: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that makes a class or a function known as `name`."""

        if not NAME.fullmatch(name):
            raise UserError(f'{self.kind} "{name}": a name is up to 64 letters, digits and _.-; rename it')

        def decorate(cls: T) -> T:
            known = self._classes.get(name)
            owner = known.__module__ if known is not None else self._built_in().get(name, cls.__module__)
            if owner != cls.__module__:
                raise UserError(f'{self.kind} "{name}" of {cls.__module__} is taken by {owner}: rename it')
            cls.name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            REGISTERED.append(f"{self.kind} {name}")
            return cls

        return decorate

    def __getitem__(self, name: str) -> T:
        """What is called `name`.

        Raises:
            UserError: nothing is called so, or what is called so does not load.
        """
        if name not in self._classes:
            modules = self._modules()
            if name not in modules:
                raise UserError(f'unknown {self.kind} "{name}"{did_you_mean(name, self)}')
            if name in self._built_in():
                importlib.import_module(modules[name])  # ours: a failure keeps its traceback
            else:
                module = f"the installed module {modules[name]}"
                with _loading(f'{self.kind} "{name}" of {module}', "mend or uninstall it"):
                    importlib.import_module(modules[name])
                if name not in self._classes:
                    raise UserError(f'{self.kind} "{name}": {module} does not register it; uninstall it')
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._classes, *self._modules()}))

    def _modules(self) -> dict[str, str]:
        """Modules that register something, by its name: what is installed, and the built-ins' folder."""
        return {**_installed(self.group, tuple(sys.path)), **self._built_in()}

    def _built_in(self) -> dict[str, str]:
        folder = importlib.import_module(self.package).__path__
        stems = (path.stem for entry in folder for path in Path(entry).glob("*.py"))
        return {stem: f"{self.package}.{stem}" for stem in stems if NAME.fullmatch(stem)}


@cache
def _installed(group: str, path: tuple[str, ...]) -> Mapping[str, str]:
    """Modules by name that installed packages declare, looked for once, for a run asks dozens of times.

    Args:
        group: of entry points.
        path: `sys.path`, where packages are.
    """
    return {entry.name: entry.module for entry in entry_points(group=group)}


def load_plugin(*paths: str) -> None:
    """Run plugin files, which then register what they bring.

    Raises:
        UserError: there is no such file, or it registers nothing.
    """
    for path in paths:
        file = Path(path)
        if not file.is_file() or file.suffix != ".py":
            raise UserError(f'--plugin "{path}": no such Python file; give the path of a .py file')
        n_before = len(REGISTERED)
        name = f"sae_bench_plugin_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None, "a .py file has a loader"
        assert spec.loader is not None, "a .py file has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        with watched(file), _loading(f'--plugin "{path}"', "mend the file"):
            spec.loader.exec_module(module)
        if len(REGISTERED) == n_before:
            decorators = "@register_architecture or @register_task, or call another register function of sae_bench"
            raise UserError(f'--plugin "{path}" registers nothing: decorate a class with {decorators}')


@contextmanager
def _loading(what: str, remedy: str) -> Iterator[None]:
    """Whatever is raised within becomes one line: kind and message of it, and the line of code that it comes from."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(frame.filename).name}, line {frame.lineno})"
        said = f"{type(error).__name__}: {error}{'' if isinstance(error, SyntaxError) else where}"  # it says so itself
        raise UserError(f"{what} does not load: {said}; {remedy}") from error


ARCHITECTURES: "Registry[type[SparseAutoencoder]]" = Registry("architecture", "sae_bench.architectures")
TASKS: "Registry[type[BaseTask]]" = Registry("task", "sae_bench.tasks")
SCORERS: "Registry[type[Scorer]]" = Registry("scorer", "sae_bench.autointerp.scorers")
MODELS: Registry[Callable[[], str]] = Registry("model", "sae_bench.models", "sae_bench.demo.models")
"""Functions that return where a model is loaded from: a folder, or its name on the hub."""
CORPORA: "Registry[type[Corpus]]" = Registry("corpus", "sae_bench.corpora", "sae_bench.demo.corpora")

register_architecture = ARCHITECTURES.register
register_task = TASKS.register
register_scorer = SCORERS.register
register_model = MODELS.register
register_corpus = CORPORA.register


def known_architectures(controls: bool) -> list[str]:
    """The names of all controls, or of all architectures that are none; to tell them apart, every one is loaded."""
    return [name for name in ARCHITECTURES if ARCHITECTURES[name].is_control == controls]
