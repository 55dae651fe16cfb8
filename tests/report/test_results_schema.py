"""Results against their schema, and what is refused as none."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from made_up_results import example_results

from d4m_fast.errors import DamageError, DataError
from d4m_fast.report.results import check_results, load_schema, read_results
from d4m_fast.storage.state import EVALUATION, write_state

Change = Callable[[dict[str, Any]], object]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(load_schema())


@pytest.mark.parametrize("students", [("convnet3",), ("convnet3", "resnet18")])
def test_made_up_results_are_results(students: tuple[str, ...]) -> None:
    check_results(example_results(students=students), "made up")


def test_optional_parts_may_be_missing() -> None:
    whole = example_results()
    check_results({name: whole[name] for name in ("format", "subject", "rows")}, "short")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda r: r.update(format=2), "$.format"),
        (lambda r: r.pop("rows"), "'rows' is a required property"),
        (lambda r: r.update(rows=[]), "$.rows"),
        (lambda r: r["rows"][3].update(mean="80"), "$.rows[3].mean"),
        (lambda r: r["rows"][3].update(accuracy=[101.0]), "$.rows[3].accuracy[0]"),
        (lambda r: r["rows"][3].update(regime="soft"), "$.rows[3].regime"),
        (lambda r: r["rows"][2]["difference_to_random"].pop("low"), "$.rows[2].difference_to_random"),
        (lambda r: r["rows"][1].update(per_class=[1.0]), "$.rows[1].per_class"),
        (lambda r: r["rows"][1].update(confusion=[[1, 2], [3, 4]]), "$.rows[1].confusion"),
        (lambda r: r["curves"][0]["accuracies"].append([3]), "$.curves[0].accuracies"),
        (lambda r: r["feature_map"]["points"].append([0, 0, "real", 10]), "$.feature_map"),
        (lambda r: r["feature_map"]["points"].append([0, 0, "other", 1]), "$.feature_map"),
        (lambda r: r["seconds"].update(load=-1), "$.seconds.load"),
        (lambda r: r["curves"][0].update(losses=[float("nan")]), "finite"),
    ],
)
def test_what_is_refused(change: Change, place: str) -> None:
    results = copy.deepcopy(example_results())
    change(results)
    with pytest.raises(DataError) as refusal:
        check_results(results, "file.json")
    message = str(refusal.value)
    assert message.startswith("file.json: ")
    assert place in message
    assert "\n" not in message
    assert len(message) < 400


ODD: tuple[object, ...] = (None, True, "1", -1, 0, 1, 1.0, 0.5, 100, 100.5, -0.5, [], [1], [1, 2], {}, "real", 10**30)


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("place", ["losses", "count", "percent", "tested", "x", "kind", "class"])
def test_arrays_of_numbers_are_judged_as_jsonschema_does(place: str, value: object) -> None:
    results = example_results()
    curve, row, point = results["curves"][0], results["rows"][1], results["feature_map"]["points"][0]
    results |= {"curves": [curve], "rows": [row], "feature_map": {"method": "", "points": [point]}}
    changes = {
        "losses": (curve["losses"], 1),
        "count": (row["confusion"][2], 3),
        "percent": (row["per_class"], 2),
        "tested": (curve["accuracies"][2], 0),
        "x": (point, 0),
        "kind": (point, 2),
        "class": (point, 3),
    }
    array, position = changes[place]
    array[position] = value
    is_beyond_the_classes = place == "class" and value in (100, 10**30)
    if Draft202012Validator(load_schema()).is_valid(results) and not is_beyond_the_classes:
        check_results(results, "x")
    else:
        with pytest.raises(DataError):
            check_results(results, "x")


def test_a_confusion_of_a_thousand_classes_is_quick() -> None:
    results = example_results()
    results["subject"]["classes"] = list(map(str, range(1000)))
    results["rows"] = [{**results["rows"][0], "per_class": [], "confusion": [[7] * 1000] * 1000}]
    start = time.process_time()
    check_results(results, "x")
    assert time.process_time() - start < 5  # a minute without the short cut


def test_a_file_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(example_results()))
    assert read_results(file) == example_results()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000, b"3"])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"results\.json: not .*evaluate --json"):
        read_results(file)


def test_no_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(DataError, match="name a file"):
            read_results(path)


def test_results_are_read_as_they_were_kept(tmp_path: Path) -> None:
    write_state(tmp_path / "kept.json", EVALUATION, example_results())
    assert read_results(tmp_path / "kept.json") == example_results()
    text = (tmp_path / "kept.json").read_text()
    (tmp_path / "kept.json").write_text(text.replace('"hard"', '"harm"', 1))
    with pytest.raises(DamageError, match="evaluate again"):
        read_results(tmp_path / "kept.json")
