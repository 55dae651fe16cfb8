"""What a certification is made of: steps, each with its checks and figures, each a file when it is done."""

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
    """One thing that must hold; `detail` says what was found."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a step found: what must hold, and figures, plain JSON values."""

    checks: tuple[Check, ...]
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of work of at most a few minutes.

    Attributes:
        key: fingerprint of all that its result depends on, None if that is not there yet.
        needs: names of the steps whose files it reads.
    """

    name: str
    run: Callable[[], Findings]
    key: Callable[[], str | None]
    needs: tuple[str, ...] = ()


Record = dict[str, Any]


def choose(steps: Sequence[Step], wanted: str | None) -> list[Step]:
    """The steps of these comma-separated names, or beginnings of names, and what they need; None is all.

    Raises:
        UsageError: no step is called so.
    """
    if wanted is None:
        return list(steps)
    known, chosen = {step.name: step for step in steps}, set[str]()
    for name in wanted.split(","):
        found = {n for n in known if n == name or n.startswith(f"{name}-")}
        require(bool(found), f"--steps {name}: no such step here; d4m-fast certify --list shows them")
        chosen |= found
    chosen |= {need for name in chosen for need in known[name].needs}
    return [step for step in steps if step.name in chosen]


def file_of(folder: Path, name: str) -> Path:
    return folder / "steps" / f"{name}.json"


def recorded(folder: Path, step: Step) -> Record | None:
    """What the step found, if that still holds: the same model, machine, versions and files."""
    file = file_of(folder, step.name)
    record = read_state(file, STEP)
    return record if record is not None and record["key"] == step.key() else None


def run(steps: Sequence[Step], folder: Path) -> Stream[Record]:
    """Run the steps that are not done, and those that failed; each record is written as its step ends."""
    return Stream(len(steps), (_done(folder, step) for step in steps))


def _done(folder: Path, step: Step) -> Record:
    record = recorded(folder, step)
    if record is not None and record["passed"]:
        return record
    record = _run(step)
    write_state(file_of(files.make_directory(folder / "steps").parent, step.name), STEP, record)
    return record


def _run(step: Step) -> Record:
    """A step that cannot end is a check that failed: the others go on, and a re-run repeats it."""
    start = time.monotonic()
    try:
        found = step.run()
    except failures() as error:
        found = Findings((Check("it runs", False, first_line(error)),))
    return {
        "step": step.name,
        "key": step.key(),
        "passed": all(check.passed for check in found.checks),
        "seconds": round(time.monotonic() - start, 3),
        "checks": [asdict(check) for check in found.checks],
        "figures": found.figures,
    }


def first_line(error: Exception) -> str:
    """Its kind, and what it says first."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def failed(records: Iterable[Record]) -> Iterator[str]:
    """ "step: check (what was found)" of every check that failed."""
    for record in records:
        for check in record["checks"]:
            if not check["passed"]:
                yield f"{record['step']}: {check['name']} ({check['detail']})"
