from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from d4m_fast.evaluation.results import (
    Result,
    Row,
    Subject,
    gains,
    save_results,
    saved_results,
    summarise,
    table,
    to_json,
)
from d4m_fast.storage.state import CONFIG, write_state

SUBJECT = Subject("run", 10, "small", "convnet3", 32, "soft", 3, "teacher", ("a", "b", "c"))
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
    assert json.dumps(to_json(SUBJECT, RESULTS)) == json.dumps(to_json(SUBJECT, reversed(RESULTS)))
    assert json.loads(json.dumps(to_json(SUBJECT, RESULTS[:1])))["rows"][0]["std"] is None


def test_table_shows_both_arms_and_the_gain() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(table(RESULTS))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "71.25" in text
    assert "69.42" in text
    assert "+1.83 points" in text


def test_a_kept_report_answers_for_the_same_subject_only(tmp_path: Path) -> None:
    write_state(tmp_path / "config.json", CONFIG, {})
    save_results(tmp_path, SUBJECT, RESULTS)
    assert saved_results(tmp_path, SUBJECT) == RESULTS
    assert saved_results(tmp_path, dataclasses.replace(SUBJECT, teacher="another")) is None
    assert saved_results(tmp_path, dataclasses.replace(SUBJECT, data=("a", "b", "d"))) is None


def test_another_methods_directory_is_left_alone(tmp_path: Path) -> None:
    save_results(tmp_path, SUBJECT, RESULTS)
    assert list(tmp_path.iterdir()) == []
