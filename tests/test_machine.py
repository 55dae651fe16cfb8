"""The same run where the machine is short of something: the same bytes, or one line and its exit code."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from driving import ROOT, Finished, Ran, command, environment, leftovers, one_line, products, refused, run_cli
from machine import REFUSED_LOCKS, REFUSED_SYNCS, Machine, RunOn, root_only, run_on
from PIL import Image

from d4m_fast import endings, pipeline
from d4m_fast.errors import DataError, ModelError, OutOfMemoryError, RunDirectoryError
from d4m_fast.storage.locks import OWNER
from d4m_fast.streams import printable, printable_json


@pytest.mark.parametrize("stream", ["full", "closed", "unread"])
def test_lines_that_cannot_be_printed_end_no_run(
    distill_on: RunOn, tmp_path: Path, finished: Finished, stream: str
) -> None:
    ran = distill_on(Machine(stderr=stream))
    assert (ran.code, "6 images" in ran.out) == (0, True)
    assert products(tmp_path / "run") == products(finished.run)


@pytest.mark.parametrize(("stream", "code"), [("full", 6), ("closed", 6), ("unread", 141)])
@pytest.mark.parametrize("form", ["--json", "--quiet"])
def test_a_result_that_cannot_be_printed_is_kept(
    distill_on: RunOn, tmp_path: Path, finished: Finished, stream: str, code: int, form: str
) -> None:
    ran = distill_on(Machine(stdout=stream), form)
    refused(ran, code, "stdout: the result cannot be printed")
    assert products(tmp_path / "run") == products(finished.run)


def test_both_streams_closed(distill_on: RunOn, tmp_path: Path, finished: Finished) -> None:
    assert distill_on(Machine(stdout="closed", stderr="closed")).code == 6
    assert products(tmp_path / "run") == products(finished.run)


@pytest.mark.parametrize("args", [("--help",), ("distill", "--help"), ("--version",), ("doctor",)])
@pytest.mark.parametrize(("stream", "code"), [("full", 6), ("closed", 6), ("unread", 141)])
def test_every_result(tmp_path: Path, args: tuple[str, ...], stream: str, code: int) -> None:
    one_line(run_on(Machine(stdout=stream), tmp_path, *args), code, "stdout")


@pytest.mark.parametrize("number", REFUSED_LOCKS)
def test_no_flock(distill_on: RunOn, tmp_path: Path, finished: Finished, number: int) -> None:
    ran = distill_on(Machine(flock=number, before=_no_handlers))
    assert (ran.code, ran.err.count("no flock on this file system")) == (0, 1), ran
    assert products(tmp_path / "run") == products(finished.run)
    assert not list(tmp_path.rglob(OWNER))


def _no_handlers() -> None:
    """Pytest's are on the root logger, and `main` adds its own only where there are none."""
    import logging

    logging.root.handlers.clear()


def _owner(pid: int, host: str) -> str:
    return f"{pid}\n{host}\n"


def test_owner_files_of_the_living_the_dead_and_others(distill_on: RunOn, tmp_path: Path) -> None:
    owner, nowhere = tmp_path / "run" / OWNER, Machine(flock=errno.ENOSYS)
    owner.parent.mkdir()
    from filelock import SoftFileLock

    impatient = ("--lease-seconds", 0.1)
    with SoftFileLock(owner):
        host = owner.read_text().splitlines()[1]
        refused(distill_on(nowhere, *impatient), 4, f"in use by process {os.getpid()} on {host}", str(owner))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    owner.write_text(_owner(child.pid, "elsewhere.example"))
    refused(
        distill_on(nowhere, *impatient),
        4,
        f"in use by process {child.pid} on elsewhere.example",
        "remove that file",
    )
    owner.write_text(_owner(child.pid, host))
    assert distill_on(nowhere).code == 0


