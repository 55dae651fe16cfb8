"""Exported sets as rows and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from d4m_fast.engine.artifacts import Artifact

if TYPE_CHECKING:
    from rich.table import Table


def listing(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """Return a row per set, of plain values."""
    rows = []
    for artifact in artifacts:
        certificate = artifact.certificate
        row: dict[str, Any] = {"path": str(artifact.path)}
        for name in ("engine", "precision", "resolution", "static_batch"):
            row[name] = certificate[name]
        row |= {"bytes": artifact.bytes, "status": artifact.status}
        row["psnr_worst"] = round(certificate["images"]["psnr_worst"], 1)
        row["targets"] = certificate["targets"]
        row["speed"] = None if artifact.speed is None else round(artifact.speed, 2)
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table

    rendered = Table("set", "status", "batch", "MB", "worst image, dB", "speed against PyTorch")
    for row in rows:
        batch = "any" if row["static_batch"] is None else str(row["static_batch"])
        size = f"{row['bytes'] / 1e6:.1f}"
        speed = "not run" if row["speed"] is None else f"{row['speed']:.2f}"
        rendered.add_row(row["path"], row["status"], batch, size, f"{row['psnr_worst']:.1f}", speed)
    return rendered
