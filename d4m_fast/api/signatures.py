"""Signatures of the functions, as `help`, notebooks and `inspect.signature` show them: a config's fields in full."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from d4m_fast.config.fields import settings_of

Function = TypeVar("Function", bound=Callable[..., Any])


def with_options_of(config: type) -> Callable[[Function], Function]:
    """Show, in place of a function's `**options`, the fields of a config with their defaults and helps.

    Type checkers do not run this: for them `options` is typed (`config/keywords.py`).
    """

    def describe(function: Function) -> Function:
        signature, annotations = inspect.signature(function), get_type_hints(config)
        parameters = [parameter for name, parameter in signature.parameters.items() if name != "options"]
        lines = []
        for field, described in settings_of(config):
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=annotations[field.name],
                )
            )
            lines.append(f"    {field.name}: {described.help}")
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__doc__ = f"{inspect.getdoc(function)}\n\nOptions:\n" + "\n".join(lines)
        return function

    return describe
