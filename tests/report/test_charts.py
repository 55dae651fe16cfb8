"""Where the marks of a chart stand, against NumPy, and what its axes reach."""

from __future__ import annotations

import numpy as np
import pytest

from d4m_fast.report.charts import WIDTH, Estimate, Scale, bars, cut, intervals, lines, scatter, series_of, steps


@pytest.mark.parametrize("seed", range(200))
def test_steps_are_round_and_reach_the_ends(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.normal(0, 10.0 ** rng.integers(-3, 6), 2))
    marks = steps(low, high)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-9 * step
    assert marks[-1] >= high - 1e-9 * step
    assert 2 <= len(marks) <= 7
    assert np.allclose(np.diff(marks), step)
    leading = step / 10 ** np.floor(np.log10(step) + 1e-9)
    assert np.isclose(leading, [1, 2, 5]).any()
    assert marks[1] > low
    assert marks[-2] < high


@pytest.mark.parametrize("value", [0.0, 5.0, 100.0])
def test_one_value_has_an_axis(value: float) -> None:
    marks = steps(value, value)
    assert marks[0] <= value <= marks[-1]
    assert len(marks) > 1


def test_scales_against_numpy() -> None:
    values = np.linspace(2, 40, 9)
    linear, logarithmic = Scale(1, 50, 300, 20), Scale(1, 50, 20, 300, logarithmic=True)
    assert np.allclose([linear(v) for v in values], np.interp(values, [1, 50], [300, 20]), atol=0.05)
    expected = np.interp(np.log(values), np.log([1, 50]), [20, 300])
    assert np.allclose([logarithmic(v) for v in values], expected, atol=0.05)


def test_marks_stay_in_the_picture() -> None:
    rng = np.random.default_rng(0)
    series = series_of(f"arm {i}" for i in range(11))
    assert max(one.style for one in series.values()) == 7
    means = zip(series.values(), rng.normal(0, 3, 11).tolist(), strict=True)
    estimates = [Estimate(one, mean, mean - 1, mean + 1, (mean - 0.5,)) for one, mean in means]
    chart = intervals(estimates, "points", "made up", through_zero=True)
    for row in chart.rows:
        assert row.low is not None
        assert row.high is not None
        assert 104 <= row.low < row.values[0] < row.mean < row.high <= WIDTH
        assert 0 < row.y < chart.height - 36
    assert chart.zero in [tick.at for tick in chart.x_ticks]


def test_a_long_line_is_thinned_to_its_last_point() -> None:
    (one,) = series_of(["a"]).values()
    chart = lines([(one, [(i, float(i)) for i in range(5001)])], "epoch", "%", "made up")
    points = chart.lines[0].points.split()
    assert len(points) <= 202
    assert points[-1] == f"{chart.x_ticks[-1].at:g},{chart.y_ticks[-1].at:g}"  # both axes end at 5,000


def test_bars_are_as_long_as_their_values() -> None:
    (one,) = series_of(["a"]).values()
    chart = bars([("x", [(one, 10.0)]), ("y", [(one, 40.0)]), ("z", [(one, 0.0)])], "s", "made up")
    widths = [row.bars[0].width for row in chart.rows]
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.2)
    assert widths[2] == 0


def test_scatter_keeps_proportions() -> None:
    points = [(0.0, 0.0, "real", 0), (4.0, 2.0, "real", 1), (2.0, 1.0, "distilled", 0)]
    chart = scatter(points, "made up", by_class=True)
    assert [(cloud.kind, cloud.style) for cloud in chart.clouds] == [("real", 0), ("real", 1), ("distilled", 0)]
    starts = [cloud.path[1:].replace("m", "h").split("h")[0].split() for cloud in chart.clouds]
    (x0, y0), (x1, y1), (x2, y2) = ((float(x), float(y)) for x, y in starts)
    assert (x1 - x0) / (y0 - y1) == pytest.approx(2, abs=0.01)
    assert (x2, y2) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.1)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("", ""),
        ("thirteen long", "thirteen long"),
        ("fourteen  long", "fourteen  lo\N{HORIZONTAL ELLIPSIS}"),
        ("\u732b" * 6, "\u732b" * 6),
        ("\u732b" * 7, "\u732b" * 6 + "\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_long_labels_are_cut(name: str, label: str) -> None:
    assert cut(name) == label
