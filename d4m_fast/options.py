"""How options are declared: defaults from the config, values from flags or a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from d4m_fast.config import PRESETS, UNPROVEN, DistillConfig, Preset, Scheduler
from d4m_fast.console import hushed
from d4m_fast.errors import UsageError
from d4m_fast.storage import files
from d4m_fast.storage.state import CONFIG, require_state

Command = Callable[..., Any]
# Beyond these the libraries end the process (OpenMP's threads) or overflow, with a message of theirs.
THREADS = click.IntRange(1, 4096)
BATCH = click.IntRange(1, 99_999)


def auto_or_number(value: str) -> int | str:
    """The type of an option that is "auto" or a positive number."""
    return value if value == "auto" else int(click.IntRange(min=1)(value))


def of_config(name: str, kind: Any, text: str) -> Callable[[Command], Command]:
    """A flag of a `DistillConfig` field, which holds its default."""
    field = name.split("/")[0].removeprefix("--").replace("-", "_")  # of "--flag/--no-flag", the flag
    default = getattr(DistillConfig(), field)
    return click.option(name, type=kind, default=default, show_default=True, help=text)


def of_preset(name: str, kind: Any, text: str) -> Callable[[Command], Command]:
    """A flag of a setting that the preset has a value for: None unless it is given."""
    value = getattr(Preset(), name.removeprefix("--").replace("-", "_"))
    return click.option(name, type=kind, show_default=f"{value}, or the preset's", help=text)


def generation(command: Command) -> Command:
    """`--preset` and the settings it stands for."""
    fast = ", ".join(name for name in PRESETS if name != "reference")
    options = (
        of_config(
            "--preset",
            click.Choice(list(PRESETS)),
            f"Settings of generation. reference: the official ones. {fast}: fewer UNet calls, {UNPROVEN};"
            " docs/presets.md has what they cost and give.",
        ),
        of_preset("--scheduler", click.Choice(get_args(Scheduler)), "Sampler; 'model' is the model directory's own."),
        of_preset("--steps", click.IntRange(min=1), "Length of the whole schedule; steps x strength of it are run."),
        of_preset("--strength", click.FloatRange(0, 1, min_open=True), "How far up the noise schedule prototypes go."),
        of_preset("--guidance", click.FloatRange(min=0), "Classifier-free guidance scale; 1 for none."),
        of_preset("--guidance-interval", str, "LOW:HIGH, parts of the noise schedule guided; outside, half the cost."),
    )
    for option in reversed(options):  # as stacked decorators do
        command = option(command)
    return command


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    """The options without a file's values for what a preset given as a flag sets: flags win over files."""
    source = click.get_current_context().get_parameter_source
    if source("preset") != ParameterSource.COMMANDLINE:
        return options
    return {
        name: None if hasattr(Preset, name) and source(name) == ParameterSource.DEFAULT_MAP else value
        for name, value in options.items()
    }


def shared(command: Command) -> Command:
    """The options that every command has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
        click.option("-q", "--quiet", is_flag=True, callback=_hush, help="No progress, no log, no warnings."),
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


def _hush(context: click.Context, _: click.Parameter, quiet: bool) -> bool:
    if quiet:
        context.with_resource(hushed())
    return quiet


def _load(context: click.Context, _: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    import tomllib

    try:
        data = files.read_regular(file)
        if CONFIG.heads(data):  # a run's own: a digit that changed by itself would make another run of it
            values = require_state(file, CONFIG)["options"]
        else:
            values = json.loads(data)["options"] if file.suffix == ".json" else tomllib.loads(data.decode())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"--config {file}: cannot be read as options ({error})") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {file}: its options are not a table")
    values = {name.replace("-", "_"): value for name, value in values.items() if value is not None}
    unknown = sorted(set(values) - {parameter.name for parameter in context.command.params})
    if unknown:
        raise UsageError(f"--config {file}: no such option: {', '.join(unknown)}")
    wrong = sorted(name for name, value in values.items() if not _is_option_value(value))
    if wrong:
        raise UsageError(f"--config {file}: {', '.join(wrong)}: must be a string, a number, true or false")
    # As flags have them: of a number that is no integer, or of true, click would make an integer without a word.
    context.default_map = {name: str(value) for name, value in values.items()}


def _is_option_value(value: object) -> bool:
    """Whether it could have been given as a flag; no flag holds a NUL."""
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and "\0" not in value)
