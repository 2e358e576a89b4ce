"""The only door to plugins: short name -> class, for architectures and for tasks.

A plugin file decorates its class with `@register_architecture("name")` or `@register_task("name")`. Built-ins are the
files of the folders `architectures/` and `tasks/`, each called what it registers; an installed package names its own in
entry points; a file can be named on the command line (`--plugin my_sae.py`). A plugin is code: none runs before its
name is asked for, "all" and `ls` being ways to ask for every name. What fails to load is one line that says where.
"""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from sae_bench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from sae_bench.evaluation.task import Task
    from sae_bench.saes.base import SparseAutoencoder

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names become parts of file names, and of labels such as `name:key=value,key=value`."""


class Registry(Generic[T]):
    """Classes of one kind by short name, imported when asked for.

    Args:
        kind: what the classes are, for messages ("architecture").
        package: the built-ins' package, which is also the entry-point group ("sae_bench.architectures").
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._classes: dict[str, type[T]] = {}
        self.n_registrations = 0

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Decorator that makes a class known as `name`."""

        if not NAME.fullmatch(name):
            raise UserError(f'{self.kind} "{name}": a name is up to 64 letters, digits and _.-; rename it')

        def decorate(cls: type[T]) -> type[T]:
            known = self._classes.get(name)
            owner = known.__module__ if known is not None else self._built_in().get(name, cls.__module__)
            if owner != cls.__module__:
                raise UserError(f'{self.kind} "{name}" of {cls.__module__} is taken by {owner}: rename it')
            cls.name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            self.n_registrations += 1
            return cls

        return decorate

    def __getitem__(self, name: str) -> type[T]:
        """The class called `name`.

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
                self._import_foreign(name, modules[name])
        return self._classes[name]

    def _import_foreign(self, name: str, module: str) -> None:
        """Import what an installed package declares as an entry point."""
        try:
            importlib.import_module(module)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f'{self.kind} "{name}" of the installed module {module} does not load: {_reason(error)}; '
                "mend or uninstall it"
            ) from error
        if name not in self._classes:
            raise UserError(f'{self.kind} "{name}": the installed module {module} does not register it; uninstall it')

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._classes, *self._modules()}))

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def _modules(self) -> dict[str, str]:
        """Modules that register a class, by its name: what is installed, and the built-ins' folder."""
        installed = {entry.name: entry.module for entry in entry_points(group=self.package)}
        return installed | self._built_in()

    def _built_in(self) -> dict[str, str]:
        folder = importlib.import_module(self.package).__path__
        return {path.stem: f"{self.package}.{path.stem}" for entry in folder for path in Path(entry).glob("*.py")}


def load_plugins(paths: Iterable[str] | None) -> None:
    """Run plugin files, as `load_plugin` does."""
    for path in paths or ():
        load_plugin(path)


def load_plugin(path: str) -> None:
    """Run a plugin file, whose decorators then register its classes.

    Raises:
        UserError: there is no such file, or it registers nothing.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f'--plugin "{path}": no such Python file; give the path of a .py file')
    before = ARCHITECTURES.n_registrations + TASKS.n_registrations
    name = f"sae_bench_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'--plugin "{path}" does not load: {_reason(error)}; mend the file') from error
    if ARCHITECTURES.n_registrations + TASKS.n_registrations == before:
        raise UserError(
            f'--plugin "{path}" registers nothing: decorate a class with @register_architecture or @register_task'
        )


def _reason(error: Exception) -> str:
    """Kind and message of an exception in one line, and the line of code that it comes from."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError):
        return said  # says itself where
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{said} ({Path(frame.filename).name}, line {frame.lineno})"


ARCHITECTURES: "Registry[SparseAutoencoder]" = Registry("architecture", "sae_bench.architectures")
TASKS: "Registry[Task]" = Registry("task", "sae_bench.tasks")

register_architecture = ARCHITECTURES.register
register_task = TASKS.register
