"""Steps of a certification, each with its checks and figures, each a file when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from d4m_fast.certification.engines import failures
from d4m_fast.errors import require
from d4m_fast.flow.stream import Stream
from d4m_fast.storage import files
from d4m_fast.storage.state import STEP, read_state, write_state


@dataclass(frozen=True, slots=True)
class Check:
    """A condition that must hold; `detail` says what was measured."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """Results of a step: conditions that must hold, and figures, plain JSON values."""

    checks: tuple[Check, ...]
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A unit of work of at most a few minutes.

    Attributes:
        key: fingerprint of all that its result depends on, None if that is not there yet.
        needs: names of the steps whose files it reads.
    """

    name: str
    run: Callable[[], Findings]
    key: Callable[[], str | None]
    needs: tuple[str, ...] = ()


Record = dict[str, Any]


def choose(steps: Sequence[Step], names: str | None) -> list[Step]:
    """Return the steps of these comma-separated names, or beginnings of names, and all they need; None is all.

    Raises:
        UsageError: no step is called so.
    """
    if names is None:
        return list(steps)
    selected = set[str]()
    for name in names.split(","):
        matches = [step for step in steps if step.name == name or step.name.startswith(f"{name}-")]
        require(bool(matches), f"--steps {name}: no such step here; d4m-fast certify --list shows them")
        for step in matches:
            selected |= {step.name, *step.needs}
    return [step for step in steps if step.name in selected]


def file_of(folder: Path, name: str) -> Path:
    return folder / "steps" / f"{name}.json"


def recorded(folder: Path, step: Step) -> Record | None:
    """Return the step's results, if they still hold: the same model, machine, versions and files."""
    file = file_of(folder, step.name)
    record = read_state(file, STEP)
    return record if record is not None and record["key"] == step.key() else None


def run(steps: Sequence[Step], folder: Path) -> Stream[Record]:
    """Run the steps that are not done, and those that failed; each record is written as its step ends."""

    def records() -> Iterator[Record]:
        for step in steps:
            record = recorded(folder, step)
            if record is None or not record["passed"]:
                record = _run(step)
                files.make_directory(folder / "steps")
                write_state(file_of(folder, step.name), STEP, record)
            yield record

    return Stream(len(steps), records())


def _run(step: Step) -> Record:
    start = time.monotonic()
    try:
        findings = step.run()
    except failures() as error:
        # A step that cannot end is a check that failed: the others go on, and a re-run repeats it.
        findings = Findings((Check("it runs", False, first_line(error)),))
    return {
        "step": step.name,
        "key": step.key(),
        "passed": all(check.passed for check in findings.checks),
        "seconds": round(time.monotonic() - start, 3),
        "checks": list(map(asdict, findings.checks)),
        "figures": findings.figures,
    }


def first_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def failed(records: Iterable[Record]) -> Iterator[str]:
    """Yield "step: check (detail)" of every check that failed."""
    for record in records:
        for check in record["checks"]:
            if not check["passed"]:
                yield f"{record['step']}: {check['name']} ({check['detail']})"
