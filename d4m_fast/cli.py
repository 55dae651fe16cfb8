"""The group of commands, and `main`, which turns whatever happens into one line and an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

import click

from d4m_fast import __version__, streams
from d4m_fast.commands.certify import certify
from d4m_fast.commands.convert import convert
from d4m_fast.commands.distill import distill
from d4m_fast.commands.doctor import doctor
from d4m_fast.commands.evaluate import evaluate
from d4m_fast.commands.export import export
from d4m_fast.commands.merge import merge
from d4m_fast.commands.plan import plan
from d4m_fast.commands.profile import profile
from d4m_fast.commands.teach import teach
from d4m_fast.commands.verify import verify
from d4m_fast.console import Notices, say
from d4m_fast.endings import debugging, ending_of, report_unexpected
from d4m_fast.errors import EXIT_SIGHUP, EXIT_SIGTERM, PreflightError
from d4m_fast.preflight import require_machine


class _Group(click.Group):
    """Click takes any broken pipe for stdout's, and ends with 1 and no word; stdout's is an OutputError here."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PreflightError(f"broken pipe: a process that was written to has ended ({error})") from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="d4m-fast")
def cli() -> None:
    """Distill image datasets with diffusion (D4M, Su et al., CVPR 2024), fast and reproducibly.

    \b
    d4m-fast distill                    distill the bundled images with the bundled model
    d4m-fast merge RUN... --out DIR     shards of a run, from distill --shard, into one
    d4m-fast convert runs/RUN           the result as class folders, WebDataset shards or parquet files
    d4m-fast evaluate runs/RUN          train students on the result, beside random real images
    d4m-fast teach IMAGES               train a teacher, where none exists, to label with
    d4m-fast export                     the networks to ONNX, compared with PyTorch and certified
    d4m-fast certify                    every engine of this machine, checked against the CPU and timed
    d4m-fast plan --gpu h100 --ipc 50   FLOPs, hours, disk and memory of a run, calculated before it
    d4m-fast profile                    images per second, latency, memory and share of peak of every stage here
    d4m-fast verify runs/RUN            check a run's files against their records; --repair uncommits what is damaged

    \b
    Exit codes: 0 done, 1 failed, 2 usage, 3 finished with quarantined images, or done but for groups that were set
    aside, 4 run directory of another config or in use, 5 damaged artifact or run, 6 no disk, memory, permission,
    device or extra, or the result cannot be printed, 70 unexpected (the line says where its traceback is; D4M_DEBUG=1
    shows it), 129, 130 and 143 interrupted, 141 nobody reads the result.
    """
    require_machine()


for command in (distill, merge, convert, evaluate, teach, export, certify, verify, plan, profile, doctor):
    cli.add_command(command)


def _stop(number: int, _: object) -> NoReturn:
    sys.exit({signal.SIGTERM: EXIT_SIGTERM, signal.SIGHUP: EXIT_SIGHUP}[signal.Signals(number)])


def main() -> NoReturn:
    """Run the command line; every failure is one line and its exit code."""
    if streams.install():
        _keep_tracebacks_off_stderr()
    logging.basicConfig(level=logging.WARNING, handlers=[Notices()])
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, _stop)
    try:
        # Click's standalone mode would print errors in its own way and end the process.
        code = cli.main(standalone_mode=False)
        # What is still in the buffer can fail here, where it is told, and not when the interpreter ends.
        sys.stdout.flush()
        sys.exit(code)
    except click.exceptions.NoArgsIsHelpError as error:
        for line in error.format_message().splitlines():
            say(line)
        sys.exit(error.exit_code)
    # The one place where everything is caught: whatever else comes out of a command is a defect of ours, to be told in
    # one line that says where its traceback is. SystemExit passes.
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_end(error))


def _end(error: BaseException) -> int:
    """Say how the command ends, and return its exit code."""
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process, without a traceback
    if debugging():
        for line in "".join(traceback.format_exception(error)).splitlines():
            say(line)
    ending = ending_of(error)
    if ending is None:
        ending = report_unexpected(error)
    say(ending.line)
    return ending.code


def _keep_tracebacks_off_stderr() -> None:
    """Print errors of other threads, destructors and log handlers, which end no command, as one line or not at all.

    In this process alone, not in one that calls `main` and has hooks of its own.
    """
    logging.raiseExceptions = False
    if not debugging():
        sys.unraisablehook = _pass_on
        threading.excepthook = lambda args: say(f"a thread ended: {args.exc_type.__name__}: {args.exc_value}")


def _pass_on(dropped: sys.UnraisableHookArgs) -> None:
    """Repeat an interruption that reached a destructor or an import's callback, where Python drops it."""
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        number = int(signal.SIGINT)
    elif isinstance(dropped.exc_value, SystemExit) and dropped.exc_value.code in (EXIT_SIGHUP, EXIT_SIGTERM):
        number = int(dropped.exc_value.code) - 128  # as shells number them
    else:
        return
    # A moment later: sent at once, it would reach the same destructor, and be dropped there once more.
    repetition = threading.Timer(0.01, os.kill, (os.getpid(), number))
    repetition.daemon = True
    repetition.start()