@pytest.mark.parametrize("number", REFUSED_SYNCS)
def test_directories_that_cannot_be_synced(distill_on: RunOn, tmp_path: Path, finished: Finished, number: int) -> None:
    assert distill_on(Machine(fsync_directory=number)).code == 0
    assert products(tmp_path / "run") == products(finished.run)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_files_that_cannot_be_synced(distill_on: RunOn, tmp_path: Path, finished: Finished, number: int) -> None:
    ran = distill_on(Machine(fsync_file=number, before=_no_handlers))
    assert (ran.code, ran.err.count("this file system cannot sync")) == (0, 1)
    assert products(tmp_path / "run") == products(finished.run)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_a_disk_that_fails_is_not_tolerated(distill_on: RunOn, number: int) -> None:
    for machine in (Machine(fsync_directory=number), Machine(fsync_file=number)):
        refused(distill_on(machine), 6, "run the same command again")


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY, errno.ETXTBSY, errno.EDQUOT, errno.ELOOP])
def test_renames_that_are_refused(distill_on: RunOn, tmp_path: Path, number: int) -> None:
    refused(distill_on(Machine(rename=number)), 6, str(tmp_path / "run" / "config.json"))
    assert leftovers(tmp_path) == []


def _link(path: Path) -> None:
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        server.bind(path.name)
        os.chdir(before)


STRANGERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "is a named pipe"),
    "directory": (Path.mkdir, "is a directory"),
    "socket": (_socket, "is a socket"),
    "link to itself": (_link, "is a link"),
    "dangling link": (_dangling, "is a link"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_lock_that_is_no_file(distill_on: RunOn, tmp_path: Path, finished: Finished, kind: str) -> None:
    make, said = STRANGERS[kind]
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / ".lock")
    refused(distill_on(Machine()), 6, said, str(tmp_path / "run" / ".lock"), "remove it")
    assert not (tmp_path / "run" / "nowhere").exists()


LIMITS = {
    "RLIMIT_AS": (1 << 30, "ulimit -v"),
    "RLIMIT_NOFILE": (20, "ulimit -n"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_that_no_run_can_live_with(distill_on: RunOn, tmp_path: Path, name: str) -> None:
    value, said = LIMITS[name]
    one_line(distill_on(Machine(limits={name: value})), 6, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["RLIMIT_FSIZE", "RLIMIT_NOFILE"])
@pytest.mark.parametrize("value", [1000, 3000, 10000])
def test_limits_of_files(distill_on: RunOn, tmp_path: Path, finished: Finished, name: str, value: int) -> None:
    """Below any limit: the same bytes, or one line and exit 6; that line is in a file, too."""
    ran = distill_on(Machine(limits={name: value}), "--quiet")
    if ran.code:
        one_line(ran, 6, "ulimit" if name == "RLIMIT_NOFILE" else "file size limit")
    else:
        assert products(tmp_path / "run") == products(finished.run)


@root_only
def test_no_more_threads(distill_as_another: Callable[..., Ran]) -> None:
    one_line(distill_as_another(RLIMIT_NPROC=1), 6, "threads", "ulimit -u")


@root_only
@pytest.mark.slow
def test_read_only_mount(tmp_path: Path, finished: Finished) -> None:
    """Read and verified, not written to; in a mount namespace of its own, on tmpfs and by a bind mount."""
    script = """
set -e
mkdir "$1/ram" "$1/seen"
mount -t tmpfs none "$1/ram" || exit 77
cp -a "$2" "$1/ram/run"
mount --bind "$1/ram/run" "$1/seen"
mount -o remount,bind,ro "$1/seen"
shift 2
exec "$@"
"""
    base = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), str(finished.run)]
    done = subprocess.run(
        [*base, *command("verify", tmp_path / "seen")], capture_output=True, text=True, env=environment()
    )
    if done.returncode in (1, 77) and "mount" in done.stderr:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    assert (done.returncode, "whole" in done.stdout) == (0, True), done


def test_variables_of_places(tmp_path: Path, options: tuple[object, ...]) -> None:
    def run(**variables: str | None) -> Ran:
        return run_on(Machine(variables=variables), tmp_path, "distill", *options, "--out", tmp_path / "run", "-q")

    one_line(run(XDG_CACHE_HOME="here"), 6, "XDG_CACHE_HOME=here", "--artifacts")
    one_line(run(XDG_CACHE_HOME=None, HOME=""), 6, "HOME", "--artifacts")
    one_line(run(XDG_CACHE_HOME="/proc/nope"), 6, "/proc/nope")


