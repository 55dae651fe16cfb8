"""Command-line options, made from the fields of a config, with values from flags or a file, in sections of the help."""

from __future__ import annotations

import dataclasses
import json
import types
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.fields import Group, Setting, flag_of, settings_of
from d4m_fast.config.generation import SETTINGS, GenerationConfig
from d4m_fast.console import hushed
from d4m_fast.errors import UsageError
from d4m_fast.storage import files
from d4m_fast.storage.state import CONFIG, require_state
from d4m_fast.wording import did_you_mean

Function = Callable[..., Any]
Config = TypeVar("Config")
PATH: click.Path = click.Path(path_type=Path)
NAMES_WIDTH = 30  # of the help's first column by Click's default; longer names stand on a line of their own


class Choice(click.Choice[str]):
    """Type of an option with a set of words; a message about any other word names the nearest."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message, question = super().get_invalid_choice_message(value, ctx), did_you_mean(str(value), self.choices)
        return message.removesuffix(".") + question if question else message


class Option(click.Option):
    """An option that knows its section of the help."""

    def __init__(self, *args: Any, group: Group = Group.EVERYDAY, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


class Command(click.Command):
    """A command whose help has a section for each group of options, the everyday ones first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = defaultdict[Group, list[tuple[str, str]]](list)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                names, text = record
                # Click's own --help is the only one without a group. Padded, the sections' texts begin in one column.
                group = getattr(parameter, "group", Group.OUTPUT)
                records[group].append((names.ljust(NAMES_WIDTH), text))
        for group in Group:
            if records[group]:
                with formatter.section(group):
                    formatter.write_dl(records[group])


def command(function: Function) -> Command:
    """Make a command of a function, with the options that every command has after its own."""
    new_command = click.command(cls=Command)(function)
    new_command.params += (
        Option(
            ["--config"],
            group=Group.OUTPUT,
            type=PATH,
            is_eager=True,
            expose_value=False,
            callback=_load_defaults,
            help="Options from a TOML file or a run's config.json; flags win over them.",
        ),
        Option(
            ["-q", "--quiet"],
            group=Group.OUTPUT,
            is_flag=True,
            callback=_hush,
            help="No progress, no log, no warnings.",
        ),
        Option(["--json", "as_json"], group=Group.OUTPUT, is_flag=True, help="Print the result as JSON on stdout."),
    )
    return new_command


def option(*names: str, group: Group, **attributes: Any) -> Callable[[Function], Function]:
    """Declare an option that is no part of a config: where something lies, or what is shown instead."""
    return click.option(*names, cls=Option, group=group, **attributes)


def options_of(config: type) -> Callable[[Function], Function]:
    """Declare an option for each setting of a config, None unless it is given: the config has the default."""

    def add(function: Function) -> Function:
        annotations = get_type_hints(config)
        for field, described in reversed(list(settings_of(config))):  # as stacked decorators do
            flag = flag_of(field, described)
            if isinstance(field.default, bool):
                flag = f"{flag}/--no-{flag.removeprefix('--')}"
            parsed = _parsed(annotations[field.name], described)
            function = option(field.name, flag, group=described.group, help=_help(field, described), **parsed)(function)
        return function

    return add


def _parsed(annotation: Any, described: Setting) -> dict[str, Any]:
    """Return Click's attributes for a type of value."""
    if described.parse is not None:
        return {"type": described.parse, "metavar": "LIST"}
    if annotation == int | Literal["auto"]:
        return {"type": auto_or_number, "metavar": "[auto|INTEGER]"}
    if get_origin(annotation) is tuple:  # an option that may be repeated
        (kind, _) = get_args(annotation)
        return {**_parsed(kind, described), "multiple": True}
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (kind for kind in get_args(annotation) if kind is not types.NoneType)
    if get_origin(annotation) is Literal:
        return {"type": Choice(get_args(annotation))}
    if annotation is bool:
        return {"default": None}  # of a flag, Click's own is False
    return {"type": PATH if annotation is Path else annotation}


