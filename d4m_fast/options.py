"""How options are declared: defaults from the config, values from flags or a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from d4m_fast.config import DistillConfig
from d4m_fast.errors import UsageError

Command = Callable[..., Any]


def auto_or_number(value: str) -> int | str:
    """The type of an option that is "auto" or a positive number."""
    return value if value == "auto" else int(click.IntRange(min=1)(value))


def of_config(name: str, kind: Any, text: str) -> Callable[[Command], Command]:
    """A flag of a `DistillConfig` field, which holds its default."""
    default = getattr(DistillConfig(), name.removeprefix("--").replace("-", "_"))
    return click.option(name, type=kind, default=default, show_default=True, help=text)


def shared(command: Command) -> Command:
    """The options that every command has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="No progress, no log."),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=_load,
            help="Options from a TOML file or a run's config.json; flags win over them.",
        ),
    ):
        command = option(command)
    return command


def _load(context: click.Context, _: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    import tomllib

    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text)["options"] if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--config {file}: cannot be read as options ({error})") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {file}: its options are not a table")
    values = {name.replace("-", "_"): value for name, value in values.items() if value is not None}
    unknown = sorted(set(values) - {parameter.name for parameter in context.command.params})
    if unknown:
        raise UsageError(f"--config {file}: no such option: {', '.join(unknown)}")
    context.default_map = values
