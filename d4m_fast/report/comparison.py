"""Comparison of an evaluation's rows: settings, the verdict, students and budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

from d4m_fast.report.numerals import decimal, signed
from d4m_fast.wording import some

Row = Mapping[str, Any]
DISTILLED, RANDOM, WHOLE = "distilled", "random", "whole"
_BE = ("is", "are")  # of one, and of several
_NAMED_SETTINGS = 4  # a verdict on more of them counts instead


@dataclass(frozen=True, slots=True)
class Setting:
    """Circumstances that the arms of a comparison have in common."""

    protocol: str
    regime: str
    student: str
    teacher: str | None
    images_per_class: int

    @property
    def title(self) -> str:
        teacher = "" if self.teacher is None else f", teacher {self.teacher}"
        return f"{self.regime} labels, student {self.student}{teacher}"


def by_setting(rows: Iterable[Row]) -> dict[Setting, list[Row]]:
    """Return the rows of each setting, in their order."""
    groups = dict[Setting, list[Row]]()
    for row in rows:
        setting = Setting(row["protocol"], row["regime"], row["student"], row["teacher"], row["images_per_class"])
        groups.setdefault(setting, []).append(row)
    return groups


def first_of_regimes(settings: Iterable[Setting]) -> list[Setting]:
    """Return the first setting of each label regime, for what would be too long with all of them."""
    firsts = dict[str, Setting]()
    for setting in settings:
        firsts.setdefault(setting.regime, setting)
    return list(firsts.values())


def is_off_zero(difference: Mapping[str, Any] | None) -> bool:
    """Whether a difference has an interval that leaves zero out: without one nothing is said to win or to lose."""
    if difference is None or difference["low"] is None or difference["high"] is None:
        return False
    return bool(difference["low"] > 0 or difference["high"] < 0)


def row_of(rows: Iterable[Row], arm: str) -> Row | None:
    """Return the row of an arm."""
    return next((row for row in rows if row["arm"] == arm), None)


def verdict(rows: Sequence[Row]) -> str:
    """Return one sentence on the distilled images: where they lose first, where nothing is shown next, gains last."""
    distilled, compared = dict[Setting, Row](), dict[Setting, Row]()
    for setting, group in by_setting(rows).items():
        row = row_of(group, DISTILLED)
        if row is not None:
            distilled[setting] = row
            if row["difference_to_random"] is not None:
                compared[setting] = row
    if not compared:
        return "There is no distilled arm beside a random one, so this says nothing of what distillation gains."
    losses, draws, gains = list[Setting](), list[Setting](), list[Setting]()
    for setting, row in compared.items():
        difference = row["difference_to_random"]
        if not is_off_zero(difference):
            draws.append(setting)
        else:
            (gains if difference["low"] > 0 else losses).append(setting)
    clauses = [
        _clause("random real images beat the distilled ones", losses, compared),
        _rivals(rows, distilled),
        _clause("no difference between distilled and random is shown", draws, compared),
        _clause("distilled images beat random real ones", gains, compared),
    ]
    sentence = "; ".join(filter(None, clauses))
    return f"{sentence[0].upper()}{sentence[1:]}."


def _clause(claim: str, settings: Sequence[Setting], rows: Mapping[Setting, Row]) -> str:
    if not settings:
        return ""
    if len(rows) > _NAMED_SETTINGS:
        means = sorted(rows[setting]["difference_to_random"]["mean"] for setting in settings)
        ends = " to ".join(dict.fromkeys((signed(means[0]), signed(means[-1]))))
        return f"{claim} in {len(settings)} of {len(rows)} settings ({ends} points)"
    students = {setting.student for setting in rows}
    differences = []
    for setting in settings:
        name = f"{setting.regime} labels" if len(students) == 1 else setting.title
        differences.append(f"{name} ({interval_words(rows[setting]['difference_to_random'])})")
    *former, last = differences
    return f"{claim} with {', '.join(former)} and {last}" if former else f"{claim} with {last}"


def _rivals(rows: Iterable[Row], distilled: Mapping[Setting, Row]) -> str:
    """Return which other arms of the budget have higher means than distilled, and by how much at most."""
    leads = dict[str, list[float]]()
    for setting, group in by_setting(rows).items():
        for row in group:
            if setting in distilled and row["arm"] not in (DISTILLED, RANDOM, WHOLE):
                leads.setdefault(row["arm"], []).append(row["mean"] - distilled[setting]["mean"])
    rivals = list[tuple[int, str]]()  # in how many settings, and in words
    for arm, differences in leads.items():
        ahead = [difference for difference in differences if difference > 0]
        if ahead:
            times = "" if len(differences) == 1 else f" in {len(ahead)} of {len(differences)} settings"
            rivals.append((len(ahead), f"{arm}{times} (by up to {decimal(max(ahead))} points)"))
    if not rivals:
        return ""
    rivals.sort(key=lambda rival: -rival[0])
    return f"by means alone, {some(text for _, text in rivals)} {_BE[len(rivals) > 1]} above distilled"


def interval_words(difference: Mapping[str, Any]) -> str:
    """Return a difference in points with its 95 % interval in words."""
    points = f"{signed(difference['mean'])} points"
    if difference["low"] is None or difference["high"] is None:
        return f"{points}, one seed, no interval"
    return f"{points}, 95 % interval {signed(difference['low'])} to {signed(difference['high'])}"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Students against arms, under one regime and one teacher.

    Attributes:
        cells: student -> arm -> (mean, points below the best student of that arm).
        order: one sentence on whether the arms stand in the same order under every student.
    """

    title: str
    arms: tuple[str, ...]
    cells: Mapping[str, Mapping[str, tuple[float, float]]]
    order: str


