"""`d4m_fast.distill`: the bytes of the command, told by callbacks and errors, and a process left as it was."""

from __future__ import annotations

import inspect
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from driving import Finished, environment, json_lines, leftovers, products, run_cli, tree, worker_threads
from PIL import Image

import d4m_fast
from d4m_fast.storage.locks import locked


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Any]:
    return {"out": tmp_path / "run", "artifacts": tmp_path / "art"}


@pytest.fixture
def keywords(tiny_model: Path, photos: Path) -> dict[str, Any]:
    """Keywords of the flags that the fixture `finished` was made with."""
    return {"data": photos, "model": tiny_model, "ipc": 2, "steps": 4, "threads": 1}


def test_same_bytes_as_the_command(finished: Finished, keywords: dict[str, Any], places: dict[str, Any]) -> None:
    run = d4m_fast.distill(**keywords, **places)
    assert run == d4m_fast.Run(places["out"])
    assert products(run.path) == products(finished.run)
    assert tree(places["artifacts"], "**/*.npy") == tree(finished.artifacts, "**/*.npy")
    config = json.loads((run.path / "config.json").read_text())
    assert config["options"] == json.loads((finished.run / "config.json").read_text())["options"]


def test_the_command_and_the_function_go_on_with_each_others_runs(
    finished: Finished, keywords: dict[str, Any], places: dict[str, Any]
) -> None:
    before = tree(finished.run)
    run = d4m_fast.distill(**keywords, out=finished.run, artifacts=finished.artifacts)
    assert {**run.summary, "output": None} == finished.ran.json
    d4m_fast.distill(**keywords, **places)
    flags = ("--out", places["out"], "--artifacts", places["artifacts"])
    summary = run_cli("distill", *finished.options, *flags, "--json").json
    assert summary == {**d4m_fast.open_run(places["out"]).summary, "output": None}
    assert tree(finished.run) == before


def test_a_config_and_keywords_are_one_request(
    finished: Finished, keywords: dict[str, Any], places: dict[str, Any]
) -> None:
    names = {**keywords, "data": str(keywords["data"]), "model": str(keywords["model"])}
    config = d4m_fast.DistillConfig(**{**names, "ipc": 1})
    numbers: dict[str, Any] = {"ipc": np.int64(2), "guidance": 8}  # as a notebook may have them
    run = d4m_fast.distill(config, **numbers, **places)
    assert products(run.path) == products(finished.run)


def test_a_preset_brings_its_settings_unless_they_are_given(keywords: dict[str, Any], places: dict[str, Any]) -> None:
    del keywords["steps"]
    config = d4m_fast.DistillConfig(steps=9, seed=3)
    run = d4m_fast.distill(config, **keywords, **places, preset="unipc", strength=1)
    saved = json.loads((run.path / "config.json").read_text())["options"]
    assert (saved["scheduler"], saved["steps"], saved["strength"], saved["seed"]) == ("unipc", 8, 1.0, 3)


def test_progress_is_told_image_by_image(keywords: dict[str, Any], places: dict[str, Any]) -> None:
    calls = list[tuple[str, int, int]]()
    run = d4m_fast.distill(**keywords, **places, progress=lambda *call: calls.append(call))
    encoded = [call for call in calls if call[0] == "encode"]
    assert encoded == [("encode", done, 18) for done in range(19)]
    assert calls == [*encoded, *(("distill", done, 6) for done in range(7))]
    calls.clear()
    assert d4m_fast.distill(**keywords, **places, progress=lambda *call: calls.append(call)) == run
    assert calls == []  # there was nothing left to do


class StopRequested(Exception):
    """Raised by a callback."""


