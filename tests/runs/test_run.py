from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d4m_fast.config.choices import ImageFormat
from d4m_fast.errors import DataError, OutOfMemoryError, PreflightError, RunDirectoryError
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.claims import OwnGroups
from d4m_fast.runs.identity import source_of
from d4m_fast.runs.plan import Batches, Group, Plan, make_plan
from d4m_fast.runs.records import Sample
from d4m_fast.runs.run import RunDirectory
from d4m_fast.sources.records import ClassInfo
from d4m_fast.storage.state import CONFIG, write_state

IDENTITY: dict[str, Any] = {"options": {"data": "d", "seed": 0, "max_bad_fraction": 0.01}, "model": "m"}
GROUPS = (Group(0, (0, 1), 4, 2), Group(1, (2,), 4, 2))
PLAN = Plan(32, 1, GROUPS, {})


def sample(class_id: int, index: int) -> Sample:
    pixels = np.full((4, 4, 3), 10 * class_id + index, np.uint8)
    return Sample(ClassInfo(class_id, f"c{class_id}", f"class {class_id}"), index, 1, 3, 0.5, "c/0.png", pixels)


def samples(groups: tuple[Group, ...], ipc: int = 2) -> Stream[Sample]:
    made = [sample(c, i) for group in groups for c in group.classes for i in range(ipc)]
    return Stream(len(made), made)


def images_of(group: Group) -> int:
    return 2 * len(group.classes)


def write(
    run: RunDirectory,
    made: Stream[Sample],
    *,
    form: ImageFormat = "png",
    stop_after: int | None = None,
    plan: Plan = PLAN,
) -> list[dict[str, Any]]:
    with Workers(Stopwatch()) as workers:
        return list(islice(run.write(made, plan, OwnGroups(plan.groups), images_of, form, workers), stop_after))


def written(path: Path) -> RunDirectory:
    path.mkdir(exist_ok=True)
    run = RunDirectory(path, IDENTITY)
    run.begin()
    assert len(write(run, samples(GROUPS))) == 6
    return run


def record(path: Path, group: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "groups" / f"{group:05d}.json").read_text())
    return found


def broken_off(after: int, error: BaseException) -> Stream[Sample]:
    def items() -> Iterator[Sample]:
        yield from islice(samples(GROUPS), after)
        raise error

    return Stream(6, items())


@pytest.mark.parametrize(("after", "committed"), [(3, []), (4, [0]), (5, [0])])
def test_groups_are_committed_once_all_their_images_are_there(tmp_path: Path, after: int, committed: list[int]) -> None:
    """What was made before a failure is written, and committed if its group is whole."""
    run = RunDirectory(tmp_path, IDENTITY)
    run.begin()
    with pytest.raises(DataError, match="enough"):
        write(run, broken_off(after, DataError("enough")))
    assert sorted(RunDirectory(tmp_path, IDENTITY).committed(PLAN)) == committed
    assert len(list(tmp_path.glob("images/*/*.png"))) == after


def test_interrupted_group_is_not_committed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, IDENTITY)
    run.begin()
    assert len(write(run, samples(GROUPS), stop_after=5)) == 5
    assert sorted(RunDirectory(tmp_path, IDENTITY).committed(PLAN)) == [0]


def test_all_images_and_their_names_are_durable_before_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synced, renamed, and the directories synced after that; then the group's record, and not before."""
    sync, replace, link, done = os.fsync, os.replace, os.link, []

    def synced(descriptor: int) -> None:
        sync(descriptor)
        done.append(("synced", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    def replaced(old: Path, new: Path) -> None:
        replace(old, new)
        done.append(("renamed", f"{new.parent.name}/{new.name}"))

    def linked(old: Path, new: Path) -> None:
        link(old, new)
        done.append(("renamed", f"{new.parent.name}/{new.name}"))

    run = RunDirectory(tmp_path, IDENTITY)
    run.begin()
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "link", linked)
    write(run, samples(GROUPS[:1]), plan=Plan(32, 1, GROUPS[:1], {}))
    record = done.index(("renamed", "groups/00000.json"))
    for folder in ("c0", "c1"):
        directory = done.index(("synced", folder))
        for name in ("00000.png", "00001.png"):
            renamed = done.index(("renamed", f"{folder}/{name}"))
            assert renamed < directory < record
            assert any(d[0] == "synced" and d[1].endswith(name) for d in done[:renamed])
    assert done.count(("synced", "c0")) == 1


def test_a_writer_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
        if self.name.endswith("00001.png") and self.parent.name == "c1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return opened(self, mode, *args, **named)

    run = RunDirectory(tmp_path, IDENTITY)
    run.begin()
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(PreflightError, match=r"c1/.*00001\.png: no space left"):
        write(run, samples(GROUPS))
    assert run.committed(PLAN) == set()
    assert list(tmp_path.rglob(".tmp-*")) == []


def test_the_record_says_what_did_not_fit(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, IDENTITY)
    run.begin()
    plan = PLAN.with_smaller_batch(OutOfMemoryError("decode", "no room"), {0})
    write(run, samples(plan.groups), plan=plan)
    first, second = (record(tmp_path, group) for group in (0, 1))
    assert (first["batch_size"], first["decode_batch"], first["out_of_memory"]) == (4, 2, [])
    assert (second["batch_size"], second["decode_batch"]) == (4, 1)
    assert second["out_of_memory"] == list(plan.out_of_memory)


@pytest.mark.parametrize(("form", "suffix", "pillow"), [("jpeg", "jpg", "JPEG"), ("webp", "webp", "WEBP")])
def test_other_formats(tmp_path: Path, form: ImageFormat, suffix: str, pillow: str) -> None:
    run = RunDirectory(tmp_path, IDENTITY)
    run.begin()
    rows = write(run, samples(GROUPS), form=form)
    assert [row["file"] for row in rows[:2]] == [f"images/c0/0000{i}.{suffix}" for i in (0, 1)]
    with Image.open(tmp_path / rows[-1]["file"]) as image:
        assert (image.format, image.size) == (pillow, (4, 4))
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - 21).max() <= 3


