"""The command line: parse, compose the stages, report. The only place that prints or draws progress."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from d4m_fast import __version__, streams
from d4m_fast.commands.certify import certify
from d4m_fast.commands.doctor import doctor
from d4m_fast.commands.export import export
from d4m_fast.commands.plan import plan as plan_command
from d4m_fast.commands.profile import profile
from d4m_fast.commands.verify import verify
from d4m_fast.config import DistillConfig
from d4m_fast.console import (
    Notices,
    Progress,
    Sized,
    distilled_lines,
    lines_of,
    say,
    say_classes,
    say_result,
    say_weights,
    track,
)
from d4m_fast.endings import debugging, ending_of, report_unexpected
from d4m_fast.errors import EXIT_QUARANTINED, EXIT_SIGHUP, EXIT_SIGTERM, PreflightError, UsageError
from d4m_fast.options import THREADS, auto_or_number, chosen, generation, of_config, shared
from d4m_fast.preflight import require_machine

if TYPE_CHECKING:
    from d4m_fast.evaluation.report import LabelKind, Result, Subject


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
    d4m-fast evaluate runs/RUN          train students on the result, beside random real images
    d4m-fast export                     the networks to ONNX, compared with PyTorch and certified
    d4m-fast certify                    every engine of this machine, checked against the CPU and timed
    d4m-fast plan --gpu h100 --ipc 50   FLOPs, hours, disk and memory of a run, calculated before it
    d4m-fast profile                    images per second, latency, memory and share of peak of every stage here
    d4m-fast verify runs/RUN            check a run's files against their records; --repair uncommits what is damaged

    \b
    Exit codes: 0 done, 1 failed, 2 usage, 3 finished with quarantined images, 4 run directory of another
    config or in use, 5 damaged artifact or run, 6 no disk, memory, permission, device or extra, or the result cannot
    be printed, 70 unexpected (the line says where its traceback is; D4M_DEBUG=1 shows it), 129, 130 and 143
    interrupted, 141 nobody reads the result.
    """
    require_machine()


