"""A profile as a table and as text, from its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from d4m_fast.profiling.compare import Comparison

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("stage", "engine", "batch", "images/s", "p50 ms", "p90", "p99", "peak MB", "GFLOP/s", "of peak")


def table(profile: Mapping[str, Any]) -> Table:
    from rich.table import Table

    rendered = Table()
    for name in COLUMNS:
        rendered.add_column(name, justify="left" if name in ("stage", "engine") else "right")
    for stage, records in profile["stages"].items():
        for record in records:
            cells = [stage, record["engine"], str(record["batch"]), _number(record["images_per_second"])]
            for latency in record["latency_seconds"].values():
                cells.append(_number(1e3 * latency))
            cells.append(_number(record["peak_bytes"] / 1e6))
            cells.append("" if record["gflops"] is None else _number(record["gflops"]))
            cells.append("" if record["share_of_peak"] is None else f"{record['share_of_peak']:.0%}")
            rendered.add_row(*cells)
    return rendered


def _number(value: float) -> str:
    """Format a number with three digits, or with all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def notes(profile: Mapping[str, Any]) -> list[str]:
    """Return notes below the table: machine, units, and the stages of runs from end to end."""
    machine, peak = profile["machine"], profile["peak"]
    lines = [
        f"{machine['device']}, {machine['threads']} threads, {profile['precision']}, {profile['resolution']} pixels",
        f"peak: matrix product {peak['matrix_product_gflops']:.4g}, convolution"
        f" {peak['convolution_gflops']:.4g} GFLOP/s; the share is of the larger",
        f"unet is one guided call; an image takes {profile['unet_calls_per_image']}; kmeans counts points, distill"
        " whole images",
        f"memory is that of {'the ' * profile['peak_bytes_of'].startswith('process')}{profile['peak_bytes_of']}",
    ]
    for record in profile["stages"].get("distill", []):
        lines.append(f"distill, {record['engine']}, seconds: {_seconds(record['seconds'])}")
        lines.append(f"distill, {record['engine']}, waits: {_seconds(record['waits'])}")
    return lines


def _seconds(times: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in times.items()) if times else "no queues"


def compared(comparison: Comparison) -> Iterator[str]:
    """Yield a line for each difference, missing row and slower row, and one for all."""
    for difference in comparison.differences:
        yield f"not the same machine or job, the ratios say little: {difference}"
    for stage, engine, batch in comparison.missing:
        yield f"missing now: {stage} {engine} x{batch}"
    for change in comparison.slower:
        yield (
            f"slower: {change.stage} {change.engine} x{change.batch}, {change.ratio:.2f} times the images per second,"
            f" below {comparison.floor:g}"
        )
    worst = min(comparison.changes, key=lambda change: change.ratio)
    yield (
        f"{len(comparison.changes)} rows compared; the lowest ratio is {worst.ratio:.2f}"
        f" ({worst.stage} {worst.engine} x{worst.batch})"
    )
