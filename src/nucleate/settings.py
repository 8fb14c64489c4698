"""What a setting is: a field of a frozen class that knows its meaning, its range and how it is typed.

Checks, options of the command line, help texts and the reference are all made from these fields, so that nothing about
a setting is written down twice.
"""

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from numbers import Integral, Real
from types import NoneType
from typing import Any, TypeVar, get_args

from nucleate.refusal import Refused, nearest

REQUIRED: Any = MISSING  # in place of a default
_Documented = TypeVar("_Documented", bound=Callable[..., Any])


def setting(
    default: Any,
    meaning: str,
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    form: str = "",
    option: str | None = "",
) -> Any:
    """A field of a settings class.

    `form` shows how its value is typed on a command line. `option` is its name there: that of the field unless it is
    given; None where it is set from Python alone."""
    told = {"meaning": meaning, "choices": choices, "least": least, "form": form, "option": option}
    return field(default=default, metadata=told)


def fields_of(kind: type) -> dict[str, Field[Any]]:
    """The fields of a settings class by their names."""
    return {one.name: one for one in fields(kind)}


def option_of(one: Field[Any]) -> str | None:
    """The option of the command line that gives this setting."""
    named = one.metadata["option"]
    return None if named is None else f"--{named or one.name.replace('_', '-')}"


def explained(one: Field[Any]) -> str:
    """Meaning and default in one line."""
    if one.default is MISSING or one.default is False or one.default in (None, ()):
        return str(one.metadata["meaning"])
    return f"{one.metadata['meaning']} (default: {one.default})"


def documented_by(kind: type, *, without: Sequence[str] = ()) -> Callable[[_Documented], _Documented]:
    """Adds the meanings of the settings to the documentation of what takes them as keywords."""

    def add(documented: _Documented) -> _Documented:
        lines = [f"- `{name}`: {explained(one)}" for name, one in fields_of(kind).items() if name not in without]
        documented.__doc__ = "\n".join([inspect.cleandoc(documented.__doc__ or ""), "", *lines])
        return documented

    return add


def chosen(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given values that belong to a settings class."""
    return {name: given[name] for name in fields_of(kind) if name in given}


# --- checks ----------------------------------------------------------------------------------------------------------


def check_all(values: object, section: str = "") -> None:
    """Refuse the first setting of an object that is out of range or of another kind than its field says."""
    for name, one in fields_of(type(values)).items():
        check(f"{section}{name}", getattr(values, name), one)


def check(key: str, value: Any, one: Field[Any]) -> None:
    """Refuse a value that its field does not allow; `key` is what the refusal calls it."""
    if value is None and NoneType in get_args(one.type):
        return
    what, fits, _ = _KINDS[kind_of(one)]
    least, choices = one.metadata["least"], one.metadata["choices"]
    if not fits(value):
        raise Refused(f"{_told(key, value)} is not {what}; give one{'' if least is None else f', at least {least}'}")
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"{_told(key, value)} is not a finite number; give one")
    if least is not None and value < least:
        raise Refused(f"{_told(key, value)} is too small; it must be at least {least}")
    if choices and value not in choices:
        raise Refused(f"{_told(key, value)} is not known{nearest(value, choices)}")


def parse(key: str, text: str, one: Field[Any]) -> Any:
    """The value of a setting as it is typed; refused where it is not one, or not allowed."""
    what, _, read = _KINDS[kind_of(one)]
    try:
        value = read(text)
    except ValueError:
        form = one.metadata["form"] if kind_of(one) not in (int, float) else ""
        raise Refused(f"{_told(key, text)} is not {f'of the form {form}' if form else what}") from None
    check(key, value, one)
    return value


def kind_of(one: Field[Any]) -> Any:
    """The type of a setting that is set."""
    kinds = get_args(one.type)
    return next(kind for kind in kinds if kind is not NoneType) if NoneType in kinds else one.type


def is_repeated(one: Field[Any]) -> bool:
    """Is its option given once for each of its values?"""
    return kind_of(one) in (Sequence[str], Mapping[str, Any])


def _told(key: str, value: object) -> str:
    return f"{key}{' ' if key.startswith('--') else '='}{value!r}"


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is a sequence, or an array, of what fits."""
    return lambda value: hasattr(value, "__iter__") and not isinstance(value, str | Mapping) and all(map(fits, value))


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, text.split(",")):
        ours, theirs = _sides(part)
        yield ours, theirs


def _sides(text: str) -> tuple[str, str]:
    ours, _, theirs = (part.strip() for part in text.partition("="))
    if not (ours and theirs):
        raise ValueError(text)
    return ours, theirs


def _named_value(text: str) -> dict[str, Any]:
    """One `name=value`; the value is JSON, or else text."""
    name, value = _sides(text)
    try:
        return {name: json.loads(value)}
    except ValueError:
        return {name: value}


_KINDS: dict[Any, tuple[str, Callable[[Any], bool], Callable[[str], Any]]] = {  # type -> (in words, fits, as typed)
    int: ("a whole number", _whole, int),
    float: ("a number", _real, float),
    str: ("text", lambda value: isinstance(value, str), str),
    bool: ("True or False", lambda value: isinstance(value, bool), bool),
    Sequence[int]: ("a list of whole numbers", _each(_whole), lambda text: tuple(map(int, text.split(",")))),
    Sequence[float]: ("a list of numbers", _each(_real), lambda text: tuple(map(float, text.split(",")))),
    Sequence[str]: ("a list of texts", _each(lambda value: isinstance(value, str)), lambda text: (text,)),
    Mapping[str, str]: (
        "a dictionary such as {'task': 'label'}",
        lambda value: isinstance(value, Mapping),
        lambda text: dict(_pairs(text)),
    ),
    Mapping[str, Any]: (
        "a dictionary such as {'device_map': 'auto'}",
        lambda value: isinstance(value, Mapping),
        _named_value,
    ),
}