def test_current_directory_that_is_gone(distill_on: RunOn) -> None:
    one_line(distill_on(Machine(gone=True)), 6, "current directory")


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 2500, "no\udcff\udcfe", "esc\x1b[31m", "two\nlines", "\u202eabc"])
def test_names(tmp_path: Path, name: str) -> None:
    for args in (("verify", name), ("evaluate", name), ("distill", "--data", name), ("distill", "--config", name)):
        ran = run_on(Machine(), tmp_path, *args)
        assert ran.code in (1, 2, 6)
        one_line(ran, ran.code)
        assert not set("\x1b\u202e") & set(ran.err)


def test_run_below_a_name_that_is_not_utf8(tmp_path: Path, options: tuple[object, ...], finished: Finished) -> None:
    run = tmp_path / os.fsdecode(b"run-\xff\x1b[31m")
    ran = run_on(Machine(), tmp_path, "distill", *options, "--out", run, "--artifacts", tmp_path / "art")
    assert ran.code == 0, ran.err
    assert r"run-\xff\x1b[31m/images" in ran.out
    assert products(run) == products(finished.run)
    ran = run_on(Machine(), tmp_path, "verify", run, "--json")
    assert json.loads(ran.out)["run"] == str(run)
    assert "\x1b" not in ran.out


UNSEEN = ("\u2028", "\u2800", "\u3164", "\ufe01", "\uffff", "\ue000", "\U000e0041", "\U000e0100", "\U0010ffff")


@pytest.mark.parametrize(
    "text", ["plain 猫 é", "a\tb\r\n", "\x1b]0;t\x07", "\x9b31m", "\u2066x\u2069", "\udcff", "\ud800", *UNSEEN]
)
def test_json_is_of_the_same_value(text: str) -> None:
    written = printable_json(json.dumps({text: text}, ensure_ascii=False))
    assert json.loads(written) == {text: text}
    for shown in (written, printable(text)):
        assert shown.isprintable() and not set(shown) & set(UNSEEN)
        shown.encode()


def caused(error: Exception, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


EXPECTED: dict[str, tuple[BaseException, int]] = {
    **{f"errno {n}": (OSError(n, os.strerror(n), "/a/path"), 0) for n in errno.errorcode},
    "no words": (OSError(), 1),
    "threads": (RuntimeError("can't start new thread"), 6),
    "memory": (MemoryError(), 6),
    "bad_alloc": (RuntimeError("std::bad_alloc"), 6),
    **{
        said: (RuntimeError(said), 6)
        for said in (
            "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
            "unable to mmap 64 bytes from file <x>: Cannot allocate memory (12)",
            "unable to allocate 4 bytes",
            "Resource temporarily unavailable",
        )
    },
    "CUDA": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), 6),
    "CUDA, other words": (torch.OutOfMemoryError("HIP says no"), 6),
    "NumPy": (np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("u1")), 6),  # type: ignore[attr-defined]
    "network": (OutOfMemoryError("encode", "no room"), 6),
    "in other words": (caused(ModelError("unet: cannot be read"), MemoryError()), 6),
    "import": (caused(RuntimeError("Failed to import a"), caused(ImportError("no b"), MemoryError())), 6),
    "twice": (caused(DataError("no"), caused(ValueError("no"), RuntimeError("can't start new thread"))), 6),
    "of a lock": (caused(RunDirectoryError("in use"), BlockingIOError(errno.EAGAIN, "try again")), 4),
    "not of memory": (caused(ModelError("unet: cannot be read"), ValueError("wrong")), 1),
    "library": (ImportError("libx.so: failed to map segment from shared object"), 6),
    "fork": (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 6),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_errors_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    error, code = EXPECTED[name]
    monkeypatch.setattr("d4m_fast.diagnose.diagnose", mock.Mock(side_effect=error))
    ran = run_on(Machine(), tmp_path, "doctor")
    one_line(ran, code or ran.code)
    assert ran.code in (1, 4, 6)


def test_what_nobody_has_foreseen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("d4m_fast.diagnose.diagnose", mock.Mock(side_effect=TypeError("of \x1b[31m\nours")))
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    ran = run_on(Machine(variables=state), tmp_path, "doctor")
    (file,) = (tmp_path / "state" / "d4m-fast").iterdir()
    line = f"unexpected: TypeError: of \\x1b[31m ours; the traceback is in {file}; please report it\n"
    assert (ran.code, ran.err) == (70, line)
    kept = file.read_text()
    assert "Traceback" in kept and "'doctor'" in kept and "Python 3" in kept
    assert "Traceback" in run_on(Machine(variables={**state, "D4M_DEBUG": "1"}), tmp_path, "doctor").err
    nowhere = {"XDG_STATE_HOME": "/proc/nope", "TMPDIR": "/proc/nope"}
    ran = run_on(Machine(variables=nowhere, before=_no_temporary_directory), tmp_path, "doctor")
    assert (ran.code, len(ran.err.splitlines())) == (70, 1)
    assert "no file could be written" in ran.err and "TypeError" in ran.err


