"""Output of the command line: progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from d4m_fast.flow.progress import Listener, Sized
from d4m_fast.streams import printable, printable_json

if TYPE_CHECKING:
    from rich.table import Table

    from d4m_fast.sources.records import Source

T = TypeVar("T")
LINE_SECONDS = 10.0  # between lines of progress, so that the log of hours stays readable
# Read when the libraries are imported, and by the processes that are started.
_HUSHING = {
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
LISTED_CLASSES = 3  # enough to see whether prompts are words or ids


def lines_of(table: Table, width: int = 100) -> list[str]:
    """Return a table's lines; brackets and colons in its cells stand for themselves, not for styles and emoji."""
    from rich.console import Console

    console = Console(width=width, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip().split("\n")


def say(line: str) -> None:
    """Print a line on stderr; it is dropped where it cannot be printed."""
    click.echo(printable(line), file=sys.stderr)


class Notices(logging.Handler):
    """Shows what our modules log, each message once however often its values change, and libraries' warnings."""

    def __init__(self) -> None:
        super().__init__()
        self._said = set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("d4m_fast.storage", "d4m_fast.runs")) and record.msg in self._said:
            return
        self._said.add(record.msg)
        say(record.getMessage())


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Silence Python's warnings, logs and libraries' progress bars, in this process and in those it starts."""
    before, disabled = {name: os.environ.get(name) for name in _HUSHING}, logging.root.manager.disable
    os.environ.update(_HUSHING)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def track(label: str, items: Sized[T], quiet: bool) -> Iterator[T]:
    """Yield the items, with a progress bar on a terminal and a line now and then elsewhere, on stderr."""
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, label, len(items), console=Console(file=sys.stderr))
    else:
        last_line_at = time.monotonic()
        for count, item in enumerate(items, 1):
            yield item
            if count == len(items) or time.monotonic() - last_line_at > LINE_SECONDS:
                say(f"{label} {count}/{len(items)}")
                last_line_at = time.monotonic()


@dataclass(frozen=True)
class Progress(Listener):
    """Progress of a request, on stderr; where it is quiet, warnings alone."""

    quiet: bool

    def track(self, stage: str, items: Sized[T]) -> Iterator[T]:
        return track(stage, items, self.quiet)

    def say(self, line: str) -> None:
        if not self.quiet:
            say(line)

    def warn(self, line: str) -> None:
        say(line)


def now_and_then(quiet: bool) -> Callable[[str], None]:
    """Return a listener that shows, on stderr, one line of what it is told every ten seconds."""
    last_line_at = time.monotonic()

    def listen(line: str) -> None:
        nonlocal last_line_at
        if not quiet and time.monotonic() - last_line_at > LINE_SECONDS:
            say(line)
            last_line_at = time.monotonic()

    return listen


def class_lines(source: Source) -> Iterator[str]:
    """Yield what kind of data was seen, the prompts of the first classes, and what was left out of the images."""
    from d4m_fast.sources.labels import shared_prompts

    yield f"data: {source.kind}; {len(source.items):,} images of {len(source.classes):,} classes"
    for class_info in source.classes[:LISTED_CLASSES]:
        yield f"class {class_info.id}: {class_info.folder} -> {class_info.prompt}"
    folders_by_prompt = shared_prompts(source.classes)
    if folders_by_prompt:
        prompt, folders = next(iter(folders_by_prompt.items()))
        count = len(folders_by_prompt)
        more = f", and {count - 1} more are shared" if count > 1 else ""
        yield f"one prompt for several classes: {prompt} ({', '.join(folders)}){more}"
    yield from source.notes


def say_classes(source: Source) -> None:
    """Show, on stderr, the lines of `class_lines`."""
    for line in class_lines(source):
        say(line)


def say_weights(line: str, quiet: bool) -> None:
    """Show, on stderr, which weight files of a model are loaded, where there is something to say of them."""
    if line and not quiet:
        say(f"weights: {line}")


def say_result(result: dict[str, Any], as_json: bool, lines: Callable[[], Iterable[str]]) -> None:
    """Print a result on stdout.

    Raises:
        OutputError: stdout is closed, full, or read by nobody.
    """
    if as_json:
        encoding = sys.stdout.encoding
        is_narrow = encoding is not None and not encoding.lower().startswith("utf")  # cannot encode all characters
        click.echo(printable_json(json.dumps(result, ensure_ascii=is_narrow)), file=sys.stdout)
    else:
        say_lines(lines())


def say_lines(lines: Iterable[str]) -> None:
    click.echo("\n".join(map(printable, lines)), file=sys.stdout)


def distilled_lines(summary: dict[str, Any]) -> list[str]:
    seconds = ", ".join(f"{stage} {duration:.1f}" for stage, duration in summary["seconds"].items())
    if "shard" in summary:
        return [
            f"shard {summary['shard']}: {summary['classes']} classes, {summary['groups']} of {summary['groups_of_run']}"
            f" groups, in {summary['run']}",
            "when all shards are done: d4m-fast merge RUN... --out DIR, or nothing more where they share a directory",
            f"seconds: {seconds}",
        ]
    lines = [
        f"{summary['images']} images of {summary['classes']} classes in {summary['run']}/images",
        f"look at {summary['run']}/preview.png; provenance is in manifest.jsonl beside it",
        f"seconds: {seconds}",
    ]
    if summary["quarantined"]:
        lines.append(f"{summary['quarantined']} images left out, and why: {summary['run']}/quarantine.jsonl")
    if summary["first_frames"]:
        lines.append(f"{summary['first_frames']} animated or paged images: only their first frame was read")
    if summary["output"] is not None:
        lines += converted_lines(summary["output"])
    return lines


def converted_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{result['images']:,} images of {result['classes']:,} classes as {result['form']} in {result['out']}",
        f"{result['files']:,} files, {result['bytes']:,} bytes; README.md says how they are loaded",
    ]


def exported_lines(certificate: dict[str, Any]) -> list[str]:
    differences = list[str]()
    for name, component in certificate["components"].items():
        differences.append(f"{name} {max(row['relative_l2'] for row in component['parity']):.1e}")
    images, speed = certificate["images"], certificate["speed"]
    lines = [
        f"{certificate['status']}: {certificate['path']}",
        f"compared: {certificate['compared']}",
        f"largest relative L2 from fp32 PyTorch: {', '.join(differences)}",
        f"worst of {images['count']} images: {images['psnr_worst']:.1f} dB",
    ]
    if speed is not None:
        lines.append(
            f"{speed['ratio']:.2f} times PyTorch's images per second at batch {speed['batch']},"
            f" {speed['threads']} threads"
        )
    return [*lines, *certificate["unverified"]]
