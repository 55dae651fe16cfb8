"""The tests pass whoever starts them, and a run in the background minds what its parent told it to ignore.

A few tests that depend on signals, terminal, language, files and users, run again from surroundings made here.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from driving import HANGS, ROOT, Finished, command, environment, wait_for
from surroundings import SIGNALS, plain_environment

PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
UNFRIENDLY = (sys.executable, str(ROOT / "tests" / "unfriendly.py"))
FEW = (
    "tests/test_cli.py::test_same_bytes_after_a_signal[2-130-images/*/*.png]",
    "tests/test_help.py::test_help_shows_every_default_and_every_bound",
    "tests/sources/test_dataset.py::test_agrees_with_torchvision",
    "tests/test_surroundings.py::test_children_find_plain_surroundings",
)
MORE = (
    *FEW,
    "tests/sources",
    "tests/storage",
    "tests/runs",
    "tests/test_cli.py",
    "tests/test_disk.py",
    "tests/test_presets.py",
    "tests/evaluation/test_training.py",
)
SETTINGS = {
    "NO_COLOR": "1",
    "FORCE_COLOR": "1",
    "COLUMNS": "20",
    "LINES": "4",
    "TERM": "dumb",
    "OMP_NUM_THREADS": "3",
    "HF_HOME": "/nowhere",
    "HF_HUB_OFFLINE": "1",
    "XDG_CACHE_HOME": "relative",
    "D4M_DEBUG": "1",
    "PYTHONIOENCODING": "ascii",
}
LANGUAGES = {
    "C": {"LANG": "C"},
    "all C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    "all POSIX": {"LC_ALL": "POSIX", "LANG": "xx_XX.ISO-8859-1"},
}


def again(arguments: tuple[str, ...], tests: tuple[str, ...], **variables: str | None) -> None:
    """Run tests in a process without a terminal; they must pass. A variable of None is taken away."""
    merged = {**environment(), **variables}
    ran = subprocess.run(
        [*arguments, *tests],
        cwd=ROOT,
        env={name: value for name, value in merged.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert re.search(r"\d+ passed", ran.stdout)


@contextmanager
def folder_elsewhere() -> Iterator[str]:
    """A folder on another file system than the tests'."""
    here = ROOT.stat().st_dev
    places = [p for p in ("/dev/shm", "/run/shm", "/var/tmp", "/tmp") if os.path.isdir(p) and os.access(p, os.W_OK)]
    for place in places:
        if os.stat(place).st_dev != here:
            with tempfile.TemporaryDirectory(dir=place) as folder:
                yield folder
            return
    pytest.skip("there is one file system only")


def test_children_find_plain_surroundings() -> None:
    """What a child sees of signals, umask and variables, in whatever surroundings this test itself runs."""
    code = """
import os, signal
print([signal.getsignal(n) != signal.SIG_IGN for n in map(signal.Signals, SIGNALS)])
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), oct(os.umask(0)))
print(sorted(name for name in SETTINGS if name in os.environ and name != "XDG_CACHE_HOME"))
"""
    given = code.replace("SIGNALS", repr([int(n) for n in SIGNALS])).replace("SETTINGS", repr(sorted(SETTINGS)))
    ran = subprocess.run([sys.executable, "-c", given], capture_output=True, text=True, env=environment(), check=True)
    assert ran.stdout.splitlines() == [str([True] * len(SIGNALS)), "[] 0o22", "[]"]


@pytest.mark.parametrize("kept", ["PATH", "D4M_SHARED", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "PYTEST_ADDOPTS"])
def test_what_names_the_machine_is_kept(kept: str) -> None:
    assert plain_environment({kept: "x", "D4M_OTHER": "x", "HF_HUB_OFFLINE": "1"}, "/home") == {
        kept: "x",
        "HOME": "/home",
        "PYTHONUTF8": "1",
    }


def test_a_few_from_a_background_job_of_another_language() -> None:
    """Everything that needs no privilege at once; one by one in the slow tests below."""
    with folder_elsewhere() as elsewhere:
        variables = {"TMPDIR": elsewhere, "HOME": None, "PYTHONUTF8": None, **SETTINGS, **LANGUAGES["all C"]}
        again((*UNFRIENDLY, *PYTEST), FEW, **variables)


@pytest.mark.slow
def test_from_a_background_job() -> None:
    again((*UNFRIENDLY, *PYTEST), MORE)


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_in_another_language(language: str) -> None:
    again(PYTEST, MORE, PYTHONUTF8=None, **LANGUAGES[language])


@pytest.mark.slow
def test_with_a_users_settings() -> None:
    again(PYTEST, MORE, **SETTINGS)


@pytest.mark.slow
def test_on_another_file_system() -> None:
    with folder_elsewhere() as elsewhere:
        again(PYTEST, MORE, TMPDIR=elsewhere)


@pytest.mark.slow
def test_on_a_terminal() -> None:
    """Pytest's own output goes to a pipe: what asks for a terminal would find it at 0 and 2."""
    here, there = pty.openpty()
    try:
        ran = subprocess.run(
            [*PYTEST, "-s", *MORE], cwd=ROOT, env=environment(), stdin=there, stdout=subprocess.PIPE, stderr=there
        )
    finally:
        os.close(here)
        os.close(there)
    assert ran.returncode == 0, ran.stdout.decode()[-6000:]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user; elsewhere all tests run as one")
def test_as_another_user() -> None:
    """One that may not write to the checkout; files that root's tools lie among are shown to it."""
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("no unshare and setpriv (util-linux)")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as hold:
        os.chmod(folder, 0o777)
        script = (
            f"{_shown(hold)} exec setpriv --reuid=65534 --regid=65534 --clear-groups {shlex.join((*PYTEST, *MORE))}"
        )
        again(("unshare", "--mount", "sh", "-ec", script), (), TMPDIR=folder)


def _shown(hold: str) -> str:
    """Shell commands that put what Python and the tests need below folders that another user may enter."""
    needed = [sys.base_prefix, sys.prefix, str(ROOT)]
    lines = []
    for number, path in enumerate(dict.fromkeys(needed)):
        closed = [str(p) for p in Path(path).parents if not p.stat().st_mode & 0o001]
        if closed:
            kept, outer = shlex.quote(f"{hold}/{number}"), shlex.quote(closed[-1])
            lines.append(f"mkdir {kept}; mount --rbind {shlex.quote(path)} {kept};")
            lines.append(f"mount -t tmpfs -o mode=755 tmpfs {outer}; mkdir -p {shlex.quote(path)};")
            lines.append(f"mount --rbind {kept} {shlex.quote(path)};")
    return " ".join(lines)


def _background(arguments: list[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*UNFRIENDLY, *arguments], env=dict(variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_run_in_the_background_minds_no_interrupt(finished: Finished, tmp_path: Path) -> None:
    """`nohup d4m-fast distill ... &` of a script: Ctrl-C and a closed terminal are for others."""
    run = tmp_path / "run"
    flags = ("--out", run, "--artifacts", tmp_path / "art", "--batch-size", 1)
    process = _background(command("distill", *finished.options, *flags), environment())
    wait_for(lambda: (run / "config.json").exists(), process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert len(list(run.glob("images/*/*.png"))) == 6
