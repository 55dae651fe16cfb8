"""`import d4m_fast`: light, complete for type checkers and at run time, and its keywords are the configs' fields."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from driving import environment

import d4m_fast
from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.config.fields import settings_of
from d4m_fast.config.keywords import DistillOptions, EvaluateOptions
from d4m_fast.config.values import value_of
from d4m_fast.errors import UsageError

HEAVY = ("torch", "numpy", "PIL", "click", "rich", "diffusers", "transformers", "pandas", "d4m_fast.api")


def test_the_import_is_light() -> None:
    code = f"import sys, d4m_fast; print([name for name in {HEAVY} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def names_for_type_checkers() -> set[str]:
    tree = ast.parse(Path(d4m_fast.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {alias.asname or "" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_names_are_there_for_type_checkers_and_at_run_time() -> None:
    names = names_for_type_checkers()
    assert {"distill", "evaluate", "load", "open_run", "Run", "D4MError"} <= names
    assert names | {"__version__"} == set(vars(d4m_fast)["__all__"])
    assert names <= set(dir(d4m_fast))
    for name in names:
        assert getattr(d4m_fast, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = d4m_fast.nothing  # type: ignore[attr-defined]


def test_every_foreseen_error_but_those_of_stdout_is_exported() -> None:
    def kinds(base: type[d4m_fast.D4MError]) -> set[str]:
        return {base.__name__}.union(*(kinds(kind) for kind in base.__subclasses__()))

    ours = {name for name in kinds(d4m_fast.D4MError) if name in vars(sys.modules["d4m_fast.errors"])}
    assert ours - names_for_type_checkers() == {"OutputError", "ClosedPipeError"}


def alternatives(annotation: Any) -> set[Any]:
    return set(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else {annotation}


def loosened(annotation: Any) -> list[set[Any]]:
    """The types of keyword that may stand for a field's."""
    kinds = alternatives(annotation)
    paths = kinds | {os.PathLike[str]} if str in kinds else kinds
    if get_origin(annotation) is not tuple:
        return [kinds, paths]
    (element, _) = get_args(annotation)
    own = str | os.PathLike[str] if element is str else element
    return [{*alternatives(own), types.GenericAlias(Sequence, (own,))}]


@pytest.mark.parametrize(("config", "keywords"), [(DistillConfig, DistillOptions), (EvaluateConfig, EvaluateOptions)])
def test_keywords_are_the_fields_of_the_config(config: type, keywords: type) -> None:
    fields, given = get_type_hints(config), get_type_hints(keywords)
    assert list(given) == [field.name for field, _ in settings_of(config)]
    assert [name for name in given if alternatives(given[name]) not in loosened(fields[name])] == []


class Nothing:
    """A value of no type that an option has."""


@pytest.mark.parametrize("config", [DistillConfig, EvaluateConfig])
def test_every_field_takes_its_default_and_refuses_another_type(config: Any) -> None:
    hints, default = get_type_hints(config), config()
    for field, _ in settings_of(config):
        value = getattr(default, field.name)
        assert value_of(field.name, value, hints[field.name]) == value
        with pytest.raises(UsageError, match=f"^{field.name} must be .*Nothing"):
            value_of(field.name, Nothing(), hints[field.name])


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (Path("a/b"), str, "a/b"),
        (Path("a/b"), str | None, "a/b"),
        (None, str | None, None),
        (1, float, 1.0),
        ("hard", tuple[str, ...], ("hard",)),
        (Path("x"), tuple[str, ...], ("x",)),
        (["a", Path("b")], tuple[str, ...], ("a", "b")),
    ],
    ids=str,
)
def test_values_are_as_the_field_has_them(value: object, annotation: Any, expected: object) -> None:
    result = value_of("name", value, annotation)
    assert (result, type(result)) == (expected, type(expected))
