"""Configs made of keyword arguments: the values that a command line would have parsed are checked against the types."""

from __future__ import annotations

import dataclasses
import numbers
import operator
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from d4m_fast.config.fields import settings_of
from d4m_fast.config.generation import SETTINGS, GenerationConfig
from d4m_fast.errors import UsageError
from d4m_fast.wording import did_you_mean

Config = TypeVar("Config")
_KINDS = {str: "a string or a path", int: "a whole number", float: "a number", bool: "True or False", Path: "a path"}


def config_from(kind: type[Config], base: Config | None, options: Mapping[str, Any]) -> Config:
    """Return a config: the base's values, or the defaults, with options in their place.

    A preset among the options brings its own settings, as the flag does beside a file of options.

    Raises:
        UsageError: an option that does not exist, of another type, out of its bounds, or that does not go with others.
    """
    names = [field.name for field, _ in settings_of(kind)]
    for name in options:
        if name not in names:
            raise UsageError(f"{name}: no such option{did_you_mean(name, names)}")
    if base is not None and not isinstance(base, kind):
        raise UsageError(f"config must be a {kind.__name__}, not a {type(base).__name__}")
    values = {} if base is None else {name: getattr(base, name) for name in names}
    if "preset" in options:
        values = {name: value for name, value in values.items() if name not in SETTINGS}
    annotations = get_type_hints(kind)
    for name, value in {**values, **options}.items():
        values[name] = value_of(name, value, annotations[name])
    if issubclass(kind, GenerationConfig):
        preset = values.pop("preset", _default(kind, "preset"))
        return kind.of_preset(preset, **values)
    return kind(**values)


def _default(kind: type, name: str) -> Any:
    (default,) = (field.default for field in dataclasses.fields(kind) if field.name == name)
    return default


def value_of(name: str, value: Any, annotation: Any) -> Any:
    """Return a value as a field of a type has it: paths as strings, whole numbers as floats where these are asked for.

    Raises:
        UsageError: it is of another type.
    """
    alternatives = _alternatives(annotation)
    for kind in alternatives:
        if _fits(value, kind):
            return _converted(name, value, kind)
    listed = ", ".join(repr(word) for kind in alternatives for word in get_args(kind) if get_origin(kind) is Literal)
    kinds = [_KINDS[kind] for kind in alternatives if kind in _KINDS]
    kinds_in_words = " or ".join([*kinds, *([f"one of {listed}"] if listed else [])])
    hint = did_you_mean(value, get_args(alternatives[0])) if isinstance(value, str) else ""
    raise UsageError(f"{name} must be {kinds_in_words}, not {value!r}{hint}")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union; of any other type, itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, (str, os.PathLike, Sequence))
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, (str, os.PathLike))
    return isinstance(value, kind)


def _converted(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is tuple:  # of an option that may be repeated; a single value is one time
        values = [value] if isinstance(value, (str, os.PathLike)) else value
        return tuple(value_of(name, element, get_args(kind)[0]) for element in values)
    if kind is str:
        return os.fsdecode(value)
    if kind is int:
        return operator.index(value)
    return float(value) if kind is float else value
