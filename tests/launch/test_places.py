"""Which shard a process is, on the command line and by what batch systems say."""

from __future__ import annotations

import pytest

from d4m_fast.errors import UsageError
from d4m_fast.launch.places import resolve_shard
from d4m_fast.runs.plan import Batches, make_plan
from d4m_fast.runs.shards import Shard

ARRAY = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "1"}
STEPS = {**ARRAY, "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "5"}
NO_ARRAY = {"SGE_TASK_ID": "undefined", "SGE_TASK_LAST": "undefined", "LSB_JOBINDEX": "0", "LSB_JOBINDEX_END": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "0"}, Shard(1, 4)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Shard(4, 4)),
        ({"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, Shard(4, 4)),
        ({**STEPS, "SLURM_ARRAY_TASK_ID": "20"}, Shard(3, 4)),
        ({"SGE_TASK_ID": "2", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "3", "SGE_TASK_STEPSIZE": "1"}, Shard(2, 3)),
        ({"SGE_TASK_ID": "6", "SGE_TASK_FIRST": "2", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "2"}, Shard(3, 4)),
        ({"LSB_JOBINDEX": "5", "LSB_JOBINDEX_END": "8", "LSB_JOBINDEX_STEP": "1"}, Shard(5, 8)),
        ({**NO_ARRAY, "RANK": "0", "WORLD_SIZE": "2"}, Shard(1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "9"}, Shard(2, 2)),
        ({"SLURM_PROCID": "8", "SLURM_NTASKS": "9"}, Shard(9, 9)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, Shard(4, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, Shard(1, 1)),
    ],
)
def test_what_systems_say(environment: dict[str, str], expected: Shard) -> None:
    assert resolve_shard("auto", environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        NO_ARRAY,
        {"RANK": "0"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"},
        {"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_TASK_COUNT": "3"},
        {"SGE_TASK_ID": "1", "SGE_TASK_LAST": "3", "SGE_TASK_STEPSIZE": "0"},
    ],
)
def test_what_they_do_not_say_is_not_guessed(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"--shard auto: none of SLURM_ARRAY_TASK_ID, .* give I/N"):
        resolve_shard("auto", environment)


@pytest.mark.parametrize(
    "text", ["", "1", "0/3", "4/3", "1/0", "a/b", "1/3/5", "-1/3", "1.0/3", "\u0661/3", "1/100000000"]
)
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match="give I/N"):
        resolve_shard(text, {})


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 11])
def test_shards_have_each_group_once_and_alike_many(count: int) -> None:
    plan = make_plan(range(10), 50, Batches(), threads=1)
    shards = [Shard(number, count).groups(plan) for number in range(1, count + 1)]
    assert [group.id for groups in shards for group in groups] == list(range(10))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
