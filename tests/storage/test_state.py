"""State files: what was written comes back, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d4m_fast.errors import DamageError, PreflightError
from d4m_fast.storage import files
from d4m_fast.storage.state import PLAN, SUMMARY, Schema, json_lines, read_json, read_state, require_state, write_state

FIELDS: dict[str, Any] = {
    "name": "猫 \u2028",
    "not UTF-8": os.fsdecode(b"/data/\xff"),
    "numbers": [1, 0.1, -1e300, None, True],
    "nested": {"sha256": "0" * 64, "schema": "x", "empty": []},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_state(tmp_path / "a.json", PLAN, FIELDS)
    return tmp_path / "a.json"


def test_what_was_written_comes_back(file: Path) -> None:
    assert read_state(file, PLAN) == FIELDS
    assert read_state(file.with_name("none"), PLAN) is None
    with pytest.raises(DamageError, match=r"none: damaged \(it is missing\)"):
        require_state(file.with_name("none"), PLAN)


def test_it_is_plain_json_in_utf8(file: Path) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    assert {"schema": "plan", "version": 2, **FIELDS, "sha256": value["sha256"]} == value
    assert "猫" in file.read_text(encoding="utf-8")
    assert json.loads(json_lines([FIELDS]).decode("utf-8")) == FIELDS


def test_no_fields_at_all(tmp_path: Path) -> None:
    write_state(tmp_path / "a.json", PLAN, {})
    assert read_state(tmp_path / "a.json", PLAN) == {}


def test_every_changed_bit_is_found(file: Path) -> None:
    data = file.read_bytes()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(DamageError, match=r"a\.json: damaged"):
            read_state(file, PLAN)


def test_every_truncation_and_addition_is_found(file: Path) -> None:
    data = file.read_bytes()
    pieces = random.Random(0)
    for changed in (
        *(data[:length] for length in range(len(data))),
        *(data + tail for tail in (b"\n", b" ", b"\0", data)),
        *(data[:at] + b"7" + data[at:] for at in pieces.sample(range(len(data)), 50)),
    ):
        file.write_bytes(changed)
        with pytest.raises(DamageError, match=r"a\.json: damaged"):
            read_state(file, PLAN)


@pytest.mark.parametrize("text", ["[]", "5", "{}", "null", '""', "", "[" * 100_000, '{"schema": "plan", "version": 2}'])
def test_other_json_is_no_state_file(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(DamageError, match=r"damaged \(it does not end with its checksum"):
        read_state(file, PLAN)


@pytest.mark.parametrize("body", [b"{", b'{"a":', b"[1", b"[" * 100_000])
def test_what_was_sealed_and_is_not_json(file: Path, body: bytes) -> None:
    file.write_bytes(b'%s,\n "sha256": "%s"\n}\n' % (body, hashlib.sha256(body).hexdigest().encode()))
    with pytest.raises(DamageError, match=r"a\.json: damaged"):
        read_state(file, PLAN)


@pytest.mark.parametrize("schema", [SUMMARY, Schema("plan", 3, "")])
def test_a_sound_file_of_another_kind_or_version_is_refused(file: Path, schema: Schema) -> None:
    with pytest.raises(DamageError, match="it is 'plan' of version 2, not"):
        read_state(file, schema)


def directory(path: Path) -> None:
    path.mkdir()


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (directory, "is a directory, not a file"),
        (os.mkfifo, "is a named pipe, not a file"),
        (listening, "is a socket, not a file"),
        (link_to("/dev/zero"), "is a device, not a file"),
        (link_to("a.json"), "Too many levels of symbolic links"),
        (link_to("nothing"), "No such file or directory"),
        (link_to("/proc/self/mem"), "Input/output error"),
    ],
)
def test_only_regular_files_are_opened(
    file: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], reason: str
) -> None:
    file.unlink()
    monkeypatch.chdir(file.parent)  # a socket's path must be short
    make(Path(file.name))
    with pytest.raises((DamageError, PreflightError), match=reason):
        read_state(file, PLAN)
    with pytest.raises((OSError, ValueError), match=reason):
        read_json(file)


def test_what_may_be_read_another_time_is_no_damage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "read_regular", refused)
    with pytest.raises(PreflightError, match=r"a\.json: cannot be read \(Permission denied\)"):
        read_state(file, PLAN)
