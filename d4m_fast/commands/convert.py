"""`d4m-fast convert`: a finished run in the form that a training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from d4m_fast.config.choices import OutputForm
from d4m_fast.config.convert import ConvertConfig
from d4m_fast.config.fields import Group, flag_of, settings_of
from d4m_fast.console import Progress, converted_lines, say_result
from d4m_fast.errors import require
from d4m_fast.options import PATH, Choice, command, config_of, option, options_of


@command
@click.argument("run", type=PATH)
@option("--to", "form", group=Group.EVERYDAY, required=True, type=Choice(get_args(OutputForm)), help="Form of output.")
@option("--out", group=Group.EVERYDAY, required=True, type=PATH, help="Directory that it is written to.")
@options_of(ConvertConfig)
def convert(run: Path, form: OutputForm, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Put a finished run into another form: class folders, WebDataset shards, or Hugging Face parquet files.

    Each image is compared with the run's manifest while it is read. A re-run goes on where the last one stopped, and
    leaves a whole output as it is.

    \b
    Examples:
      d4m-fast convert runs/demo --to webdataset --out demo-shards
      d4m-fast convert runs/demo --to parquet --out demo-parquet --license mit
      d4m-fast convert runs/demo --to imagefolder --out demo-folders
    """
    config = config_of(ConvertConfig, options)
    from d4m_fast.outputs.convert import convert as convert_run
    from d4m_fast.outputs.forms import FORMS

    for field, described in settings_of(ConvertConfig):
        is_taken = options[field.name] is None or field.name in FORMS[form].settings
        require(is_taken, f"{flag_of(field, described)}: --to {form} has no such option")
    result = convert_run(run, form, out, config, Progress(quiet))
    say_result(result, as_json, lambda: converted_lines(result))
