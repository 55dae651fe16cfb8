"""What the report says of the rows: verdict, order of arms under other students, budgets."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from made_up_results import example_results
from scipy.stats import kendalltau

from d4m_fast.report.comparison import by_budget, by_setting, is_off_zero, matrices, verdict
from d4m_fast.report.numerals import MINUS


def row(arm: str, mean: float, difference: tuple[float, float, float] | None = None, **key: Any) -> dict[str, Any]:
    interval = None if difference is None else dict(zip(("mean", "low", "high"), difference, strict=True))
    setting = {"protocol": "small", "regime": "hard", "student": "convnet3", "teacher": None, "images_per_class": 10}
    return {**setting, "arm": arm, "mean": mean, "difference_to_random": interval, **key}


LOSS, DRAW, GAIN = (-2.0, -3.0, -1.0), (0.5, -0.5, 1.5), (3.0, 2.0, 4.0)


def test_losses_come_first_and_gains_last() -> None:
    rows = [row("distilled", 70, GAIN), row("random", 67)]
    rows += [row("distilled", 70, DRAW, regime="fixed"), row("random", 69.5, regime="fixed")]
    rows += [row("distilled", 70, LOSS, regime="online"), row("random", 72, regime="online")]
    rows += [row("coreset", 71.25, GAIN, regime="fixed")]
    assert verdict(rows).replace(MINUS, "-") == (
        "Random real images beat the distilled ones with online labels (-2.00 points, 95 % interval -3.00 to -1.00);"
        " by means alone, coreset (by up to 1.25 points) is above distilled; no difference between distilled and"
        " random is shown with fixed labels (+0.50 points, 95 % interval -0.50 to +1.50); distilled images beat random"
        " real ones with hard labels (+3.00 points, 95 % interval +2.00 to +4.00)."
    )


def test_nothing_is_won_without_an_interval() -> None:
    one_seed = {**row("distilled", 75), "difference_to_random": {"mean": 5.0, "low": None, "high": None}}
    sentence = verdict([one_seed, row("random", 70)])
    assert sentence.startswith("No difference between distilled and random is shown")
    assert "one seed, no interval" in sentence
    assert "beat" not in sentence


def test_many_settings_are_counted() -> None:
    rows = [row("distilled", 70, difference, student=f"s{i}") for i, difference in enumerate([GAIN] * 4 + [LOSS] * 2)]
    assert verdict(rows) == (
        "Random real images beat the distilled ones in 2 of 6 settings (\N{MINUS SIGN}2.00 points);"
        " distilled images beat random real ones in 4 of 6 settings (+3.00 points)."
    )


@pytest.mark.parametrize("arms", [("random", "coreset"), ("distilled", "coreset")])
def test_without_both_arms_nothing_is_said(arms: tuple[str, ...]) -> None:
    assert "says nothing" in verdict([row(arm, 70) for arm in arms])


@pytest.mark.parametrize(
    ("low", "high", "is_off"), [(0.1, 1, True), (-1, -0.1, True), (-1, 1, False), (0, 1, False), (None, None, False)]
)
def test_off_zero(low: float | None, high: float | None, is_off: bool) -> None:
    assert is_off_zero({"mean": 0.5, "low": low, "high": high}) is is_off
    assert not is_off_zero(None)


@pytest.mark.parametrize("seed", range(20))
def test_order_of_arms_against_kendall(seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = rng.permutation(50)[:8].reshape(2, 4) if seed else np.array([[1, 2, 3, 4], [5, 6, 7, 9]])
    rows = [row(f"arm{j}", float(means[i, j]), student=f"s{i}") for i, j in np.ndindex(2, 4)]
    (matrix,) = matrices(rows)
    tau = kendalltau(means[0], means[1]).statistic
    agreeing = round((tau + 1) / 2 * 6)
    expected = "is the same under all 2" if agreeing == 6 else f"for {agreeing} of 6 pairs"
    assert expected in matrix.order
    for i, j in np.ndindex(2, 4):
        assert matrix.cells[f"s{i}"][f"arm{j}"] == (float(means[i, j]), float(means[:, j].max() - means[i, j]))


def test_one_student_has_no_matrix() -> None:
    assert matrices(example_results()["rows"]) == []
    assert len(matrices(example_results(students=("convnet3", "resnet18"))["rows"])) == 3


def test_budgets_of_several_runs() -> None:
    rows = list(chain.from_iterable(example_results(budget)["rows"] for budget in (50, 1, 10)))
    groups = by_budget(rows)
    assert [setting.regime for setting in groups] == ["hard", "fixed", "online"]
    assert all(list(of_budgets) == [1, 10, 50] for of_budgets in next(iter(groups.values())).values())
    assert by_budget(example_results()["rows"]) == {}
    assert len(by_setting(rows)) == 9