def auto_or_number(text: str) -> int | str:
    """Return "auto", or a number."""
    return "auto" if text == "auto" else int(click.INT(text))


def _help(field: dataclasses.Field[Any], described: Setting) -> str:
    """Return an option's help with its default and its bounds."""
    default = _default_text(field, described)
    notes = [f"default: {default}"] if default else []
    if described.range:
        notes.append(described.range)
    return f"{described.help}  [{'; '.join(notes)}]" if notes else described.help


def _default_text(field: dataclasses.Field[Any], described: Setting) -> str:
    if described.default_text is not None:
        return described.default_text
    if isinstance(field.default, bool):
        return f"{'' if field.default else 'no-'}{flag_of(field, described).removeprefix('--')}"
    if isinstance(field.default, tuple):
        return ",".join(map(str, field.default))
    return "" if field.default is None else str(field.default)


def config_of(kind: type[Config], options: Mapping[str, Any]) -> Config:
    """Return the config of a command's options.

    Raises:
        UsageError: the first option that is out of its bounds, or does not go with the others.
    """
    values = dict[str, Any]()
    for field, described in settings_of(kind):
        # Click has no None for an option that may be repeated; an empty list that was parsed is the user's.
        is_missing = described.parse is None and options[field.name] == ()
        values[field.name] = None if is_missing else options[field.name]
    if issubclass(kind, GenerationConfig):
        source = click.get_current_context().get_parameter_source
        if source("preset") == ParameterSource.COMMANDLINE:
            # Flags win over files: what the preset sets is not a file's to set.
            values |= {name: None for name in SETTINGS if source(name) == ParameterSource.DEFAULT_MAP}
        preset = values.pop("preset")
        return kind.of_preset(DistillConfig.preset if preset is None else preset, **values)
    return kind(**{name: value for name, value in values.items() if value is not None})


def _hush(context: click.Context, _: click.Parameter, quiet: bool) -> bool:
    if quiet:
        context.with_resource(hushed())
    return quiet


def _load_defaults(context: click.Context, _: click.Parameter, file: Path | None) -> None:
    """Take a file's options as defaults, which flags win over."""
    if file is None:
        return
    parameter_names = dict[str, str]()  # by what a file may call them: the parameter's name, or the flag's
    repeatable = set[str]()
    for parameter in context.command.params:
        if getattr(parameter, "multiple", False):
            repeatable.add(str(parameter.name))
        flags = (flag.removeprefix("--") for flag in parameter.opts if flag.startswith("--"))
        for name in (str(parameter.name), *flags):
            parameter_names[name.replace("-", "_")] = str(parameter.name)
    options = _read_options(file, parameter_names)
    # As flags have them: of a number that is no integer, or of true, Click would make an integer without a word.
    context.default_map = {}
    for name, value in options.items():
        values = list(map(str, value)) if isinstance(value, list) else [str(value)]
        parameter_name = parameter_names[name]
        context.default_map[parameter_name] = values if parameter_name in repeatable else values[-1]


def _read_options(file: Path, known_names: Collection[str]) -> dict[str, Any]:
    """Return the options of a TOML file or of a run's config.json.

    Raises:
        UsageError: the file cannot be read, an option is unknown, or its value is no string, number or truth value.
    """
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
    unknown = sorted(set(values) - set(known_names))
    if unknown:
        question = did_you_mean(unknown[0], known_names) if len(unknown) == 1 else ""
        raise UsageError(f"--config {file}: no such option: {', '.join(unknown)}{question}")
    unusable = sorted(name for name, value in values.items() if not _is_option_value(value))
    if unusable:
        raise UsageError(f"--config {file}: {', '.join(unusable)}: must be a string, a number, true or false")
    return values


def _is_option_value(value: object) -> bool:
    """Whether a value could have been given as a flag; no flag holds a NUL."""
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and "\0" not in value)
