"""`d4m-fast merge`: shards of a run into one."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from d4m_fast.config.fields import Group
from d4m_fast.console import distilled_lines, say_result
from d4m_fast.errors import EXIT_QUARANTINED
from d4m_fast.options import PATH, command, option


@command
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@option("--out", group=Group.EVERYDAY, type=PATH, required=True, help="Directory of the whole run.")
def merge(runs: tuple[Path, ...], out: Path, as_json: bool, quiet: bool) -> None:
    """Merge shards that were made in directories of their own, by distill --shard, into the run they are parts of.

    Their options and plans are compared, every file with its record; files are linked where that can be done, else
    copied. Groups that are in none of them are named. The result is as if one process had made it.

    \b
    Examples:
      d4m-fast merge runs/shard-1 runs/shard-2 runs/shard-3 --out runs/whole
    """
    from d4m_fast.runs.merge import merge as merge_runs

    summary = {**merge_runs(runs, out), "run": str(out), "output": None}
    say_result(summary, as_json, lambda: distilled_lines(summary))
    if summary["quarantined"]:
        sys.exit(EXIT_QUARANTINED)
