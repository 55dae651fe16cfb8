"""SIGKILL, a full disk and an input/output error while an output is written; a re-run gives the same bytes."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converting import FORMS, SHARD_IMAGES, convert, converted
from driving import Finished, leftovers, one_line, run_cli, tree
from faults import attempt

KINDS = {"SIGKILL": -9, "ENOSPC": 6, "EIO": 6}
Step = tuple[str, int]
Begin = Callable[..., tuple[int, str]]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def begin(finished: Finished, tmp_path: Path, form: str) -> Begin:
    """A conversion in a forked process, with a fault below `root`: its exit code, and stderr."""

    def run(root: Path, **fault: Any) -> tuple[int, str]:
        flags = [] if form == "imagefolder" else ["--shard-images", str(SHARD_IMAGES)]
        args = ["convert", str(finished.run), "--to", form, "--out", str(root / "out"), "--quiet", *flags]
        answer = attempt({"args": args, "root": str(root), "said": str(tmp_path / "said"), **fault})
        return answer["code"], answer["err"]

    return run


@pytest.fixture
def steps(begin: Begin, tmp_path: Path) -> list[Step]:
    """What a whole conversion does to the disk, step by step."""
    log = tmp_path / "steps.json"
    assert begin(tmp_path / "watched", log=str(log)) == (0, "")
    return [(name, count) for name, count in json.loads(log.read_text())]


def may_come(kind: str, name: str) -> bool:
    """After a rename that was done only a kill can come."""
    return kind == "SIGKILL" or not name.startswith("renamed")


def survives(begin: Begin, root: Path, whole: Path, kind: str, at: Step) -> None:
    code, err = begin(root, kind=kind, at=at)
    assert code == KINDS[kind], (kind, at, err)
    assert "Traceback" not in err
    assert kind == "SIGKILL" or "run the same command again" in err
    verdict = run_cli("verify", root / "out")
    assert verdict.code in (0, 1, 4), verdict  # whole, unfinished, or not begun: never damaged
    assert begin(root, watch=False) == (0, "")
    assert tree(root / "out") == tree(whole)
    assert leftovers(root) == []


def test_the_record_is_written_before_the_files_and_last(steps: list[Step]) -> None:
    renamed = [name.removeprefix("renamed ") for name, _ in steps if name.startswith("renamed")]
    assert renamed[0] == renamed[-1] == "out/output.json"
    images = [name for name in renamed if name.endswith((".tar", ".parquet", ".png"))]
    assert len(images) == len(set(images)) and len(images) in (2, 6)
    assert not any(name.endswith((".tar", ".parquet")) for name in renamed[renamed.index("out/README.md") :])


def test_a_fault_at_some_steps(begin: Begin, steps: list[Step], finished: Finished, tmp_path: Path, form: str) -> None:
    """Kinds of fault in turn, at steps spread over the conversion."""
    whole = converted(finished.run, form, tmp_path / "whole")
    for n, place in enumerate(range(0, len(steps), max(1, len(steps) // 6))):
        kinds = [kind for kind in KINDS if may_come(kind, steps[place][0])]
        survives(begin, tmp_path / str(n), whole, kinds[n % len(kinds)], steps[place])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_every_step(
    begin: Begin, steps: list[Step], finished: Finished, tmp_path: Path, form: str, kind: str
) -> None:
    whole = converted(finished.run, form, tmp_path / "whole")
    for n, step in enumerate(steps):
        if may_come(kind, step[0]):
            survives(begin, tmp_path / str(n), whole, kind, step)


def test_a_disk_that_is_full_at_every_sync(
    finished: Finished, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempt n gets as far as its n-th sync, further each time, until one gets through."""
    sync, out = os.fsync, tmp_path / "out"
    for attempts in itertools.count(1):
        remaining = iter(range(3 * attempts))

        def full(descriptor: int, remaining: Any = remaining) -> None:
            if next(remaining, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            ran = convert(finished.run, form, out)
        if ran.code == 0:
            break
        one_line(ran, 6, "no space left; free some and run the same command again")
        assert leftovers(tmp_path) == []
    assert attempts > 2
    assert convert(finished.run, form, tmp_path / "whole").code == 0
    assert tree(out) == tree(tmp_path / "whole")


def test_a_limit_of_file_sizes(finished: Finished, tmp_path: Path, form: str) -> None:
    """The operating system's own refusal, in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max((finished.run / "images").rglob("*.png"), key=lambda file: file.stat().st_size).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1 if form == "imagefolder" else 2500, hard))
    try:
        ran = convert(finished.run, form, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(ran, 6, "file size limit reached; raise it and run the same command again")
    assert leftovers(tmp_path) == []
    assert convert(finished.run, form, tmp_path / "out").code == 0
    assert convert(finished.run, form, tmp_path / "whole").code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


class _Disk:
    total = used = free = 1000


def test_too_little_room_is_seen_before_anything_is_written(
    finished: Finished, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Disk)
    one_line(convert(finished.run, form, tmp_path / "out"), 6, "the output's files need up to", "1,000 are free")
    assert set(tree(tmp_path / "out")) <= {".lock"}


def test_distill_counts_the_room_for_its_form(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Disk)
    flags = ("--out", tmp_path / "run", "--artifacts", tmp_path / "art", "--quiet", "--output", "webdataset")
    ran = run_cli("distill", *finished.options, *flags)
    one_line(ran, 6, "latents and images and their webdataset form need up to")