class _Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize("error", [_Mute(), ExceptionGroup("several", [MemoryError()]), RecursionError()])
def test_errors_that_are_hard_to_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    monkeypatch.setattr("d4m_fast.diagnose.diagnose", mock.Mock(side_effect=error))
    ran = run_on(Machine(variables={"XDG_STATE_HOME": str(tmp_path)}), tmp_path, "doctor")
    assert (ran.code, len(ran.err.splitlines())) == (70, 1), ran
    assert f"unexpected: {type(error).__name__}" in ran.err


def _no_temporary_directory() -> None:
    tempfile.gettempdir = mock.Mock(side_effect=FileNotFoundError(errno.ENOENT, "none"))


def test_a_second_interruption_and_a_hangup(tmp_path: Path, options: tuple[object, ...]) -> None:
    def hang_up(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    def patch() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        pipeline.distill = hang_up  # type: ignore[assignment]

    flags = ("--out", tmp_path / "run", "--artifacts", tmp_path / "art")
    ran = run_on(Machine(before=patch), tmp_path, "distill", *options, *flags, "--quiet")
    assert (ran.code, ran.err) == (129, "")


def test_a_moved_run_names_where_it_lies(tmp_path: Path, finished: Finished, options: tuple[object, ...]) -> None:
    moved = shutil.copytree(finished.run, tmp_path / "moved")
    flags = ("--out", moved, "--artifacts", finished.artifacts, "--quiet")
    assert run_cli("distill", *options, *flags, "--json").json["run"] == str(moved)
    assert f"{moved}/images" in run_cli("distill", *options, *flags).out


def test_quiet_is_quiet(distill_on: RunOn) -> None:
    def warn() -> None:
        import logging
        import warnings

        def noisy(*args: object, **named: object) -> object:
            warnings.warn("of a library", stacklevel=1)
            logging.getLogger("library").warning("of a library")
            return kept(*args, **named)  # type: ignore[arg-type]

        warnings.simplefilter("default")
        kept, pipeline.distill = pipeline.distill, noisy  # type: ignore[assignment]

    ran = distill_on(Machine(before=warn), "--quiet")
    assert (ran.code, ran.err) == (0, "")


LOCALES = ({"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C.UTF-8"})
NO_UTF8 = ["-X", "utf8=0"]


def locales_and_flags() -> Iterator[Any]:
    """Each locale without the flag that turns UTF-8 off and with it; one of the two, in turn, in the normal suite."""
    for number, variables in enumerate(LOCALES):
        fast, slow = (NO_UTF8, []) if number % 2 else ([], NO_UTF8)
        yield pytest.param(variables, fast)
        yield pytest.param(variables, slow, marks=pytest.mark.slow)


@pytest.mark.parametrize(("variables", "flags"), list(locales_and_flags()))
def test_names_are_utf8_in_every_locale(tmp_path: Path, variables: dict[str, str], flags: list[str]) -> None:
    """The bundled model does not know them, and the line of that has them as they are."""
    for name in ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{CJK UNIFIED IDEOGRAPH-732B}"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / "1.png")
    python, *args = command("distill", "--data", tmp_path / "data", "--quiet")
    done = subprocess.run(
        [python, *flags, *args], capture_output=True, env={**environment(), "PYTHONUTF8": "0", **variables}, check=False
    )
    one_line(Ran(done.returncode, "", done.stderr.decode()), 2, "'caf\N{LATIN SMALL LETTER E WITH ACUTE}'")


def test_the_page_has_every_exit_code() -> None:
    page = (ROOT / "docs" / "machine.md").read_text(encoding="utf-8")
    codes = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")}
    assert {"0", "1", "2", "3", "4", "5", "6", "70", "129", "130", "141", "143"} <= codes
    assert endings.DEBUG in page
