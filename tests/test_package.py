"""The wheel: built without network, installed alone, and run from a directory that is not the checkout."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from driving import ROOT

from d4m_fast import __version__

PACKED = ("pyproject.toml", "README.md", "LICENSE")


def build(folder: Path) -> Path:
    """A wheel of the checkout's files, from a copy: the build writes beside its sources."""
    source = folder / "source"
    shutil.copytree(ROOT / "d4m_fast", source / "d4m_fast", ignore=shutil.ignore_patterns("__pycache__"))
    for name in PACKED:
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder / "wheels"), str(source)], check=True, capture_output=True)
    (wheel,) = (folder / "wheels").glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """The `d4m-fast` of an environment that has the wheel, and the present libraries behind it."""
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    # A path in a .pth file is searched after the environment's own, and .pth files there (an editable install) are not.
    (own / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin" / "d4m-fast"


@pytest.mark.slow
def test_the_wheel_runs_from_anywhere(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    script = install(wheel, tmp_path / "environment")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(script), "distill", "--classes", "1,8", "--ipc", "1", "--steps", "5", "--json", "--quiet"]
    ran = subprocess.run(command, cwd=elsewhere, env=bare, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    summary = json.loads(ran.stdout)
    assert (summary["images"], summary["classes"]) == (2, 2)
    assert len(list((elsewhere / summary["run"]).glob("images/*/*.png"))) == 2
    where = [str(script.with_name("python")), "-c", "import d4m_fast; print(d4m_fast.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, env=bare, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(tmp_path / "environment")


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path)) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("d4m_fast/")}
        metadata = wheel.read(f"d4m_fast-{__version__}.dist-info/METADATA").decode()
    files = (file for file in (ROOT / "d4m_fast").rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    assert packed == {str(file.relative_to(ROOT)) for file in files}
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: MIT" in metadata


def test_the_project_page_names_no_address_that_the_pages_do_not_have() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls
    assert all(url in (ROOT / "README.md").read_text() for url in urls.values())
