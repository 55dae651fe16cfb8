"""One tiny model, one tiny set of photographs and one finished run for all tests."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from driving import CLASSES, PER_CLASS, Finished, Ran, run_cli, write_photos
from machine import NOBODY, Machine, RunOn, run_on
from shared_exports import SharedExports
from surroundings import plain_surroundings


def pytest_configure(config: pytest.Config) -> None:
    if sys.getfilesystemencoding() != "utf-8":
        raise pytest.UsageError("the tests write files of names beyond ASCII: start them with PYTHONUTF8=1")
    if config.getoption("numprocesses", None):
        return  # pytest-xdist's workers inherit the caller's surroundings, and each of them does what follows
    stack = ExitStack()
    if hasattr(config, "workerinput"):
        # A worker that takes long to end is cut short, cleanups and all: this lies in a folder that pytest removes.
        home = f"{config.getoption('basetemp')}-home"
        Path(home).mkdir()
    else:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="d4m-home-"))
    stack.enter_context(plain_surroundings(home))
    config.add_cleanup(stack.close)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _own_seed() -> None:
    """Random weights that a test draws do not depend on which tests went before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _shared_exports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", SharedExports(torch.onnx.export))
        yield


@pytest.fixture(scope="module")
def eight_calls() -> Iterator[None]:
    """The UNet is called 8 times per image instead of 36, where engines are compared; of 11 steps Euler halves some."""
    from d4m_fast.export import workload

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "REFERENCE", replace(workload.REFERENCE, steps=11))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8x8 latents, 16-pixel images."""
    from models import write_model

    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of six images; not to be changed."""
    return write_photos(tmp_path_factory.mktemp("data") / "photos", CLASSES, PER_CLASS)


@pytest.fixture(scope="session")
def options(tiny_model: Path, photos: Path) -> tuple[object, ...]:
    """A run of two images per class in well under a second."""
    return ("--data", photos, "--model", tiny_model, "--ipc", 2, "--steps", 4, "--threads", 1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, options: tuple[object, ...]) -> Finished:
    root = tmp_path_factory.mktemp("finished")
    ran = run_cli("distill", *options, "--out", root / "run", "--artifacts", root / "art", "--json", "--quiet")
    assert ran.code == 0, ran.err
    return Finished(options, root / "run", root / "art", ran)


@pytest.fixture
def distill(tmp_path: Path, options: tuple[object, ...]) -> Callable[..., Ran]:
    """`d4m-fast distill` of `options` into `tmp_path`; later flags win."""

    def run(*args: object) -> Ran:
        return run_cli("distill", *options, "--out", tmp_path / "run", "--artifacts", tmp_path / "art", *args)

    return run


@pytest.fixture
def distill_on(tmp_path: Path, options: tuple[object, ...]) -> RunOn:
    def run(machine: Machine, *args: object) -> Ran:
        flags = ("--out", tmp_path / "run", "--artifacts", tmp_path / "art")
        return run_on(machine, tmp_path, "distill", *options, *flags, *args)

    return run


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that another user may enter. Not below pytest's, which every pytest that starts shuts to others."""
    places = [place for place in map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp")) if _may_be_entered(place)]
    if not places:
        pytest.skip("no folder for temporary files that another user may enter")
    with tempfile.TemporaryDirectory(prefix="d4m-open-", dir=places[0]) as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def _may_be_entered(place: Path) -> bool:
    return all(path.is_dir() and path.stat().st_mode & 0o001 for path in (place, *place.parents))


@pytest.fixture
def distill_as_another(
    open_to_all: Path, options: tuple[object, ...], tiny_model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """`d4m-fast distill` of `options` by another user, on and into what lies in `open_to_all`."""
    data, model = (Path(shutil.copytree(path, open_to_all / path.name)) for path in (photos, tiny_model))
    for path in (*data.rglob("*"), *model.rglob("*"), data, model):
        path.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(open_to_all / "cache"))
    places = ("--data", data, "--model", model, "--out", open_to_all / "run", "--artifacts", open_to_all / "art")

    def run(*args: object, **limits: int) -> Ran:
        machine = Machine(user=NOBODY, variables={"HOME": None}, limits=limits)
        return run_on(machine, open_to_all, "distill", *options, *places, *args)

    return run
