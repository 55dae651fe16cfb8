"""Results of an evaluation as JSON, as a file, and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d4m_fast.evaluation.statistics import DISTILLED, Difference, Row, rows_of, scores_of
from d4m_fast.evaluation.tasks import Result
from d4m_fast.evaluation.teacher_check import TeacherCheck
from d4m_fast.storage.state import EVALUATION, write_state

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1  # of the JSON's fields
MOST_CONFUSED = 100  # classes


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of an evaluation.

    Attributes:
        runs: the distilled sets' directories, as the user named them.
        classes: folders of the classes evaluated.
        protocol: all fields, overrides included.
        seeds: students per arm and generation.
        data: fingerprints of the distilled sets, the real images and the test images.
    """

    runs: tuple[str, ...]
    images_per_class: int
    classes: tuple[str, ...]
    protocol: Mapping[str, Any]
    seeds: int
    data: tuple[str, ...]


def to_json(
    subject: Subject,
    results: Iterable[Result],
    *,
    image_bytes: Mapping[str, int],
    checks: Sequence[TeacherCheck],
    feature_map: Mapping[str, Any] | None,
    provenance: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return everything an evaluation says, ready for `json.dumps`.

    Args:
        image_bytes: of each arm's images, where they are on a disk.
    """
    results = list(results)
    rows, curves = rows_of(results), list[dict[str, Any]]()
    for row in rows:
        curves += map(_curve, row.results)
    return {
        "format": FORMAT,
        "subject": {
            **asdict(subject),
            "run": subject.runs[0],
            "runs": list(subject.runs),
            "classes": list(subject.classes),
            "data": list(subject.data),
        },
        "rows": [_row(row, subject, image_bytes) for row in rows],
        "curves": curves,
        "scores": scores_of(rows),
        "teacher_check": checks[0].to_json() if checks else None,
        "teacher_checks": [check.to_json() for check in checks],
        "feature_map": feature_map,
        "provenance": dict(provenance),
        "seconds": dict(seconds),
    }


def _row(row: Row, subject: Subject, image_bytes: Mapping[str, int]) -> dict[str, Any]:
    difference = row.difference_to_random
    on_disk = {"image_bytes": image_bytes[row.arm]} if row.arm in image_bytes else {}
    # The first student's; of many classes only the distilled arm's: of 1,000 it is a million numbers.
    confusion = row.results[0].confusion
    is_small = len(confusion) <= MOST_CONFUSED
    return {
        **on_disk,
        "arm": row.arm,
        "regime": row.regime,
        "protocol": subject.protocol["name"],
        "student": row.student,
        "teacher": row.teacher,
        "images_per_class": subject.images_per_class,
        "seeds": [[result.task.generation, result.task.seed] for result in row.results],
        "accuracy": row.accuracies,
        "mean": row.mean,
        "std": row.std,
        "best_epoch_mean": row.best_epoch_mean,
        "difference_to_random": None if difference is None else asdict(difference),
        "label_bytes": row.results[0].label_bytes,
        "per_class": row.per_class,
        "confusion": list(map(list, confusion)) if is_small or row.arm == DISTILLED else None,
        "seconds": sum(result.seconds for result in row.results),
    }


def _curve(result: Result) -> dict[str, Any]:
    task = result.task
    return {
        "arm": task.arm,
        "regime": task.regime,
        "student": task.student,
        "teacher": task.teacher,
        "generation": task.generation,
        "seed": task.seed,
        "losses": list(result.losses),
        "accuracies": list(map(list, result.accuracies)),
    }


def title(subject: Mapping[str, Any]) -> str:
    """Return the line above the table."""
    protocol = subject["protocol"]
    return (
        f"{', '.join(subject['runs'])}: {subject['images_per_class']} images per class, protocol {protocol['name']},"
        f" {protocol['resolution']} pixels, {protocol['epochs']} epochs, last epoch, full test set"
    )


def check_line(check: Mapping[str, Any]) -> str:
    """Return the line about a teacher, of the JSON of its check."""
    return f"teacher {check['teacher']}: {check['accuracy']:.1f} % of {check['images']} real test images"


def save(path: Path, value: Mapping[str, Any]) -> None:
    """Keep an evaluation as a state file."""
    write_state(path, EVALUATION, value)


def table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return a table for the terminal: one line per row of the JSON."""
    from rich.table import Table

    table = Table(caption="difference: from random, paired by seed, 95 % interval", caption_justify="left")
    for name in ("images", "labels", "student", "accuracy %", "std", "n", "difference"):
        table.add_column(name, justify="left" if name in ("images", "labels", "student") else "right")
    for row in rows:
        table.add_row(
            row["arm"],
            row["regime"],
            row["student"],
            f"{row['mean']:.2f}",
            "-" if row["std"] is None else f"{row['std']:.2f}",
            str(len(row["accuracy"])),
            _difference_text(row["difference_to_random"]),
        )
    return table


def _difference_text(value: Mapping[str, float | None] | None) -> str:
    if value is None:
        return ""
    difference = Difference(**value)  # type: ignore[arg-type]
    if difference.low is None:
        return f"{difference.mean:+.2f}"
    return f"{difference.mean:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})"
