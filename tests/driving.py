"""Runs of the command line, in this process and in others, and what they leave behind."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from d4m_fast import cli

CLASSES = ("apple", "bread", "cloud")
PER_CLASS = 6
ROOT = Path(__file__).resolve().parent.parent
HANGS = 300  # seconds; what takes longer never ends, however busy the machine is


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


@dataclass(frozen=True)
class Finished:
    """A finished run of `options` and the artifacts it used; not to be changed."""

    options: tuple[object, ...]
    run: Path
    artifacts: Path
    ran: Ran


def run_cli(*args: object) -> Ran:
    """`d4m-fast ARGS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            mock.patch.object(sys, "argv", ["d4m-fast", *map(str, args)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            cli.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return Ran(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "d4m_fast", *map(str, args)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def start(*args: object) -> subprocess.Popen[str]:
    """`d4m-fast ARGS` in a process of its own, for signals."""
    return subprocess.Popen(
        command(*args), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + HANGS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def refused(ran: Ran, code: int, *said: str) -> None:
    """One line of error that says all of `said`, and the exit code."""
    lines = [line for line in ran.err.splitlines() if line.lower().startswith("error:")]
    assert ran.code == code, ran
    assert len(lines) == 1, ran.err
    assert "Traceback" not in ran.err
    for words in said:
        assert words in lines[0], (words, lines[0])


def one_line(ran: Ran, code: int, *said: str) -> None:
    """`refused`, and nothing else on stderr."""
    refused(ran, code, *said)
    assert len(ran.err.splitlines()) == 1, ran.err


def tree(root: Path, *patterns: str) -> dict[str, bytes]:
    """Relative path -> bytes of the files below a directory."""
    found = (f for pattern in patterns or ("**/*",) for f in root.glob(pattern) if f.is_file())
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(found)}


PRODUCTS = ("images/**/*", "prototypes/*", "manifest.jsonl", "preview.png", "quarantine.jsonl")


def products(run: Path) -> dict[str, bytes]:
    """What two runs of one config must agree on, byte for byte; of the plan, what it says of the run."""
    plan = {**json.loads((run / "plan.json").read_text()), "why": None, "latents": None, "config": None, "sha256": None}
    return {**tree(run, *PRODUCTS), "plan.json": json.dumps(plan).encode()}


def load_tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attempts_on_a_full_disk(attempt: Callable[[], Ran], monkeypatch: pytest.MonkeyPatch) -> Iterator[Ran]:
    """Yield each of a command's attempts: number n gets as far as its 4n-th sync, until one gets through."""
    sync, attempts, code = os.fsync, 0, 1
    while code != 0:
        attempts += 1
        room = iter(range(4 * attempts))

        def full(descriptor: int, room: Iterator[int] = room) -> None:
            if next(room, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            ran = attempt()
        code = ran.code
        yield ran


def leftovers(root: Path) -> list[Path]:
    return sorted(root.rglob(".tmp-*"))


def worker_threads() -> list[str]:
    """Names of the threads of `data.workers` that are alive in this process."""
    return [t.name for t in threading.enumerate() if re.fullmatch(r"[a-z]+_[0-9]+", t.name)]


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_photos(root: Path, classes: Sequence[str], per_class: int, seed: int = 0) -> Path:
    """An ImageFolder of smooth random colour fields, JPEG and PNG, of sizes that need resizing."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
            suffix = "jpg" if i % 2 else "png"
            coarse.resize((20 + i, 18), Image.Resampling.BICUBIC).save(root / name / f"{i}.{suffix}")
    return root
