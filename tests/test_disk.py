"""No room, no permission, no such place: exit 6, nothing half written, and the same command goes on later."""

from __future__ import annotations

import builtins
import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driving import Finished, Ran, attempts_on_a_full_disk, leftovers, products, refused

from d4m_fast.errors import PreflightError
from d4m_fast.storage import files

Distill = Callable[..., Ran]


def test_full_disk_at_every_sync(
    distill: Distill, tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0
    for ran in attempts_on_a_full_disk(distill, monkeypatch):
        attempts += 1
        if ran.code != 0:
            refused(ran, 6, "run the same command again")
            assert leftovers(tmp_path) == []
    assert attempts > 5
    assert products(tmp_path / "run") == products(finished.run)


@pytest.mark.parametrize("limit", [2000, 5000])
def test_file_size_limit(distill: Distill, tmp_path: Path, finished: Finished, limit: int) -> None:
    """The operating system's own refusal: 2,000 bytes stop the latents, 5,000 the prototypes or the preview."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        ran = distill("--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(ran, 6, "file size limit")
    assert leftovers(tmp_path) == []
    assert distill().code == 0
    assert products(tmp_path / "run") == products(finished.run)


class _Disk:
    total = used = free = 1000


def test_too_little_room_is_seen_before_anything_is_written(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Disk)
    refused(distill(), 6, "latents and images need up to", "1,000 are free")
    assert list(tmp_path.iterdir()) == []


def test_needs_of_one_file_system_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Disk)
    one, other = files.Need(tmp_path / "a" / "b", 600, "latents"), files.Need(tmp_path, 600, "images")
    files.require_room(one)
    with pytest.raises(PreflightError, match="latents and images need up to 1,200 bytes, 1,000 are free"):
        files.require_room(one, other)


def test_what_is_written_already_needs_no_room(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distill().code == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Disk)
    assert distill().code == 0


@pytest.mark.parametrize("where", ["file/below", "file", "/proc/nope", "x" * 300, "/dev/null/run"])
def test_unwritable_run_directory(distill: Distill, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    refused(distill("--out", tmp_path / where), 6, "choose another")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_read_only_run_directory(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened = builtins.open

    def read_only(path: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
        if mode != "rb" and ".tmp-" in path.name:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, mode, *args, **named)

    monkeypatch.setattr(Path, "open", read_only)
    refused(distill(), 6, "choose another directory", str(tmp_path / "run"))