def matrices(rows: Iterable[Row]) -> list[Matrix]:
    """Return a matrix per regime and teacher that has several students."""
    groups = dict[tuple[str, str | None], dict[str, dict[str, float]]]()
    for row in rows:
        students = groups.setdefault((row["regime"], row["teacher"]), {})
        students.setdefault(row["student"], {})[row["arm"]] = row["mean"]
    matrices = []
    for (regime, teacher), means in groups.items():
        if len(means) > 1:
            title = f"{regime} labels" if teacher is None else f"{regime} labels, teacher {teacher}"
            matrices.append(_matrix(title, means))
    return matrices


def _matrix(title: str, means: Mapping[str, Mapping[str, float]]) -> Matrix:
    best = dict[str, float]()
    for of_arms in means.values():
        for arm, mean in of_arms.items():
            best[arm] = max(mean, best.get(arm, mean))
    cells = {}
    for student, of_arms in means.items():
        cells[student] = {arm: (mean, best[arm] - mean) for arm, mean in of_arms.items()}
    return Matrix(title, tuple(best), cells, _order(tuple(best), means))


def _order(arms: Sequence[str], means: Mapping[str, Mapping[str, float]]) -> str:
    """Compare the arms by pairs: under which of them some students disagree."""
    pairs, turned = 0, []
    for first, second in combinations(arms, 2):
        signs = [m[first] > m[second] for m in means.values() if first in m and second in m]
        pairs += len(signs) > 1
        if len(set(signs)) > 1:
            turned.append(f"{first} / {second}")
    if not pairs:
        return "No two arms have several students in common."
    if not turned:
        return f"The order of the arms is the same under all {len(means)} students (by their means)."
    return (
        f"The order of the arms holds under all {len(means)} students for {pairs - len(turned)} of {pairs} pairs (by"
        f" their means); it turns for {some(turned)}."
    )


def by_budget(rows: Iterable[Row]) -> dict[Setting, dict[str, dict[int, Row]]]:
    """Return arm -> images per class -> row, for each setting of which several budgets are there.

    The settings' own `images_per_class` is that of their first row.
    """
    groups = dict[tuple[str, str, str, str | None], dict[str, dict[int, Row]]]()
    firsts = dict[tuple[str, str, str, str | None], Setting]()
    for setting, group in by_setting(rows).items():
        key = (setting.protocol, setting.regime, setting.student, setting.teacher)
        firsts.setdefault(key, setting)
        for row in group:
            groups.setdefault(key, {}).setdefault(row["arm"], {})[row["images_per_class"]] = row
    several = {}
    for key, arms in groups.items():
        if len(set(chain.from_iterable(arms.values()))) > 1:
            several[firsts[key]] = {arm: dict(sorted(of_budgets.items())) for arm, of_budgets in arms.items()}
    return several
