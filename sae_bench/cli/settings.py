"""A run's settings on the command line: every flag, its help and its heading follow from a field of `RunConfig`."""

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, Union, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from sae_bench.parsing import Flag, Heading
from sae_bench.runs.config import RunConfig

GROUPS = {heading: Group(heading.value, sort_key=place) for place, heading in enumerate(Heading)}


def _shown(field: FieldInfo, flag: Flag) -> Parameter:
    """Its help is its docstring and its default; what "auto" stands for, the docstring says."""
    text = " ".join(str(field.description).split())
    default = field.default if isinstance(field.default, tuple) else (field.default or "auto",)
    if not field.is_required() and default not in ((), ("auto",)):
        text += f" Default: {' '.join(f'{one:g}' if isinstance(one, float) else str(one) for one in default)}."
    return Parameter(name=f"--{flag.name.replace('_', '-')}", group=GROUPS[flag.heading], help=text)


def _typed(hint: Any, metadata: Sequence[Any] = ()) -> Any:
    """What is read from the command line: text, where the field itself reads text."""
    origin, parts = get_origin(hint), get_args(hint)
    if any(isinstance(one, BeforeValidator) for one in metadata):
        return list[str] if origin is tuple else str
    if origin is tuple:
        return list[str]
    if origin in (Union, UnionType):
        return _typed(next(part for part in parts if part is not NoneType))
    if origin is Annotated:
        return _typed(parts[0], parts[1:])
    return hint if origin is Literal or hint in (int, float, bool) else str


# A TypedDict holds what was given and nothing else: no default hides a suite's value.
if TYPE_CHECKING:
    Settings = Mapping[str, Any]
else:
    shown = {
        name: Annotated[_typed((field := RunConfig.model_fields[name]).annotation, field.metadata), _shown(field, flag)]
        for name, flag in RunConfig.flags().items()
    }
    Settings = Annotated[TypedDict("Settings", shown, total=False), Parameter(name="*")]
