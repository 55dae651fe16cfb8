"""Results of an evaluation, read from a file and held against their schema."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from d4m_fast.errors import DataError
from d4m_fast.storage import files
from d4m_fast.storage.state import EVALUATION, require_state


@cache
def load_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of results; not to be changed."""
    text = resources.files(__package__).joinpath("schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def read_results(path: Path) -> dict[str, Any]:
    """Return the results in a file that `d4m-fast evaluate` kept, or that its `--json` was printed into.

    Raises:
        DamageError: they were kept, and are not what was written.
        DataError: there is no such file, or it is something else.
        PreflightError: the system would not let it be read.
    """
    try:
        data = files.read_regular(path)
        is_kept = EVALUATION.heads(data)
        results = require_state(path, EVALUATION) if is_kept else json.loads(data, parse_constant=_refuse_constant)
    except OSError as error:
        files.refuse_machine_error(path, error)
        raise DataError(f"{path}: {error.strerror}; name a file that evaluate --json has written") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise DataError(f"{path}: not JSON ({error}); name a file that evaluate --json has written") from error
    check_results(results, str(path))
    return dict(results)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def check_results(results: Any, name: str) -> None:
    """Refuse results that their schema does not allow, or whose parts do not fit each other.

    Args:
        results: plain JSON values.
        name: where they come from, for the message.

    Raises:
        DataError: the message names the first part that is wrong.
    """
    from jsonschema.exceptions import best_match

    error = best_match(_validator()(load_schema()).iter_errors(results))
    problem = _misfit(results) if error is None else f"{error.json_path}: {_shortened(error.message)}"
    if problem is not None:
        raise DataError(f"{name}: not the results of an evaluation ({problem}); d4m-fast evaluate --json writes them")


@cache
def _validator() -> Any:
    """Return jsonschema's validator with a short cut: 1,000 classes have a million counts, 50 microseconds each."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    every_item = Draft202012Validator.VALIDATORS["items"]

    def items(validator: Any, schema: Any, array: Any, parent: Any) -> Iterator[Any]:
        is_valid = _PLAIN.get(schema.get("$ref"))
        if is_valid is None or not isinstance(array, list) or not all(map(is_valid, array)):
            yield from every_item(validator, schema, array, parent)  # which finds the words for what is wrong

    return extend(Draft202012Validator, {"items": items})  # type: ignore[no-untyped-call]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # and no bool, which is an int of Python's


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_percent(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 100


def _is_tested_epoch(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_count(value[0]) and _is_percent(value[1])


def _is_point(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    x, y, kind, class_id = value
    return _is_number(x) and _is_number(y) and kind in ("real", "prototype", "distilled") and _is_count(class_id)


# Definitions of the schema of which there are many in one array.
_PLAIN: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "#/$defs/number": _is_number,
        "#/$defs/count": _is_count,
        "#/$defs/percent": _is_percent,
        "#/$defs/tested_epoch": _is_tested_epoch,
        "#/$defs/point": _is_point,
    }
)


def _shortened(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 160 else f"{line[:60]} ... {line[-90:]}"


def _misfit(results: Mapping[str, Any]) -> str | None:
    """Return what a schema cannot say: numbers that are not finite, and lists of other classes than the subject's."""
    classes = len(results["subject"]["classes"])
    for i, row in enumerate(results["rows"]):
        confusion = row.get("confusion")
        if confusion is not None and {len(confusion), *map(len, confusion)} != {classes}:
            return f"$.rows[{i}].confusion: not {classes} x {classes}"
        if len(row.get("per_class", ())) not in (0, classes):
            return f"$.rows[{i}].per_class: not {classes} numbers"
    feature_map = results.get("feature_map")
    if feature_map is not None and any(point[3] >= classes for point in feature_map["points"]):
        return f"$.feature_map.points: a class beyond the {classes} of the subject"
    return None if _is_finite(results) else "a number is not finite"


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
