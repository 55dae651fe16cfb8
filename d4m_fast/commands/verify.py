"""`d4m-fast verify`: is a run whole?"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from d4m_fast.config.fields import Group
from d4m_fast.console import say_result
from d4m_fast.errors import D4MError, DamageError
from d4m_fast.options import PATH, command, option

if TYPE_CHECKING:
    from d4m_fast.runs.verify import Verdict

MOST_FINDINGS = 20  # lines on a terminal; --json has all


@command
@click.argument("run", type=PATH)
@option("--deep", group=Group.EVERYDAY, is_flag=True, help="Decode every image and check its size, too.")
@option(
    "--repair",
    group=Group.EVERYDAY,
    is_flag=True,
    help="Uncommit damaged groups, so that a re-run makes them again.",
)
def verify(run: Path, deep: bool, repair: bool, as_json: bool, quiet: bool) -> None:
    """Check a run's files against the records of their commit: missing, damaged and foreign files are named.

    RUN may be an output of convert, too; those in a run are checked with it.

    Exits 0 when the run is whole, 1 when it is sound but not finished, 5 when something is damaged, repaired or not.
    --repair removes records and derived files only; foreign files are left alone.

    \b
    Examples:
      d4m-fast verify runs/demo
      d4m-fast verify runs/demo --deep --repair
      d4m-fast verify demo-shards
    """
    from d4m_fast.runs.output_check import is_output
    from d4m_fast.runs.verify import verify as check
    from d4m_fast.runs.verify import verify_output

    if is_output(run):
        verdict = verify_output(run, repair=repair)
        commands = list(verdict.commands)
    else:
        verdict = check(run, deep=deep, repair=repair)
        commands = [*_distill_commands(verdict), *verdict.commands]
    resuming_command = " && ".join(commands)
    value = {**verdict.to_json(), "command": None if verdict.whole else resuming_command}
    if not (quiet and verdict.whole) or as_json:
        say_result(value, as_json, lambda: _lines(verdict, resuming_command))
    if verdict.findings:
        sys.exit(DamageError.exit_code)
    if not verdict.whole:
        sys.exit(D4MError.exit_code)


def _distill_commands(verdict: Verdict) -> list[str]:
    """Return the command that goes on with a run; none where only outputs in it are not as they should be."""
    from d4m_fast.runs.output_files import OUTPUTS
    from d4m_fast.storage.state import CONFIG, require_state

    if verdict.finished and all(finding.file.startswith(f"{OUTPUTS}/") for finding in verdict.findings):
        return []
    config = verdict.run / "config.json"
    places = {"config": config, "out": verdict.run, "artifacts": require_state(config, CONFIG)["artifacts"]}
    resuming_command = "d4m-fast distill"
    for name, place in places.items():
        resuming_command += f" --{name} {shlex.quote(str(place))}"
    return [resuming_command]


def _lines(verdict: Verdict, resuming_command: str) -> list[str]:
    lines = []
    for finding in verdict.findings[:MOST_FINDINGS]:
        lines.append(f"{finding.problem}: {verdict.run / finding.file} ({finding.reason})")
    if len(verdict.findings) > MOST_FINDINGS:
        lines.append(f"and {len(verdict.findings) - MOST_FINDINGS:,} more; --json has all")
    if verdict.findings:
        state = f"{len(verdict.findings):,} files are not as recorded"
    else:
        state = "whole" if verdict.whole else "sound, but not finished"
    groups = f", {verdict.committed:,} of {verdict.groups:,} groups committed"
    is_of_groups = verdict.groups or verdict.committed  # an output has none
    lines.append(f"{verdict.run}: {state}; {verdict.images:,} images compared{groups if is_of_groups else ''}")
    if verdict.removed:
        lines.append(f"removed: {', '.join(verdict.removed)}")
    if not verdict.whole:
        lines.append(_advice(verdict, resuming_command))
    return lines


def _advice(verdict: Verdict, resuming_command: str) -> str:
    """Return what to do about a run that is not whole."""
    has_damage = any(finding.problem != "foreign" for finding in verdict.findings)
    if has_damage and not any(finding.marks for finding in verdict.findings):
        return f"--repair mends none of this; once it is done by hand, go on: {resuming_command}"
    if has_damage and not verdict.removed:
        return "to have exactly these made again: the same command with --repair, then " + resuming_command
    if verdict.findings and not has_damage:
        return "foreign files are yours to remove"
    return f"to go on: {resuming_command}"
