"""Geometry of the charts, in the units of their SVG; `templates/charts.html` draws it.

Colours, dashes and type are the style sheet's, so that a chart follows the reader's light or dark mode.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from unicodedata import east_asian_width

from d4m_fast.report.numerals import short

WIDTH = 360  # near what a telephone shows, so that letters stay as large as they are meant to be
STYLES = 8  # series of a chart that can be told apart
# Room that rows, axes and their labels take.
_ROW, _TOP, _BOTTOM, _LEFT, _RIGHT = 18, 8, 36, 104, 12
_PLOT_HEIGHT, _PLOT_LEFT = 190, 44
_MARGIN = 12  # around a cloud of points
_MOST_POINTS = 200  # of a line: more than one in two pixels shows nothing
_LETTERS = 13  # of a label beside a row; those of Chinese, Japanese and Korean are twice as wide


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, and what stands there."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Scale:
    """A way from values to places; `logarithmic` needs positive values."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, value, high = self.low, value, self.high
        if self.logarithmic:
            low, value, high = math.log(low), math.log(value), math.log(high)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)


def steps(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers, 1, 2 or 5 times a power of ten apart, that reach from `low` or below to `high` or above."""
    span = max(high - low, 1e-6)  # equal values, too, have a step between ticks
    power: float = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most - 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def _axis(values: Sequence[float], start: float, end: float) -> tuple[Scale, list[Tick]]:
    marks = steps(min(values), max(values))
    scale = Scale(marks[0], marks[-1], start, end)
    return scale, [Tick(scale(mark), short(mark)) for mark in marks]


@dataclass(frozen=True, slots=True)
class Series:
    """Series of a chart: its name, and the number of its colour and dash."""

    name: str
    style: int


def series_of(names: Iterable[str]) -> dict[str, Series]:
    """Number series in the order in which their names come first."""
    return {name: Series(name, i % STYLES) for i, name in enumerate(dict.fromkeys(names))}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A row of a chart of intervals; `values` are the single seeds'."""

    series: Series
    mean: float
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """An estimate in place: a dot, the ends of its interval, a small mark per seed."""

    series: Series
    label: str
    y: float
    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Rows of dots and intervals over a common axis."""

    description: str
    x_label: str
    height: float
    x_ticks: list[Tick]
    rows: list[IntervalRow]
    zero: float | None
    kind = "intervals"


def intervals(estimates: Sequence[Estimate], unit: str, description: str, through_zero: bool = False) -> Intervals:
    """Place estimates one below the other; with `through_zero` the axis has a line there."""
    values = [0.0] if through_zero else []
    for e in estimates:
        values += [e.mean, *e.values]
        if e.low is not None and e.high is not None:
            values += [e.low, e.high]
    bottom = _TOP + _ROW * len(estimates)
    scale, ticks = _axis(values, _LEFT, WIDTH - _RIGHT)

    def place(value: float | None) -> float | None:
        return None if value is None else scale(value)

    rows = []
    for i, e in enumerate(estimates):
        y = _TOP + _ROW * (i + 0.5)
        marks = tuple(map(scale, e.values))
        row = IntervalRow(e.series, cut(e.series.name), y, scale(e.mean), place(e.low), place(e.high), marks)
        rows.append(row)
    return Intervals(description, unit, bottom + _BOTTOM, ticks, rows, scale(0) if through_zero else None)


def cut(name: str) -> str:
    """Return a name as short as a label may be; the whole one stands in a table nearby."""
    ends = list(accumulate(1 + (east_asian_width(letter) in "WF") for letter in name))
    if not ends or ends[-1] <= _LETTERS:
        return name
    return f"{name[: bisect_left(ends, _LETTERS)]}\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart as SVG's list of points; `dots` says whether each point is marked, too."""

    series: Series
    points: str
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines over two axes."""

    description: str
    x_label: str
    y_label: str
    height: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    kind = "lines"


Points = Sequence[tuple[float, float]]


def lines(
    series: Iterable[tuple[Series, Points]],
    x_label: str,
    y_label: str,
    description: str,
    budgets: Sequence[int] = (),
) -> Lines:
    """Draw each series as a line.

    Args:
        budgets: images per class, where these are the x of the points: the axis is then logarithmic, and has these
            ticks, and the points are marked.
    """
    thinned, xs, ys = list[tuple[Series, Points]](), list[float](), list[float]()
    for entry, points in series:
        if points:
            # Every n-th point and the last, few enough to draw.
            points = [*points[: -1 : math.ceil(len(points) / _MOST_POINTS)], points[-1]]
            thinned.append((entry, points))
            xs += [x for x, _ in points]
            ys += [y for _, y in points]
    left, right, bottom = _PLOT_LEFT, WIDTH - _RIGHT, _TOP + _PLOT_HEIGHT
    y_scale, y_ticks = _axis(ys, bottom, _TOP)
    if budgets:
        x_scale = Scale(min(budgets), max(budgets), left + 12, right - 12, logarithmic=True)
        x_ticks = [Tick(x_scale(budget), str(budget)) for budget in budgets]
    else:
        x_scale, x_ticks = _axis(xs, left, right)
    chart_lines = []
    for entry, points in thinned:
        places = tuple((x_scale(x), y_scale(y)) for x, y in points)
        text = " ".join(f"{x:g},{y:g}" for x, y in places)
        chart_lines.append(Line(entry, text, places if budgets else ()))
    return Lines(description, x_label, y_label, bottom + _BOTTOM, x_ticks, y_ticks, chart_lines)


@dataclass(frozen=True, slots=True)
class Bar:
    """Bar of a row: from the axis's zero to `width` to its right."""

    series: Series
    y: float
    width: float


@dataclass(frozen=True, slots=True)
class BarRow:
    """A row of bars, one below the other; `end` is where what it comes to is written."""

    label: str
    y: float
    bars: list[Bar]
    end: float
    total: str


@dataclass(frozen=True, slots=True)
class Bars:
    """Rows of horizontal bars."""

    description: str
    x_label: str
    height: float
    left: float
    x_ticks: list[Tick]
    rows: list[BarRow]
    kind = "bars"


def bars(
    rows: Iterable[tuple[str, Sequence[tuple[Series, float]]]],
    unit: str,
    description: str,
    write: Callable[[float], str] | None = None,
) -> Bars:
    """Draw rows of (label, bars), each bar a series and a value from 0 up.

    Args:
        write: of a row of one bar, the text behind it.
    """
    rows = list(rows)
    values = [0.0, 1e-6]  # so that the axis begins at 0, and bars that are all 0 have one
    for _, pairs in rows:
        values += [value for _, value in pairs]
    room = _RIGHT if write is None else 56  # of the text behind a bar
    scale, ticks = _axis(values, _LEFT, WIDTH - room)
    bar_rows, y = list[BarRow](), float(_TOP)
    for label, pairs in rows:
        thickness = 12 if len(pairs) == 1 else 7
        height = thickness * len(pairs) + 6
        row_bars = []
        for i, (series, value) in enumerate(pairs):
            row_bars.append(Bar(series, y + 3 + i * thickness, round(scale(value) - _LEFT, 1)))
        total = "" if write is None else write(pairs[0][1])
        bar_rows.append(BarRow(cut(label), y + height / 2, row_bars, scale(pairs[0][1]), total))
        y += height
    return Bars(description, unit, y + _BOTTOM, _LEFT, ticks, bar_rows)


@dataclass(frozen=True, slots=True)
class Cloud:
    """Points of one kind and one colour; `path` is a mark per point."""

    kind: str
    style: int
    path: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """Clouds of points over a plane whose axes have no unit."""

    description: str
    height: float
    clouds: list[Cloud]
    kind = "scatter"


# A line of no length has round ends: a dot. The others are a diamond and a square, around their middle.
MARKS: Mapping[str, str] = {"real": "h0", "prototype": "m-5 0l5-5 5 5-5 5z", "distilled": "m-3.5-3.5h7v7h-7z"}


def scatter(points: Iterable[tuple[float, float, str, int]], description: str, by_class: bool) -> Scatter:
    """Draw points (x, y, kind, class), a mark per kind, coloured by class or by kind."""
    points = list(points)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    left, low = min(xs), min(ys)
    # One scale for both axes: distances mean the same in all directions.
    unit = (WIDTH - 2 * _MARGIN) / max(max(xs) - left, max(ys) - low, 1e-9)
    bottom = round(unit * (max(ys) - low)) + _MARGIN
    marks = dict[tuple[str, int], list[str]]()
    for x, y, kind, class_id in points:
        place = f"M{_MARGIN + (x - left) * unit:.1f} {bottom - (y - low) * unit:.1f}{MARKS[kind]}"
        style = class_id if by_class else list(MARKS).index(kind)
        marks.setdefault((kind, style), []).append(place)
    clouds = []
    # The few on top of the many: SVG draws what comes later over what came before.
    for kind, style in sorted(marks, key=lambda key: (list(MARKS).index(key[0]), key[1])):
        clouds.append(Cloud(kind, style, "".join(marks[kind, style])))
    return Scatter(description, bottom + _MARGIN, clouds)
