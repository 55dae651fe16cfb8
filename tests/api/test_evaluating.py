"""`d4m_fast.evaluate`: the rows of the command, in processes that do not run the caller's script again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import Finished, environment, run_cli

import d4m_fast
from d4m_fast.api.evaluating import Row
from d4m_fast.storage.state import EVALUATION, require_state

QUICK: dict[str, Any] = {"width": 4, "seeds": 1, "workers": 1, "epochs": 2}
FLAGS = ("--width", 4, "--seeds", 1, "--workers", 1, "--epochs", 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> d4m_fast.Run:
    """Trousers and bags, two each, from few steps."""
    folder = tmp_path_factory.mktemp("evaluating")
    return d4m_fast.distill(classes="1,8", ipc=2, steps=5, out=folder / "run", artifacts=folder / "cache")


def without_clocks(value: dict[str, Any]) -> dict[str, Any]:
    rows = [{**row, "seconds": None} for row in value["rows"]]
    return {**value, "rows": rows, "seconds": None}


def test_the_rows_are_those_of_the_command(run: d4m_fast.Run, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    threads, numbers = torch.get_num_threads(), torch.get_rng_state()
    calls = list[tuple[str, int, int]]()
    result = d4m_fast.evaluate(
        run,
        **QUICK,
        regime=["hard", "fixed"],
        arms="distilled,random",
        out=tmp_path / "ours",
        progress=lambda *call: calls.append(call),
    )
    assert calls == [*(("labels", done, 2) for done in range(3)), *(("students", done, 4) for done in range(5))]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), numbers)
    regimes = ("--regime", "hard", "--regime", "fixed", "--arms", "distilled,random")
    command = run_cli("evaluate", run.path, *FLAGS, *regimes, "--out", tmp_path / "theirs", "--json")
    assert without_clocks(result.to_json()) == without_clocks(command.json)
    assert require_state(tmp_path / "ours" / "results.json", EVALUATION) == result.to_json()
    assert result.rows == result.to_json()["rows"]
    assert {(row["arm"], row["regime"]) for row in result.rows} == {
        (arm, regime) for arm in ("distilled", "random") for regime in ("hard", "fixed")
    }
    assert set(Row.__annotations__) == {name for row in result.rows for name in row}
    table = result.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert list(table["mean"]) == [row["mean"] for row in result.rows]
    assert repr(result) == "Evaluation()"


def test_labels_that_it_stores_are_loaded(run: d4m_fast.Run) -> None:
    d4m_fast.evaluate(run, **QUICK, regime="fixed")
    assert len(list((run.path / "evaluation" / "labels").iterdir())) == 2  # of the random images, too
    (root,) = run.labels
    dataset = d4m_fast.load(run, labels=root)
    assert (len(dataset), dataset.classes, dataset.epochs, dataset.temperature) == (4, ("1", "8"), 2, 4.0)
    image, label = dataset[0]
    assert (image.shape, label.shape) == ((3, 32, 32), (2,))
    assert run.verify().whole


def test_students_that_are_finished_are_taken_again(run: d4m_fast.Run) -> None:
    first = d4m_fast.evaluate(run, **QUICK, regime="hard")
    config = d4m_fast.EvaluateConfig(**QUICK)
    again = d4m_fast.evaluate([str(run.path)], config, regime="hard")
    assert again.rows == first.rows  # seconds of training included


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"protocol": "rdde"}, d4m_fast.UsageError, "Did you mean 'rded'?"),
        ({"regime": ["hard", "soft"]}, d4m_fast.UsageError, "regime must be one of 'hard', 'fixed', 'online'"),
        ({"arms": "distilled,medoids"}, d4m_fast.UsageError, "Did you mean 'medoid'?"),
        ({"epoch": 3}, d4m_fast.UsageError, "epoch: no such option. Did you mean 'epochs'?"),
        ({"override": "lr=fast"}, d4m_fast.UsageError, "--override lr=fast: not a number"),
        ({"teacher": "nowhere"}, d4m_fast.ModelError, "--teacher nowhere"),
        ({"run": []}, d4m_fast.UsageError, "run: an empty list"),
        ({"run": "nowhere"}, d4m_fast.DataError, "nowhere: no such directory"),
    ],
    ids=str,
)
def test_what_is_wrong_is_raised(run: d4m_fast.Run, changes: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(d4m_fast.D4MError) as caught:
        d4m_fast.evaluate(**{"run": run, **QUICK, **changes})
    assert type(caught.value) is kind, caught.value
    assert words in str(caught.value)


def test_a_run_without_test_images_is_refused_and_nothing_left_behind(finished: Finished) -> None:
    with pytest.raises(d4m_fast.UsageError, match="--test-data is needed"):
        d4m_fast.evaluate(finished.run, **QUICK, regime="hard")
    assert not (finished.run / "evaluation").exists()


# No `if __name__ == "__main__"`: a process that ran it again would evaluate, too.
SCRIPT = """
import pathlib, sys, d4m_fast
run, out, log = sys.argv[1:]
with open(log, "a") as file:
    file.write("once\\n")
result = d4m_fast.evaluate(run, width=4, seeds=2, epochs=1, regime="hard", workers=2, out=out)
assert [len(row["accuracy"]) for row in result.rows] == [2, 2]
"""


def test_processes_that_train_do_not_run_the_script_again(run: d4m_fast.Run, tmp_path: Path) -> None:
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(run.path), str(tmp_path / "out"), str(log)]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert log.read_text() == "once\n"
