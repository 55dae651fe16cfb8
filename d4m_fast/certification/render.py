"""A certificate as a table in Markdown, between markers that a README has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d4m_fast.certification.certificate import baseline
from d4m_fast.engine.engines import ENGINES
from d4m_fast.errors import DataError
from d4m_fast.storage import files
from d4m_fast.storage.state import MACHINE, read_state

BEGIN, END = "<!-- certify:begin -->", "<!-- certify:end -->"
FULL = 60.0  # seconds of steady state; shorter certificates are marked
COLUMNS = (
    "engine",
    "verdict",
    "largest relative L2",
    "worst image, dB",
    "encode",
    "UNet",
    "decode",
    "images/s",
    "ratio",
)
LABELS: dict[str, str] = {"compiled": "torch.compile", **{name: engine.label for name, engine in ENGINES.items()}}


def read(file: Path) -> dict[str, Any]:
    """Read a certificate.

    Raises:
        DataError: there is none.
        DamageError: it is not what d4m-fast certify wrote.
    """
    certificate = read_state(file, MACHINE)
    if certificate is None:
        raise DataError(f"--render {file}: not there; d4m-fast certify writes it")
    return certificate


def markdown(certificate: Mapping[str, Any]) -> str:
    """Return the table, the machine it was measured on, and notes on what failed or was not run."""
    table = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for name, row in certificate["engines"].items():
        verdict = "FAILED" if not row["passed"] else "certified" if row["compared"] else "not compared"
        cells = [_title(name), verdict, _number(row["relative_l2"], ".1e"), _number(row["psnr_worst"], ".1f")]
        for stage in ("encode", "unet", "decode"):
            cells.append(_stage(row["stages"].get(stage)))
        table.append(_line([*cells, _rate(row["generate"]), _number(row["ratio"], ".2f")]))
    return "\n".join([BEGIN, _head(certificate), "", *table, "", *_notes(certificate), END])


def insert(text: str, into: Path) -> None:
    """Put a rendered table between a file's markers.

    Raises:
        DataError: no such file, or it does not have each marker once, in order.
    """
    try:
        page = files.read_regular(into).decode()
    except OSError as error:
        raise DataError(f"--into {into}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--into {into}: not UTF-8 text (byte {error.start})") from error
    # Each marker once and in order, so that nothing but the table is replaced.
    before, _, from_table = page.partition(BEGIN)
    _, _, after = from_table.partition(END)
    if (page.count(BEGIN), from_table.count(END), page.count(END)) != (1, 1, 1):
        raise DataError(f"--into {into}: put {BEGIN} and {END} on lines of their own where the table belongs")
    files.write_bytes(into, f"{before}{text}{after}".encode())


def _head(certificate: Mapping[str, Any]) -> str:
    machine, versions = certificate["machine"], certificate["versions"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else f", driver {machine['driver']}"
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    revision = "" if certificate["revision"] is None else f"@{certificate['revision']}"
    model = f"{certificate['model']}{revision} ({certificate['model_sha256'][:12]})"
    return f"{device}{threads}; model {model} at {certificate['resolution']} pixels; {libraries}."


def _title(name: str) -> str:
    kind, precision = name.split("-")
    return f"{LABELS[kind]} {precision}"


def _stage(figures: Mapping[str, Any] | None) -> str:
    """Return images per second, the batch, how busy the device was, and its power where that is known."""
    if not figures:
        return "not run"
    watts = f", {figures['watts']['mean']:.0f} W" if "watts" in figures else ""
    busy = f"{100 * figures['busy_share']:.0f} % busy"
    return f"{_rate(figures['images_per_second'])} ({figures['batch']}, {busy}{watts})"


def _notes(certificate: Mapping[str, Any]) -> list[str]:
    seconds, base = certificate["seconds"], baseline(certificate["engines"])
    short = "" if seconds >= FULL else f" (shorter than the {FULL:g} s of a full certificate)"
    against = "nothing, as no baseline was timed" if base is None else f"{_title(base)}, at its own best batch"
    notes = [
        f"Stages: images/s (best batch, busy share), each over {seconds:g} s{short}; one UNet call of"
        f" {certificate['calls']}. Images/s: all UNet calls and the decoding of an image, reckoned from the stages."
        f" Ratio: against {against}.",
    ]
    if certificate["failed"]:
        notes.append(f"Failed: {'; '.join(certificate['failed'])}.")
    not_run = list(certificate["to_do"])
    not_run += [f"{name} ({reason})" for name, reason in certificate["not_here"].items()]
    if not_run:
        notes.append(f"Not run: {', '.join(not_run)}.")
    return "\n\n".join(notes).split("\n")  # paragraphs


def _rate(value: float | None) -> str:
    return _number(value, ",.0f" if value is not None and value >= 1000 else ".3g")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
