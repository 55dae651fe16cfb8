from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from d4m_fast.errors import PreflightError, RunDirectoryError
from d4m_fast.storage import files
from d4m_fast.storage.locks import locked


def test_writes_and_says_what(tmp_path: Path) -> None:
    assert files.write_bytes(tmp_path / "a", b"new") == hashlib.sha256(b"new").hexdigest()
    assert files.write_bytes(tmp_path / "a", b"newer") == hashlib.sha256(b"newer").hexdigest()
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    files.write_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises((PreflightError, KeyboardInterrupt)):
        files.write_bytes(tmp_path / "a", b"new")
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {"a": b"old"}


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_refusal_is_one_line(tmp_path: Path, number: int) -> None:
    with pytest.raises(PreflightError, match=f"^{tmp_path}: [^;]+; [^;]+$"), files.refusing(tmp_path):
        raise OSError(number, os.strerror(number))


def test_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunDirectoryError, match="in use"), locked(tmp_path):
        raise AssertionError("two holders")
    with locked(tmp_path):
        pass


def test_lock_does_not_explain_errors_inside_it(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), locked(tmp_path):
        raise PermissionError(errno.EACCES, "of something else")


def test_sweep_takes_only_what_is_half_written(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.json", ".tmp-7-a.json", "images/.tmp-7-0.png", "images/tmp-0.png"):
        (tmp_path / name).touch()
    files.sweep(tmp_path)
    assert sorted(f.name for f in tmp_path.rglob("*")) == ["a.json", "images", "tmp-0.png"]


def test_directory_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "below", tmp_path / "file", tmp_path / ("x" * 300)):
        with pytest.raises(PreflightError, match="choose another directory"):
            files.make_directory(path)
