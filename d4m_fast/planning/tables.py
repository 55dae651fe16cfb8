"""A plan as JSON and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from d4m_fast.planning.calibrate import Build
from d4m_fast.planning.cost import Figure, PlanRequest

if TYPE_CHECKING:
    from rich.table import Table

LABEL = "calculated, not measured"
_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def to_json(request: PlanRequest, figures: Sequence[Figure], build: Build | None) -> dict[str, Any]:
    """Return raw numbers: FLOP, bytes, hours."""
    return {
        "label": LABEL,
        "request": asdict(request),
        "engine_build": None if build is None else asdict(build),
        "figures": list(map(asdict, figures)),
    }


def build_text(build: Build | None) -> str:
    if build is None:
        return "engine build: not measured"
    memory = "" if build.peak_bytes is None else f", {build.peak_bytes / 1e9:.1f} GB of host memory"
    return f"engine build: {build.seconds:.0f} s{memory}, from the profile"


def table(figures: Sequence[Figure], explain: bool) -> Table:
    """Return a table with a row per figure, and its formula if it is to be explained."""
    from rich.table import Table

    rendered = Table("", "", LABEL, *(["formula"] if explain else []))
    last = ""
    for figure in figures:
        row = ["" if figure.stage == last else figure.stage, figure.name, format_figure(figure)]
        rendered.add_row(*row, *([figure.formula] if explain else []))
        last = figure.stage
    return rendered


def format_figure(figure: Figure) -> str:
    """Return the value, or "low to high", with its unit."""
    low, high = _number(figure.low, figure.unit), _number(figure.high, figure.unit)
    return low if low == high else f"{low} to {high}"


def _number(value: float, unit: str) -> str:
    if unit == "hours":
        return f"{value:.2f} h"
    if not unit and value < 1e5:
        return f"{value:,.0f}"
    size, prefix = next((entry for entry in _PREFIXES if value >= entry[0]), (1.0, ""))
    digits = f"{value / size:.2f}" if not unit else f"{value / size:.4g}"
    return f"{digits} {prefix}{'B' if unit == 'bytes' else unit}".rstrip()
