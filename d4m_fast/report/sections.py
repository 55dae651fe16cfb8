"""Sections of the report, each from the results; one that has nothing to show is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from d4m_fast.errors import D4MError
from d4m_fast.report import charts
from d4m_fast.report.charts import Estimate, Lines, Series, series_of
from d4m_fast.report.comparison import (
    DISTILLED,
    RANDOM,
    Row,
    Setting,
    by_budget,
    by_setting,
    first_of_regimes,
    interval_words,
    matrices,
    row_of,
)
from d4m_fast.report.contact import contact_sheets
from d4m_fast.report.numerals import decimal, grouped

Results = Mapping[str, Any]
MOST_BARS = 20  # classes at either end of a list of many
MOST_CELLS = 20  # classes of a confusion matrix that is shown whole
MOST_CONFUSIONS = 15
CLASS_COLOURS = 10


@dataclass(frozen=True, slots=True)
class Section:
    """A section: the fragment of its address, its heading, and what `templates/ID.html` is filled with."""

    id: str
    title: str
    content: Any


def sections_of(results: Sequence[Results], run: Path | None) -> list[Section]:
    """Return the sections that these results fill, in the order of the page; all but the budgets are of the first."""
    first = results[0]
    rows = first["rows"]
    # One colour per arm on the whole page; a curve may be of an arm that has no row yet.
    arms = list[str]()
    for evaluation in results:
        arms += [entry["arm"] for entry in (*evaluation["rows"], *evaluation.get("curves", ()))]
    series = series_of(arms)
    contents = {
        ("provenance", "Provenance"): _provenance(first),
        ("teacher", "Teacher check"): _teachers(first),
        ("images", "Distilled images beside their nearest real ones"): _images(run),
        ("arms", "Arms"): _arms(rows, series),
        ("scores", "Scores"): first.get("scores", []),
        ("curves", "Training curves"): _curves(first.get("curves", []), series),
        ("students", "Across students"): matrices(rows),
        ("budgets", "Images per class"): _budgets(results, series),
        ("classes", "Accuracy by class"): _classes(first, series),
        ("confusion", "Confusion"): _confusions(first),
        ("features", "Map of teacher features"): _feature_map(first),
        ("bytes", "Bytes of images and labels"): _bytes(rows),
        ("seconds", "Seconds by stage"): _seconds(first.get("seconds", {})),
    }
    return [Section(*heading, content) for heading, content in contents.items() if content]


def _provenance(results: Results) -> dict[str, Any]:
    subject = results["subject"]
    about = dict(subject)
    del about["protocol"], about["classes"]  # one has a table of its own, of the other the number is enough
    about["classes"] = len(subject["classes"])
    groups = dict[str, Any]()
    for name, value in results.get("provenance", {}).items():
        (groups if isinstance(value, Mapping) else about)[name] = value
    return {"subject": about, "protocol": subject["protocol"], **groups}


def _teachers(results: Results) -> list[dict[str, Any]]:
    """Return each check once, with the five classes that the teacher knows least."""
    names, checks = results["subject"]["classes"], dict[str, dict[str, Any]]()
    for check in (results.get("teacher_check"), *results.get("teacher_checks", ())):
        if check is not None:
            worst = sorted(zip(check["per_class"], names, strict=False))[:5]
            checks[check["teacher"]] = {**check, "worst": worst}
    return list(checks.values())


def _images(run: Path | None) -> dict[str, Any]:
    if run is None:
        return {"sheets": [], "reason": "no run directory was named"}
    try:
        return {"sheets": contact_sheets(run), "reason": None}
    except D4MError as error:  # the numbers are worth a report without the pictures, and the page says why
        return {"sheets": [], "reason": str(error)}


def _arms(rows: Iterable[Row], series: Mapping[str, Series]) -> list[dict[str, Any]]:
    groups = []
    for setting, group in by_setting(rows).items():
        groups.append(
            {
                "setting": setting,
                "rows": group,
                "accuracy": _accuracy_chart(group, series),
                "difference": _difference_chart(group, series),
            }
        )
    return groups


def _accuracy_chart(rows: Sequence[Row], series: Mapping[str, Series]) -> charts.Intervals:
    estimates, words = [], []
    for row in rows:
        estimates.append(Estimate(series[row["arm"]], row["mean"], values=tuple(row["accuracy"])))
        words.append(f"{row['arm']} {decimal(row['mean'])}")
    return charts.intervals(estimates, "accuracy, %", f"Mean accuracy in percent: {', '.join(words)}.")


def _difference_chart(rows: Sequence[Row], series: Mapping[str, Series]) -> charts.Intervals | None:
    estimates, words = [], []
    for row in rows:
        difference = row["difference_to_random"]
        if difference is not None:
            estimates.append(Estimate(series[row["arm"]], difference["mean"], difference["low"], difference["high"]))
            words.append(f"{row['arm']} {interval_words(difference)}")
    if not estimates:
        return None
    description = f"Difference to random: {'; '.join(words)}."
    return charts.intervals(estimates, "points above random, 95 % interval", description, through_zero=True)


def _curves(curves: Sequence[Mapping[str, Any]], series: Mapping[str, Series]) -> list[dict[str, Any]]:
    groups = dict[tuple[str, str, str | None], list[Mapping[str, Any]]]()
    for curve in curves:
        groups.setdefault((curve["regime"], curve["student"], curve["teacher"]), []).append(curve)
    content = list[dict[str, Any]]()
    for (regime, student, teacher), group in groups.items():
        title = f"{regime} labels, student {student}" + ("" if teacher is None else f", teacher {teacher}")
        legend, losses, accuracies = dict[str, Series](), [], []
        for curve in group:
            arm = series[curve["arm"]]
            legend[arm.name] = arm
            losses.append((arm, list(enumerate(curve["losses"]))))
            accuracies.append((arm, curve["accuracies"]))
        pair = [_line_chart(losses, "training loss", title), _line_chart(accuracies, "test accuracy, %", title)]
        line_charts = list(filter(None, pair))
        if line_charts:
            is_first = all(entry["regime"] != regime for entry in content)
            arms = list(legend.values())
            content.append(
                {"title": title, "regime": regime, "is_first": is_first, "legend": arms, "charts": line_charts}
            )
    return content


def _line_chart(lines: Sequence[tuple[Series, charts.Points]], unit: str, title: str) -> Lines | None:
    ends = dict[str, list[float]]()
    for arm, points in lines:
        if points:
            ends.setdefault(arm.name, []).append(points[-1][1])
    if not ends:
        return None
    words = ", ".join(f"{name} {decimal(sum(values) / len(values))}" for name, values in ends.items())
    return charts.lines(lines, "epoch", unit, f"{title}: {unit} over epochs, a line per seed; after the last: {words}.")


def _budgets(results: Sequence[Results], series: Mapping[str, Series]) -> list[dict[str, Any]]:
    content = []
    for setting, arms in by_budget(chain.from_iterable(evaluation["rows"] for evaluation in results)).items():
        budgets = sorted(set(chain.from_iterable(arms.values())))
        lines = []
        for arm, rows in arms.items():
            lines.append((series[arm], [(budget, row["mean"]) for budget, row in rows.items()]))
        description = f"{setting.title}: accuracy over images per class; the table beside it has the numbers."
        chart = charts.lines(lines, "images per class", "test accuracy, %", description, budgets)
        legend = [series[arm] for arm in arms]
        content.append({"title": setting.title, "legend": legend, "budgets": budgets, "arms": arms, "chart": chart})
    return content


def _classes(results: Results, series: Mapping[str, Series]) -> list[dict[str, Any]]:
    """Return accuracy by class, distilled and random, in the first setting of each regime."""
    names = results["subject"]["classes"]
    groups = by_setting(results["rows"])
    content = []
    for setting in first_of_regimes(groups):
        arms, accuracies = list[str](), list[Sequence[float]]()
        for arm in (DISTILLED, RANDOM):
            row = row_of(groups[setting], arm)
            if row is not None and row.get("per_class"):
                arms.append(arm)
                accuracies.append(row["per_class"])
        if not arms:
            continue
        legend = [series[arm] for arm in arms]
        order = sorted(range(len(names)), key=lambda i: accuracies[0][i])
        ends = order if len(order) <= 2 * MOST_BARS else order[:MOST_BARS] + order[-MOST_BARS:]
        bars, table = [], []
        for i in ends:
            values = [of_arm[i] for of_arm in accuracies]
            bars.append((names[i], list(zip(legend, values, strict=True))))
            table.append((names[i], values))
        lowest = ", ".join(names[i] for i in order[:3])
        description = f"{setting.title}: accuracy by class in percent; lowest of {arms[0]}: {lowest}."
        content.append(
            {
                "title": setting.title,
                "arms": arms,
                "legend": legend,
                "left_out": len(order) - len(ends),
                "chart": charts.bars(bars, "accuracy, %", description),
                "table": table,
            }
        )
    return content


def _confusions(results: Results) -> list[dict[str, Any]]:
    """Return the confusion of the distilled arm, or of another that has one, in the first setting of each regime."""
    names = results["subject"]["classes"]
    groups = by_setting(results["rows"])
    content = []
    for setting in first_of_regimes(groups):
        rows = sorted(groups[setting], key=lambda row: row["arm"] != DISTILLED)
        row = next((row for row in rows if row.get("confusion") is not None), None)
        if row is not None:
            content.append(_confusion(row, setting, names))
    return content


def _confusion(row: Row, setting: Setting, names: Sequence[str]) -> dict[str, Any]:
    matrix, pairs = row["confusion"], list[tuple[int, str, str, float]]()
    for i, counts in enumerate(matrix):
        for j, count in enumerate(counts):
            if i != j and count:
                pairs.append((count, names[i], names[j], 100 * count / sum(counts)))
    pairs.sort(key=lambda pair: -pair[0])
    return {
        "title": f"{row['arm']}, {setting.title}",
        "pairs": pairs[:MOST_CONFUSIONS],
        "names": names,
        # With a class that has no test image there is nothing to divide by.
        "matrix": [(counts, max(sum(counts), 1)) for counts in matrix] if len(matrix) <= MOST_CELLS else [],
    }


def _feature_map(results: Results) -> dict[str, Any] | None:
    feature_map, names = results.get("feature_map"), results["subject"]["classes"]
    if feature_map is None or not feature_map["points"]:
        return None
    points = feature_map["points"]
    by_class = len(names) <= CLASS_COLOURS
    counts = Counter(kind for _, _, kind, _ in points)
    kinds = [kind for kind in charts.MARKS if counts[kind]]
    words = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
    return {
        "method": feature_map["method"],
        "kinds": kinds,
        "names": names if by_class else [],
        "chart": charts.scatter(points, f"{feature_map['method']}: {words} images.", by_class),
    }


def _bytes(rows: Iterable[Row]) -> dict[str, Any] | None:
    """Return bytes of images and labels by arm and regime, of the first student: others read the same files."""
    arms = dict[str, dict[str, Row]]()
    for row in rows:
        if "image_bytes" in row and "label_bytes" in row:
            arms.setdefault(row["arm"], {}).setdefault(row["regime"], row)
    if not arms:
        return None
    arm = DISTILLED if DISTILLED in arms else next(iter(arms))
    series = series_of(["images", "labels"])
    bars, words = [], []
    for regime, row in arms[arm].items():
        images, labels = row["image_bytes"], row["label_bytes"]
        bars.append((regime, [(series["images"], images / 1e6), (series["labels"], labels / 1e6)]))
        words.append(f"{regime} labels: images {grouped(images)}, labels {grouped(labels)}")
    return {
        "arms": arms,
        "regimes": list(dict.fromkeys(chain.from_iterable(arms.values()))),
        "legend": list(series.values()),
        "arm": arm,
        "chart": charts.bars(bars, "MB", f"Bytes of {arm} images and of their labels. {'; '.join(words)}."),
    }


def _seconds(seconds: Mapping[str, float]) -> dict[str, Any] | None:
    if not seconds:
        return None
    bars, words = [], []
    for stage, value in seconds.items():
        words.append(f"{stage} {decimal(value, 1)}")
        if stage != "total":
            bars.append((stage, [(Series("seconds", 0), value)]))
    description = f"Seconds by stage: {', '.join(words)}."
    chart = charts.bars(bars, "s", description, lambda value: decimal(value, 1)) if bars else None
    return {"chart": chart, "seconds": seconds}
