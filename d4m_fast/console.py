"""What the command line shows: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from rich.table import Table

    from d4m_fast.data.records import Source

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
LINE_SECONDS = 10.0
SHOWN_CLASSES = 3


class Sized(Protocol[T_co]):
    """What a stage returns."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


def text(table: Table) -> str:
    from rich.console import Console

    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def track(label: str, items: Sized[T], quiet: bool) -> Iterator[T]:
    """The items, with a progress bar on a terminal and a line now and then elsewhere, on stderr."""
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, label, len(items), console=Console(stderr=True))
    else:
        yield from _lines(label, items)


@dataclass(frozen=True)
class Progress:
    """What a run says while it goes, on stderr."""

    quiet: bool

    def follow(self, label: str, items: Sized[object]) -> None:
        """Draw all items of a stage, showing how far it is."""
        for _ in track(label, items, self.quiet):
            pass

    def say(self, line: str) -> None:
        if not self.quiet:
            click.echo(line, err=True)


def _lines(label: str, items: Sized[T]) -> Iterator[T]:
    said = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if count == len(items) or time.monotonic() - said > LINE_SECONDS:
            click.echo(f"{label} {count}/{len(items)}", err=True)
            said = time.monotonic()


def now_and_then(quiet: bool) -> Callable[[str], None]:
    """A listener that shows, on stderr, one line of what it is told every ten seconds."""
    said = time.monotonic()

    def listen(line: str) -> None:
        nonlocal said
        if not quiet and time.monotonic() - said > LINE_SECONDS:
            click.echo(line, err=True)
            said = time.monotonic()

    return listen


def say_classes(source: Source) -> None:
    """Show, on stderr, the prompts of the first classes, and what was left out of the images."""
    from d4m_fast.data.labels import shared_prompts

    for info in source.classes[:SHOWN_CLASSES]:
        click.echo(f"class {info.id}: {display(info.folder)} -> {display(info.prompt)}", err=True)
    shared = shared_prompts(source.classes)
    if shared:
        prompt, folders = next(iter(shared.items()))
        others = f", and {len(shared) - 1} more are shared" if len(shared) > 1 else ""
        click.echo(f"one prompt for several classes: {display(prompt)} ({', '.join(folders)}){others}", err=True)
    for line in source.notes:
        click.echo(display(line), err=True)


def display(name: str) -> str:
    """A name as it can be shown: what is not printable is written as an escape sequence."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def say_weights(line: str, quiet: bool) -> None:
    """Show, on stderr, which weight files of a model are loaded, where there is something to say of them."""
    if line and not quiet:
        click.echo(f"weights: {line}", err=True)


def say_result(result: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    click.echo(json.dumps(result, ensure_ascii=False) if as_json else text())


def distilled_text(summary: dict[str, Any]) -> str:
    seconds = ", ".join(f"{stage} {spent:.1f}" for stage, spent in summary["seconds"].items())
    lines = [
        f"{summary['images']} images of {summary['classes']} classes in {summary['run']}/images",
        f"look at {summary['run']}/preview.png; provenance is in manifest.jsonl beside it",
        f"seconds: {seconds}",
    ]
    if summary["quarantined"]:
        lines.append(f"{summary['quarantined']} damaged images left out: {summary['run']}/quarantine.jsonl")
    return "\n".join(lines)


def exported_text(certificate: dict[str, Any]) -> str:
    parts = certificate["components"].items()
    worst = {name: max(p["relative_l2"] for p in part["parity"]) for name, part in parts}
    images, speed = certificate["images"], certificate["speed"]
    lines = [
        f"{certificate['status']}: {certificate['path']}",
        f"compared: {certificate['compared']}",
        "largest relative L2 from fp32 PyTorch: " + ", ".join(f"{n} {x:.1e}" for n, x in worst.items()),
        f"worst of {images['count']} images: {images['psnr_worst']:.1f} dB",
    ]
    if speed is not None:
        lines.append(
            f"{speed['ratio']:.2f} times PyTorch's images per second at batch {speed['batch']},"
            f" {speed['threads']} threads"
        )
    return "\n".join([*lines, *certificate["unverified"]])