def test_a_callback_ends_a_call_and_the_next_one_goes_on(
    finished: Finished, keywords: dict[str, Any], places: dict[str, Any]
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("distill", 2):
            raise StopRequested

    with pytest.raises(StopRequested):
        d4m_fast.distill(**keywords, **places, progress=stop)
    assert worker_threads() == []
    assert not (places["out"] / "summary.json").exists()
    with pytest.raises(d4m_fast.RunDirectoryError, match="not finished"):
        _ = d4m_fast.open_run(places["out"]).summary
    run = d4m_fast.distill(**keywords, **places)
    assert products(run.path) == products(finished.run)
    assert leftovers(places["out"]) == []


def test_images_classes_and_rows_of_a_run(finished: Finished) -> None:
    pandas = pytest.importorskip("pandas")
    run = d4m_fast.open_run(str(finished.run))
    rows = json_lines(finished.run / "manifest.jsonl")
    assert run.classes == ("apple", "bread", "cloud")
    assert [str(path.relative_to(run.path)) for path in run.images.paths] == [row["file"] for row in rows]
    assert len(run.images) == 6
    with Image.open(run.images.paths[4]) as theirs:
        assert run.images[4].tobytes() == theirs.convert("RGB").tobytes()
    assert run.images[-2:].paths == run.images.paths[4:]
    assert [image.size for image in run.images] == [(16, 16)] * 6
    with pytest.raises(IndexError):
        _ = run.images[6]
    assert isinstance(run.manifest, pandas.DataFrame)
    assert run.manifest.to_dict("records") == rows
    verdict = run.verify(deep=True)
    assert (verdict.whole, verdict.images) == (True, 6)


def test_without_pandas_the_manifest_says_how_to_get_it(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(d4m_fast.PreflightError, match=r"manifest needs pandas: pip install 'd4m-fast\[notebook\]'"):
        _ = d4m_fast.open_run(finished.run).manifest


def test_damage_is_told_and_repaired(keywords: dict[str, Any], places: dict[str, Any], finished: Finished) -> None:
    run = d4m_fast.distill(**keywords, **places)
    run.images.paths[1].write_bytes(b"")
    with pytest.raises(d4m_fast.DataError, match=r"00001\.png: zero bytes"):
        _ = run.images[1]
    assert [finding.problem for finding in run.verify(repair=True).findings] == ["damaged"]
    with pytest.raises(d4m_fast.RunDirectoryError):
        _ = run.images
    assert run.verify().finished is False
    assert products(d4m_fast.distill(**keywords, **places).path) == products(finished.run)
    (run.path / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(d4m_fast.DamageError, match=r"manifest\.jsonl: damaged"):
        _ = run.manifest


def test_images_left_out_are_in_the_summary_and_end_nothing(
    keywords: dict[str, Any], places: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    for path in photos.rglob("*.*"):
        copy = tmp_path / "photos" / path.relative_to(photos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "photos" / "apple" / "0.png").write_bytes(b"no image")
    keywords["data"] = tmp_path / "photos"
    with pytest.raises(d4m_fast.DataError, match="max-bad-fraction"):
        d4m_fast.distill(**keywords, **places)
    assert d4m_fast.distill(**keywords, **places, max_bad_fraction=0.5).summary["quarantined"] == 1


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"icp": 2}, d4m_fast.UsageError, "icp: no such option. Did you mean 'ipc'?"),
        ({"ipc": "2"}, d4m_fast.UsageError, "ipc must be a whole number, not '2'"),
        ({"ipc": 2.0}, d4m_fast.UsageError, "ipc must be a whole number, not 2.0"),
        ({"ipc": True}, d4m_fast.UsageError, "ipc must be a whole number, not True"),
        ({"ipc": None}, d4m_fast.UsageError, "ipc must be a whole number, not None"),
        ({"ipc": 0}, d4m_fast.UsageError, "--ipc must be at least 1, not 0"),
        ({"compile": 1}, d4m_fast.UsageError, "compile must be True or False, not 1"),
        ({"strength": "0.7"}, d4m_fast.UsageError, "strength must be a number, not '0.7'"),
        ({"strength": float("nan")}, d4m_fast.UsageError, "--strength must be"),
        ({"classes": ["apple"]}, d4m_fast.UsageError, "classes must be a string or a path, not ['apple']"),
        ({"preset": "unpic"}, d4m_fast.UsageError, "not 'unpic'. Did you mean 'unipc'?"),
        ({"batch_size": "most"}, d4m_fast.UsageError, "batch_size must be a whole number or one of 'auto', not 'most'"),
        ({"config": {"ipc": 2}}, d4m_fast.UsageError, "config must be a DistillConfig, not a dict"),
        ({"data": "nowhere"}, d4m_fast.DataError, "nowhere: no such directory"),
        ({"model": "nowhere"}, d4m_fast.ModelError, "nowhere"),
        ({"ipc": 7}, d4m_fast.DataError, "6 images, fewer than --ipc 7"),
        ({"device": "cuda:9"}, d4m_fast.PreflightError, "cuda:9"),
        ({"out": "/proc/run"}, d4m_fast.PreflightError, "/proc/run"),
    ],
    ids=str,
)
def test_what_is_wrong_is_raised(
    keywords: dict[str, Any], places: dict[str, Any], changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        d4m_fast.distill(**{**keywords, **places, **changes})
    assert type(caught.value) is kind
    assert isinstance(caught.value, d4m_fast.D4MError)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not places["out"].exists()


def test_a_run_of_another_config_or_in_use_is_refused(keywords: dict[str, Any], places: dict[str, Any]) -> None:
    d4m_fast.distill(**keywords, **places)
    with pytest.raises(d4m_fast.RunDirectoryError, match="seed: 0 there, 1 now"):
        d4m_fast.distill(**keywords, **places, seed=1)
    brief = d4m_fast.LaunchConfig(lease_seconds=0.1)  # others' locks are waited for ten times as long
    with locked(places["out"]), pytest.raises(d4m_fast.RunDirectoryError, match="in use"):
        d4m_fast.distill(**keywords, **places, launch=brief)
    with pytest.raises(d4m_fast.DataError, match="no such run directory"):
        d4m_fast.open_run(places["out"] / "none")
    with pytest.raises(d4m_fast.RunDirectoryError, match="not a run of ours"):
        d4m_fast.open_run(places["artifacts"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "x.png"), "x.png: No space left on device; free some"),
        (MemoryError(), "out of memory"),
        (RuntimeError("can't start new thread"), "no more threads"),
    ],
    ids=str,
)
def test_errors_of_the_system_are_ours(
    keywords: dict[str, Any],
    places: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    words: str,
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr("d4m_fast.pipeline.distill", fail)
    with pytest.raises(d4m_fast.PreflightError, match=words) as caught:
        d4m_fast.distill(**keywords, **places)
    assert caught.value.__cause__ is error


def test_a_defect_passes_as_it_is(
    keywords: dict[str, Any], places: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError("a defect")

    monkeypatch.setattr("d4m_fast.pipeline.distill", fail)
    with pytest.raises(RuntimeError, match="a defect") as caught:
        d4m_fast.distill(**keywords, **places)
    assert not isinstance(caught.value, d4m_fast.D4MError)


def state() -> Iterator[object]:
    """Settings of the process that a library has no business with."""
    yield from (torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype())
    yield from (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )
    yield from (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    yield from (dict(os.environ), os.getcwd(), os.umask(os.umask(0o022)))
    yield [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    yield from (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.stdout, sys.stderr, list(sys.path))
    yield from (logging.root.level, list(logging.root.handlers), logging.root.manager.disable)
    yield from (Image.MAX_IMAGE_PIXELS, sorted(thread.name for thread in threading.enumerate()))


@pytest.mark.parametrize("changes", [{}, {"ipc": 7}], ids=["done", "refused"])
def test_the_process_is_as_it_was(keywords: dict[str, Any], places: dict[str, Any], changes: dict[str, Any]) -> None:
    d4m_fast.distill(**keywords, out=places["out"].with_name("first"), artifacts=places["artifacts"])  # imports
    before = list(state())
    keywords |= {"threads": 3, **changes}
    if changes:
        with pytest.raises(d4m_fast.D4MError):
            d4m_fast.distill(**keywords, **places)
    else:
        d4m_fast.distill(**keywords, **places)
    assert list(state()) == before


def test_calls_from_several_threads_do_not_disturb_each_other(
    finished: Finished, keywords: dict[str, Any], tmp_path: Path
) -> None:
    threads_after = dict[str, int]()

    def work(name: str, threads: int) -> None:
        torch.set_num_threads(1)
        own_keywords = {**keywords, "threads": threads, "artifacts": tmp_path / f"art-{name}"}
        d4m_fast.distill(**own_keywords, out=tmp_path / name)
        threads_after[name] = torch.get_num_threads()

    workers = [threading.Thread(target=work, args=(name, count)) for name, count in (("one", 1), ("two", 2))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert threads_after == {"one": 1, "two": 1}
    assert torch.get_num_threads() == 1
    assert products(tmp_path / "one") == products(finished.run)
    assert d4m_fast.open_run(tmp_path / "two").summary["images"] == 6


SCRIPT = """
import sys, d4m_fast
data, model, folder = sys.argv[1:]
options = {"data": data, "model": model, "ipc": 1, "steps": 4, "threads": 1, "artifacts": f"{folder}/art"}
runs = [d4m_fast.distill(**options, out=f"{folder}/{seed}", seed=seed) for seed in (0, 1)]
assert len({run.images[0].tobytes() for run in runs}) == 2
for image, label in d4m_fast.load(runs[0]):
    assert image.shape == (3, 16, 16)
"""


def test_it_prints_nothing(tiny_model: Path, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(photos), str(tiny_model), str(tmp_path)]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_what_the_command_says_is_in_the_log(
    keywords: dict[str, Any], places: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "d4m_fast"):
        d4m_fast.distill(**keywords, **places)
    subjects = [line.partition(":")[0] for line in caplog.messages]
    assert subjects == ["engine", "preset", "data", "class 0", "class 1", "class 2"]


def test_the_signature_has_every_option_with_its_default() -> None:
    parameters = inspect.signature(d4m_fast.distill).parameters
    config = d4m_fast.DistillConfig()
    assert list(parameters)[:5] == ["config", "out", "artifacts", "launch", "progress"]
    assert {name: parameters[name].default for name in list(parameters)[5:]} == vars(config)
    assert d4m_fast.distill.__doc__ is not None
    assert "    ipc: Images per class." in d4m_fast.distill.__doc__
    assert replace(config, seed=1) != config


def check_types(run: d4m_fast.Run) -> None:
    """For mypy, which fails where one of these is no error; it is not run."""
    d4m_fast.distill(icp=2)  # type: ignore[call-arg]
    d4m_fast.distill(ipc="2")  # type: ignore[arg-type]
    d4m_fast.distill(preset="unpic")  # type: ignore[arg-type]
    d4m_fast.evaluate(run, protocol="rdde")  # type: ignore[arg-type]
    d4m_fast.evaluate(run).rows[0]["men"]  # type: ignore[typeddict-item]
    d4m_fast.distill(1)  # type: ignore[arg-type]
    d4m_fast.nothing()  # type: ignore[attr-defined]
