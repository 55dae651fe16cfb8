"""What was exported, a row per set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from d4m_fast.engine.artifacts import Artifact

if TYPE_CHECKING:
    from rich.table import Table


def listing(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """A row per set, of plain values."""
    return [
        {
            "path": str(a.path),
            "engine": a.certificate["engine"],
            "precision": a.certificate["precision"],
            "resolution": a.certificate["resolution"],
            "static_batch": a.certificate["static_batch"],
            "bytes": a.bytes,
            "status": a.status,
            "psnr_worst": round(a.certificate["images"]["psnr_worst"], 1),
            "targets": a.certificate["targets"],
            "speed": None if a.speed is None else round(a.speed, 2),
        }
        for a in artifacts
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table

    shown = Table("set", "status", "batch", "MB", "worst image, dB", "speed against PyTorch")
    for row in rows:
        batch = "any" if row["static_batch"] is None else str(row["static_batch"])
        size = f"{row['bytes'] / 1e6:.1f}"
        shown.add_row(row["path"], row["status"], batch, size, f"{row['psnr_worst']:.1f}", _speed(row))
    return shown


def _speed(row: dict[str, Any]) -> str:
    return "not run" if row["speed"] is None else f"{row['speed']:.2f}"
