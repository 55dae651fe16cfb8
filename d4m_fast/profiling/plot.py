"""A profile as a picture: images per second and share of peak over the batch."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from d4m_fast.errors import PreflightError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 3.2, 5.6, 120  # inches per stage, inches, dots per inch


def require_plot() -> type[Figure]:
    """Return matplotlib's Figure class.

    Raises:
        PreflightError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PreflightError("--plot needs matplotlib: pip install 'd4m-fast[plot]'") from error
    return Figure


def plot(profile: Mapping[str, Any]) -> bytes:
    """Return a PNG with a column per stage."""
    stages = profile["stages"]
    figure = require_plot()(figsize=(WIDTH * max(1, len(stages)), HEIGHT), layout="constrained")
    axes = figure.subplots(2, max(1, len(stages)), squeeze=False)
    for column, (stage, records) in enumerate(stages.items()):
        upper, lower = axes[0][column], axes[1][column]
        upper.set_title(stage)
        _draw(upper, records, lambda r: r["images_per_second"])
        shares = [record for record in records if record["share_of_peak"] is not None]
        _draw(lower, shares, lambda r: 100 * r["share_of_peak"])
        lower.set_ylim(0, 100)
        if not shares:
            lower.set_axis_off()  # work that is not counted in FLOP
        (lower if shares else upper).set_xlabel("batch, images")
    axes[0][0].set_ylabel("images/s")
    axes[1][0].set_ylabel("% of measured peak")
    figure.suptitle(f"{profile['machine']['device']}, {profile['precision']}, {profile['resolution']} pixels")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _draw(axes: Axes, records: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> None:
    """Draw a line per engine."""
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        batches, values = lines.setdefault(record["engine"], ([], []))
        batches.append(record["batch"])
        values.append(value(record))
    for engine, (batches, values) in lines.items():
        axes.plot(batches, values, marker="o", label=engine)
    if records:
        axes.set_xscale("log", base=2)
        ticks = [record["batch"] for record in records]
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.minorticks_off()  # a logarithmic axis would label them between the batches
        axes.set_ylim(bottom=0)
        axes.legend()