@pytest.mark.parametrize("damage", ["lose", "cut"])
def test_a_group_that_lost_an_image_is_done_again(tmp_path: Path, damage: str) -> None:
    written(tmp_path)
    file = tmp_path / "images" / "c1" / "00001.png"
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-1])
    assert sorted(RunDirectory(tmp_path, IDENTITY).committed(PLAN)) == [1]


def test_a_group_of_another_plan_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    """Of a plan that was lost and made anew: what fits is kept, and no class is left out."""
    written(tmp_path)
    other = Plan(32, 1, (Group(0, (0,), 4, 2), Group(1, (2,), 4, 2), Group(2, (1,), 4, 2)), {})
    assert RunDirectory(tmp_path, IDENTITY).committed(other) == {1}


def test_records_name_every_image(tmp_path: Path) -> None:
    written(tmp_path)
    found = record(tmp_path, 0)
    assert [r["file"] for r in found["images"]] == [f"images/c{c}/{i:05d}.png" for c in (0, 1) for i in (0, 1)]
    assert found["images"][3].items() >= {"class_id": 1, "index": 1, "cluster_size": 3, "inertia_share": 0.5}.items()


def test_finish_derives_the_rest(tmp_path: Path) -> None:
    run = written(tmp_path)
    assert run.finished() is None
    watch = Stopwatch()
    watch.seconds["open"], watch.waits["write"] = 1.23456, 0.5
    run.save_plan(PLAN)
    summary = run.finish(PLAN, [], 0, watch)
    assert (summary["images"], summary["classes"], summary["seconds"]) == (6, 3, {"open": 1.235})
    assert summary["waits"] == {"write": 0.5}
    assert run.finished() == summary
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 6


def test_the_plan_is_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, IDENTITY)
    run.begin()
    assert (run.saved_plan(), run.finished()) == (None, None)
    plan = make_plan(range(3), 2, Batches(generate=4), threads=1)
    run.save_plan(plan)
    assert RunDirectory(tmp_path, IDENTITY).saved_plan() == plan


def test_another_config_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    RunDirectory(tmp_path, IDENTITY).begin()
    other = {"options": {**IDENTITY["options"], "seed": 1, "new": "x"}, "model": "m"}
    with pytest.raises(RunDirectoryError, match='new: null there, "x" now; seed: 0 there, 1 now'):
        RunDirectory(tmp_path, other)


def test_the_budget_for_damaged_images_may_change(tmp_path: Path) -> None:
    RunDirectory(tmp_path, IDENTITY).begin()
    RunDirectory(tmp_path, {**IDENTITY, "options": {**IDENTITY["options"], "max_bad_fraction": 0.5}})


def test_half_written_files_are_removed_but_only_from_our_runs(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-config.json").write_text("{")
    RunDirectory(tmp_path, IDENTITY).begin()
    (tmp_path / "images" / ".tmp-1-00000.png").write_text("")
    RunDirectory(tmp_path, IDENTITY).begin()
    assert list(tmp_path.rglob(".tmp-*")) == []


def test_what_a_run_was_made_from(tmp_path: Path) -> None:
    assert source_of(tmp_path) is None
    for foreign in ("[]", "{}", '{"architectures": []}'):
        (tmp_path / "config.json").write_text(foreign)
        assert source_of(tmp_path) is None
    write_state(tmp_path / "config.json", CONFIG, IDENTITY)
    assert source_of(tmp_path) == "d"