@cli.command()
@of_config("--data", str, "'bundled', or a directory: an ImageFolder, IDX or CIFAR files.")
@of_config("--model", str, "'bundled', a directory in diffusers format, or a hub id.")
@of_config("--revision", str, "Commit, tag or branch of a model from the hub.  [default: main, recorded as a commit]")
@of_config("--ipc", click.IntRange(min=1), "Images per class.")
@of_config("--classes", str, "Only these ids, ranges or folder names, comma-separated; ids stay those of the full set.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/<config hash>]")
@click.option("--artifacts", type=click.Path(path_type=Path), help="Where latents are kept.  [default: user cache]")
@generation
@of_config("--kmeans", click.Choice(["auto", "gram", "direct", "minibatch"]), "minibatch is the official code's.")
@of_config("--kmeans-on", click.Choice(["cpu", "gpu"]), "gpu: CuPy kernels, on --device; not yet run on one by us.")
@of_config("--prototype", click.Choice(["mean", "medoid"]), "Cluster mean, or the real latent nearest to it.")
@of_config("--latent", click.Choice(["sample", "mean"]), "Draw from the VAE's posterior, or take its mean.")
@of_config("--resolution", click.IntRange(min=1), "Side of encoded and generated images.  [default: the model's]")
@of_config("--image-size", click.IntRange(min=1), "Side of the written images.  [default: the resolution]")
@of_config("--format", click.Choice(["png", "jpeg", "webp"]), "png is lossless; jpeg (4:4:4) and webp have quality 95.")
@of_config("--prompts", str, "'official', or a file of prompts.  [default: class names]")
@of_config("--allow-unknown-prompts/--no-allow-unknown-prompts", bool, "Prompts the model says it does not know, too.")
@of_config("--negative-prompt", str, "Prompt to be guided away from.")
@of_config("--seed", int, "Seed of the run.")
@of_config(
    "--batch-size", auto_or_number, "Most images per batch of generation; auto: by memory, and probed in long runs."
)
@of_config("--threads", THREADS, "CPU threads.  [default: one per core]")
@of_config("--engine", click.Choice(["auto", "torch", "onnx", "tensorrt"]), "What computes the networks.")
@of_config("--precision", click.Choice(["auto", "fp32", "fp16"]), "auto: fp16 on GPUs, fp32 on CPUs.")
@of_config("--compile/--no-compile", bool, "UNet and VAE through torch.compile; for --engine torch.")
@of_config("--device", str, "auto, cpu, cuda or cuda:1.")
@of_config(
    "--max-bad-fraction",
    click.FloatRange(0, 1, max_open=True),
    "Unreadable images tolerated, as a part of all.",
)
@shared
def distill(out: Path | None, artifacts: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Distill a dataset: encode, cluster, generate, write. A re-run goes on where the last one stopped.

    \b
    d4m-fast distill
    d4m-fast distill --data imagenet/train --model stable-diffusion-v1-5 --ipc 50 --image-size 224 --out in1k-50
    """
    from d4m_fast.data.timing import Stopwatch

    config, watch = DistillConfig.of_preset(**chosen(options)), Stopwatch()
    with watch("import"):
        import diffusers.schedulers  # noqa: F401  # what `prepare` reads the schedule off

        from d4m_fast import pipeline
        from d4m_fast.prepare import default_artifacts, prepare, require_disk
    cache = default_artifacts() if artifacts is None else artifacts
    with watch("open"):
        job = prepare(config, artifacts=cache, run=out)
    if not quiet:
        say(f"engine: {job.engine_reason}")
        say(f"preset: {job.preset_line}")
        say_classes(job.source)
    say_weights(job.model.weights_line, quiet)
    run = job.default_run() if out is None else out
    require_disk(job, run, cache)
    summary = pipeline.distill(job, run, cache, watch, Progress(quiet))
    summary = {**summary, "run": str(run)}  # where it lies now: one that was moved has the old path on record
    say_result(summary, as_json, lambda: distilled_lines(summary))
    if summary["quarantined"]:
        sys.exit(EXIT_QUARANTINED)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--train-data", help="Real images for the random arm.  [default: what the run was made from]")
@click.option("--test-data", help="Real test images.  [default: the test split of what the run was made from]")
@click.option("--teacher", default="bundled", show_default=True, help="Teacher directory, for soft labels.")
@click.option("--student", type=click.Choice(["convnet3"]), default="convnet3", show_default=True)
@click.option("--width", type=click.IntRange(1, 4096), default=128, show_default=True, help="Channels of the student.")
@click.option("--protocol", type=click.Choice(["small"]), default="small", show_default=True)
@click.option("--label-kind", type=click.Choice(["soft", "hard"]), default="soft", show_default=True)
@click.option("--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Students per arm.")
@click.option("--workers", type=THREADS, help="Students trained side by side.  [default: one per core]")
@shared
def evaluate(run: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train students on a distilled set and on as many random real images; report last-epoch test accuracy.

    RUN is a run directory, or any directory of class folders of images.

    \b
    d4m-fast evaluate runs/demo --width 32
    d4m-fast evaluate their-images --train-data fashion-mnist --test-data fashion-mnist --label-kind hard
    """
    from d4m_fast.evaluation import report

    subject, train = _students(run, **options)
    kept = report.kept(run, subject)
    results = list(track("students", train(), quiet)) if kept is None else kept
    value = report.to_json(subject, results)
    try:
        say_result(value, as_json, lambda: [subject.title, *lines_of(report.table(results))])
    finally:  # hours of training are not lost where they cannot be kept, nor where they cannot be printed
        if kept is None:
            _keep_results(run, subject, results)


def _keep_results(run: Path, subject: Subject, results: Sequence[Result]) -> None:
    from d4m_fast.evaluation import report

    try:
        report.keep(run, subject, results)
    except PreflightError as error:
        say(f"the results are not kept: {error}")


def _students(
    run: Path,
    *,
    train_data: str | None,
    test_data: str | None,
    teacher: str,
    student: str,
    width: int,
    protocol: str,
    label_kind: LabelKind,
    seeds: int,
    workers: int | None,
) -> tuple[Subject, Callable[[], Sized[Result]]]:
    """What is to be measured, and the training that measures it."""
    import torch

    from d4m_fast.data.dataset import open_source
    from d4m_fast.data.run import require_finished, source_of
    from d4m_fast.evaluation.evaluate import evaluate as plan
    from d4m_fast.evaluation.protocols import PROTOCOLS
    from d4m_fast.evaluation.relabel import open_teacher, weights_sha256
    from d4m_fast.evaluation.report import Subject

    require_finished(run)
    distilled = open_source(str(run), prompts_needed=False)
    origin = source_of(run) if train_data is None or test_data is None else None
    train = open_source(_known("--train-data", train_data, origin), prompts_needed=False)
    test = open_source(_known("--test-data", test_data, origin), split="test", prompts_needed=False)
    if test.fingerprint == train.fingerprint:
        raise UsageError("--test-data is needed: what the run was made from has no test images of its own")
    judge = open_teacher(teacher, [info.prompt for info in test.classes]) if label_kind == "soft" else None
    subject = Subject(
        run=str(run),
        images_per_class=len(distilled.items) // len(distilled.classes),
        protocol=protocol,
        student=student,
        width=width,
        label_kind=label_kind,
        seeds=seeds,
        teacher=weights_sha256(teacher) if judge is not None else None,
        data=(distilled.fingerprint, train.fingerprint, test.fingerprint),
    )
    return subject, lambda: plan(
        [distilled],
        train,
        test,
        judge,
        protocol=PROTOCOLS[protocol],
        width=width,
        label_kind=label_kind,
        seeds=range(seeds),
        workers=torch.get_num_threads() if workers is None else workers,
    )


def _known(option: str, given: str | None, origin: str | None) -> str:
    value = origin if given is None else given
    if value is None:
        raise UsageError(f"{option} is needed: this directory does not say what it was made from")
    return value


cli.add_command(certify)
cli.add_command(doctor)
cli.add_command(export)
cli.add_command(plan_command)
cli.add_command(profile)
cli.add_command(verify)


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
        code = cli.main(standalone_mode=False)
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
    """Say how the command ends; returns its exit code."""
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process, without a traceback
    if debugging():
        for line in "".join(traceback.format_exception(error)).splitlines():
            say(line)
    known = ending_of(error)
    ending = report_unexpected(error) if known is None else known
    say(ending.line)
    return ending.code


def _keep_tracebacks_off_stderr() -> None:
    """What happens in other threads, in destructors and in log handlers ends no command, so it is no more than a line.

    Of this process alone, not of one that calls `main` and has hooks of its own.
    """
    logging.raiseExceptions = False
    if not debugging():
        sys.unraisablehook = _pass_on
        threading.excepthook = lambda args: say(f"a thread ended: {args.exc_type.__name__}: {args.exc_value}")


def _pass_on(dropped: sys.UnraisableHookArgs) -> None:
    """An interruption that reached a destructor or an import's callback, where Python drops it, comes once more."""
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        number = int(signal.SIGINT)
    elif isinstance(dropped.exc_value, SystemExit) and dropped.exc_value.code in (EXIT_SIGHUP, EXIT_SIGTERM):
        number = int(dropped.exc_value.code) - 128  # as shells number them
    else:
        return
    again = threading.Timer(0.01, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
