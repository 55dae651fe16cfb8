"""Rows, intervals and scores beside SciPy's and NumPy's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from d4m_fast.config.choices import Regime
from d4m_fast.evaluation import results
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.results import Subject
from d4m_fast.evaluation.statistics import interval, label_robust_score, rows_of, scores_of, t_975
from d4m_fast.evaluation.tasks import Result, Task

SUBJECT = Subject(("run",), 10, ("a", "b"), PROTOCOLS["small"].to_json(), 3, ("a", "b", "c"))
ACCURACIES = {"distilled": [70.5, 72.25, 71.0], "random": [69.0, 68.5, 70.75]}


def result(arm: str, seed: int, accuracy: float, regime: Regime = "online", generation: int = 0) -> Result:
    task = Task(arm, arm, regime, "convnet3", None if regime == "hard" else "t", seed, generation)
    return Result(
        task, accuracy, accuracy + 1, (accuracy, accuracy), ((1, 0), (0, 1)), (1.0,), ((0, accuracy),), 7, 1.5
    )


RESULTS = [result(arm, seed, value) for arm, values in ACCURACIES.items() for seed, value in enumerate(values)]


def test_rows_against_numpy_and_scipy() -> None:
    for row in rows_of(reversed(RESULTS)):
        values = ACCURACIES[row.arm]
        assert row.accuracies == values
        assert row.mean == pytest.approx(np.mean(values))
        assert row.std == pytest.approx(np.std(values, ddof=1))
        assert row.best_epoch_mean == pytest.approx(np.mean(values) + 1)
        if row.arm == "random":
            assert row.difference_to_random is None
        else:
            test = stats.ttest_rel(values, ACCURACIES["random"]).confidence_interval(0.95)
            assert row.difference_to_random is not None
            assert row.difference_to_random.low == pytest.approx(test.low, abs=1e-3)
            assert row.difference_to_random.high == pytest.approx(test.high, abs=1e-3)
            assert row.difference_to_random.is_off_zero == (test.low > 0 or test.high < 0)


def test_pairs_are_of_one_generation_and_seed() -> None:
    many = [result("distilled", seed, 10.0 * g + seed, generation=g) for g in range(2) for seed in range(2)]
    many += [result("random", seed, 10.0 * g + seed - 3, generation=g) for g in (1, 0) for seed in (1, 0)]
    many.append(result("random", 7, 0.0))  # without a partner
    (difference,) = (row.difference_to_random for row in rows_of(many) if row.arm == "distilled")
    assert difference is not None
    assert (difference.mean, difference.low, difference.high) == (3, 3, 3)


def test_a_single_seed_has_no_interval() -> None:
    rows = rows_of([RESULTS[0], RESULTS[3]])
    assert [row.std for row in rows] == [None, None]
    difference = rows[0].difference_to_random
    assert difference is not None
    assert (difference.mean, difference.low, difference.is_off_zero) == (1.5, None, False)


@pytest.mark.parametrize("degrees", [*range(1, 41), 60, 120, 1000])
def test_quantiles_of_students_t(degrees: int) -> None:
    assert t_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-4)


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        estimate = interval(list(rng.normal(3, 2, 5)))
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low < 3 < estimate.high
    assert stats.binomtest(hits, 2000, 0.95).pvalue > 1e-3


def test_scores_are_of_fractions() -> None:
    many = [*RESULTS, *(result(arm, 0, value, "hard") for arm, value in {"whole": 90.0, "distilled": 60.0}.items())]
    by_regime = {score["regime"]: score for score in scores_of(rows_of(many))}
    assert by_regime["online"]["hlr"] == pytest.approx(0.3)
    assert by_regime["online"]["ior"] == pytest.approx(
        (np.mean(ACCURACIES["distilled"]) - np.mean(ACCURACIES["random"])) / 100
    )
    assert by_regime["hard"]["ior"] is None
    assert by_regime["hard"]["lrs"] is None
    exponent = 0.5 * by_regime["online"]["ior"] - 0.5 * 0.3
    expected = (math.exp(exponent) - math.exp(-1)) / (math.e - math.exp(-1))
    assert by_regime["online"]["lrs"] == pytest.approx(expected)


def test_the_score_goes_from_nothing_to_everything() -> None:
    assert label_robust_score(1.0, -1.0) == pytest.approx(0)
    assert label_robust_score(-1.0, 1.0) == pytest.approx(1)


def value(results_in_some_order: Iterable[Result] = RESULTS) -> dict[str, Any]:
    return results.to_json(
        SUBJECT,
        results_in_some_order,
        image_bytes={"distilled": 5},
        checks=[],
        feature_map=None,
        provenance={},
        seconds={"total": 1.0},
    )


def test_json_does_not_depend_on_the_order() -> None:
    backwards = {row["arm"]: row for row in value(reversed(RESULTS))["rows"]}
    assert {row["arm"]: row for row in value()["rows"]} == backwards
    assert json.loads(json.dumps(value())) == value()


def test_table_shows_arms_and_differences() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(results.table(value()["rows"]))
    text = capture.get()
    assert "71.25" in text
    assert "69.42" in text
    assert "+1.83 (" in text
