from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from d4m_fast.evaluation.report import Result, Row, gains, summarise, table, to_json

ACCURACIES = {"distilled": [70.5, 72.25, 71.0], "random": [69.0, 68.5, 70.75]}
RESULTS = [Result(arm, "soft", seed, a) for arm, accuracies in ACCURACIES.items() for seed, a in enumerate(accuracies)]


def test_rows_against_numpy() -> None:
    for row in summarise(reversed(RESULTS)):
        assert row.mean == pytest.approx(np.mean(ACCURACIES[row.arm]))
        assert row.std == pytest.approx(np.std(ACCURACIES[row.arm], ddof=1))
        assert row.n == 3


def test_gain_is_distilled_less_random() -> None:
    assert gains(summarise(RESULTS))["soft"] == pytest.approx(71.25 - 69.41666667)
    assert gains(summarise(RESULTS[:3])) == {}


def test_one_seed_has_no_deviation() -> None:
    assert summarise(RESULTS[:1]) == [Row("distilled", "soft", 70.5, None, 1)]


def test_json_does_not_depend_on_the_order() -> None:
    assert json.dumps(to_json(RESULTS)) == json.dumps(to_json(reversed(RESULTS)))
    assert json.loads(json.dumps(to_json(RESULTS[:1])))["rows"][0]["std"] is None


def test_table_shows_both_arms_and_the_gain() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(table(RESULTS))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "71.25" in text
    assert "69.42" in text
    assert "+1.83 points" in text
