"""The shard that a process is, by what batch systems and launchers tell it in its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from d4m_fast.errors import UsageError
from d4m_fast.runs.shards import Shard


@dataclass(frozen=True, slots=True)
class _Variables:
    """Names of the variables of a system.

    Attributes:
        number: of this task.
        count: of tasks; None where `last` says it.
        first, last, step: of the tasks' numbers, where they need not count from `start` by one.
        start: the first number, where no variable says it.
    """

    system: str
    number: str
    count: str | None = None
    first: str | None = None
    last: str | None = None
    step: str | None = None
    start: int = 0


# In this order, because an array's task may run a step of several processes: the array splits the work first.
SYSTEMS = (
    _Variables(
        "a SLURM array",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_MIN",
        step="SLURM_ARRAY_TASK_STEP",
    ),
    _Variables(
        "a Grid Engine array", "SGE_TASK_ID", None, "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE", start=1
    ),
    _Variables("an LSF array", "LSB_JOBINDEX", None, None, "LSB_JOBINDEX_END", "LSB_JOBINDEX_STEP", start=1),
    _Variables("torchrun", "RANK", "WORLD_SIZE"),
    _Variables("a SLURM step", "SLURM_PROCID", "SLURM_NTASKS"),
    _Variables("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    _Variables("MPICH", "PMI_RANK", "PMI_SIZE"),
)


def resolve_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Return the shard of `--shard I/N`, or for "auto" that which the environment names.

    Raises:
        UsageError: it is neither, or the environment names none.
    """
    if text != "auto":
        number, slash, count = text.partition("/")
        if not slash or not _is_count(number) or not _is_count(count) or int(number) > int(count):
            raise UsageError(f"--shard {text}: give I/N, the I-th of N shards, from 1/N to N/N, or auto")
        return Shard(int(number), int(count))
    for variables in SYSTEMS:
        # Grid Engine says "undefined" outside arrays, LSF 0.
        if _is_number(environment.get(variables.number)):
            shard = _of(variables, environment)
            if shard is not None:
                return shard
    names = ", ".join(variables.number for variables in SYSTEMS)
    raise UsageError(f"--shard auto: none of {names} is set with its count; give I/N")


def _of(variables: _Variables, environment: Mapping[str, str]) -> Shard | None:
    """Return the shard that a system's variables name; None where they name none."""

    def value(name: str | None, default: int | None) -> int | None:
        text = None if name is None else environment.get(name)
        return int(text) if text is not None and _is_number(text) else default

    number, step = value(variables.number, None), value(variables.step, 1)
    first, count, last = (
        value(variables.first, variables.start),
        value(variables.count, None),
        value(variables.last, None),
    )
    if number is None or first is None or not step:
        return None
    if count is None and last is not None:
        count = (last - first) // step + 1
    place = (number - first) // step + 1
    return Shard(place, count) if count is not None and 1 <= place <= count else None


def _is_number(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdecimal()


def _is_count(text: str) -> bool:
    return _is_number(text) and 0 < int(text) < 100_000
