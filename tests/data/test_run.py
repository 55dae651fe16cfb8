from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d4m_fast.data.plan import Group, make_plan
from d4m_fast.data.records import ClassInfo, Sample
from d4m_fast.data.run import RunDirectory, source_of
from d4m_fast.data.stream import Stream
from d4m_fast.errors import RunDirectoryError

IDENTITY: dict[str, Any] = {"options": {"data": "d", "seed": 0, "max_bad_fraction": 0.01}, "model": "m"}
GROUPS = (Group(0, (0, 1)), Group(1, (2,)))


def sample(class_id: int, index: int) -> Sample:
    pixels = np.full((4, 4, 3), 10 * class_id + index, np.uint8)
    return Sample(ClassInfo(class_id, f"c{class_id}", f"class {class_id}"), index, 1, 3, 0.5, "c/0.png", pixels)


def samples(groups: tuple[Group, ...], ipc: int = 2) -> Stream[Sample]:
    made = [sample(c, i) for group in groups for c in group.classes for i in range(ipc)]
    return Stream(len(made), made)


def written(path: Path) -> RunDirectory:
    path.mkdir(exist_ok=True)
    run = RunDirectory(path, IDENTITY)
    assert len(list(run.write(samples(GROUPS), GROUPS, 2))) == 6
    return run


def test_groups_are_committed_once_all_their_images_are_there(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, IDENTITY)
    commits = []

    def watched() -> Iterator[Sample]:
        for one in samples(GROUPS):
            commits.append(sorted(run.committed()))
            yield one

    list(run.write(Stream(6, watched()), GROUPS, 2))
    assert commits == [[], [], [], [], [0], [0]]
    assert sorted(run.committed()) == [0, 1]


def test_interrupted_group_is_not_committed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, IDENTITY)
    stream = iter(run.write(samples(GROUPS), GROUPS, 2))
    for _ in range(5):
        next(stream)
    assert sorted(RunDirectory(tmp_path, IDENTITY).committed()) == [0]


@pytest.mark.parametrize("damage", ["lose", "cut"])
def test_a_group_that_lost_an_image_is_done_again(tmp_path: Path, damage: str) -> None:
    run, file = written(tmp_path), tmp_path / "images" / "c1" / "00001.png"
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-1])
    assert sorted(run.committed()) == [1]


def test_records_name_every_image(tmp_path: Path) -> None:
    record = written(tmp_path).committed()[0]
    assert [r["file"] for r in record["images"]] == [f"images/c{c}/{i:05d}.png" for c in (0, 1) for i in (0, 1)]
    assert record["images"][3].items() >= {"class_id": 1, "index": 1, "cluster_size": 3, "inertia_share": 0.5}.items()


def test_finish_derives_the_rest(tmp_path: Path) -> None:
    run = written(tmp_path)
    assert run.finished() is None
    summary = run.finish([], {"open": 1.23456})
    assert (summary["images"], summary["classes"], summary["seconds"]) == (6, 3, {"open": 1.235})
    assert run.finished() == summary
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 6


def test_the_plan_is_written_once(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, IDENTITY)
    first = make_plan(range(3), 2, batch_size=4, threads=1).to_json()
    assert run.plan(first)["threads"] == 1
    assert run.plan({**first, "threads": 2})["threads"] == 1


def test_another_config_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    RunDirectory(tmp_path, IDENTITY)
    other = {"options": {**IDENTITY["options"], "seed": 1, "new": "x"}, "model": "m"}
    with pytest.raises(RunDirectoryError, match='new: null there, "x" now; seed: 0 there, 1 now'):
        RunDirectory(tmp_path, other)


def test_the_budget_for_damaged_images_may_change(tmp_path: Path) -> None:
    RunDirectory(tmp_path, IDENTITY)
    RunDirectory(tmp_path, {**IDENTITY, "options": {**IDENTITY["options"], "max_bad_fraction": 0.5}})


def test_half_written_files_are_removed_but_only_from_our_runs(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-config.json").write_text("{")
    RunDirectory(tmp_path, IDENTITY)
    (tmp_path / "images" / ".tmp-1-00000.png").write_text("")
    RunDirectory(tmp_path, IDENTITY)
    assert list(tmp_path.rglob(".tmp-*")) == []


def test_what_a_run_was_made_from(tmp_path: Path) -> None:
    assert source_of(tmp_path) is None
    for foreign in ("[]", "{}", '{"architectures": []}'):
        (tmp_path / "config.json").write_text(foreign)
        assert source_of(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(IDENTITY))
    assert source_of(tmp_path) == "d"
