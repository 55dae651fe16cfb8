"""Accuracies to a table: mean, standard deviation, and distilled less random."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d4m_fast.config.choices import LabelKind
from d4m_fast.runs.run import is_run
from d4m_fast.storage import files
from d4m_fast.storage.state import EVALUATION, read_state, write_state

if TYPE_CHECKING:
    from rich.table import Table

DISTILLED, RANDOM = "distilled", "random"


@dataclass(frozen=True, slots=True)
class Result:
    """Accuracy of a student on the whole test set after the last epoch, in percent."""

    arm: str
    label_kind: LabelKind
    seed: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of an evaluation: results are comparable, and saved ones reusable, where it is equal.

    Attributes:
        run: the directory, as the user named it.
        seeds: students per arm.
        teacher: SHA-256 of its weights; None for hard labels.
        data: fingerprints of the distilled, the random arm's and the test images.
    """

    run: str
    images_per_class: int
    protocol: str
    student: str
    width: int
    label_kind: LabelKind
    seeds: int
    teacher: str | None
    data: tuple[str, str, str]

    @property
    def title(self) -> str:
        return (
            f"{self.run}: {self.images_per_class} images per class, {self.student} {self.width} wide,"
            f" protocol {self.protocol}, last epoch, full test set"
        )

    def file(self, run: Path) -> Path:
        return run / "evaluation" / f"{self.protocol}-{self.student}-w{self.width}-{self.label_kind}.json"


@dataclass(frozen=True, slots=True)
class Row:
    """Summary of an arm under a kind of label. `std` is the sample standard deviation, None for a single seed."""

    arm: str
    label_kind: LabelKind
    mean: float
    std: float | None
    n: int


def summarise(results: Iterable[Result]) -> list[Row]:
    """Return one row per (label kind, arm), sorted so that the report does not depend on who finished first."""
    groups: dict[tuple[LabelKind, str], list[float]] = {}
    for result in sorted(results, key=lambda r: (r.label_kind, r.arm, r.seed)):
        groups.setdefault((result.label_kind, result.arm), []).append(result.accuracy)
    rows = []
    for (kind, arm), accuracies in groups.items():
        std = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        rows.append(Row(arm, kind, statistics.fmean(accuracies), std, len(accuracies)))
    return rows


def gains(rows: Iterable[Row]) -> dict[LabelKind, float]:
    """Return distilled less random under the same recipe, in points, per label kind.

    DD-Ranking's improvement over random (Li et al., 2025). A kind without both arms is left out.
    """
    means = {(row.label_kind, row.arm): row.mean for row in rows}
    kinds: list[LabelKind] = [kind for kind, arm in means if arm == DISTILLED]
    return {k: means[k, DISTILLED] - means[k, RANDOM] for k in kinds if (k, RANDOM) in means}


def to_json(subject: Subject, results: Iterable[Result]) -> dict[str, Any]:
    """Return the subject, rows, gains and every accuracy, ready for `json.dumps`."""
    ordered = sorted(results, key=lambda r: (r.label_kind, r.arm, r.seed))
    rows = summarise(ordered)
    return {
        # JSON has no tuples: with a list, a subject equals the same one read from a file.
        "subject": {**asdict(subject), "data": list(subject.data)},
        "rows": [asdict(row) for row in rows],
        "gain_points": gains(rows),
        "results": [asdict(result) for result in ordered],
    }


def save_results(run: Path, subject: Subject, results: Iterable[Result]) -> None:
    """Save the report below a run directory; another method's images are left as they are."""
    if is_run(run):
        files.make_directory(subject.file(run).parent)
        write_state(subject.file(run), EVALUATION, to_json(subject, results))


def saved_results(run: Path, subject: Subject) -> list[Result] | None:
    """Return the results of an earlier evaluation of the same subject, of which a new one would be a repetition."""
    report = read_state(subject.file(run), EVALUATION)
    # Without its directory, which may have been moved or named by another path.
    ignored = {"run": None}
    if report is None or report["subject"] | ignored != to_json(subject, [])["subject"] | ignored:
        return None
    return [Result(**result) for result in report["results"]]


def table(results: Iterable[Result]) -> Table:
    """Return a table for the terminal: one line per row of `summarise`, the gains below."""
    from rich.table import Table

    rows = summarise(results)
    lines = []
    for kind, points in gains(rows).items():
        lines.append(f"distilled - random, {kind} labels: {points:+.2f} points")
    table = Table(caption_justify="left", caption="\n".join(lines) if lines else None)
    for name in ("images", "labels", "accuracy %", "std", "n"):
        table.add_column(name, justify="left" if name in ("images", "labels") else "right")
    for row in rows:
        std = "-" if row.std is None else f"{row.std:.2f}"
        table.add_row(row.arm, row.label_kind, f"{row.mean:.2f}", std, str(row.n))
    return table
