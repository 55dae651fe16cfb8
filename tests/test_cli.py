"""`d4m-fast distill` from end to end: what it writes, and that it writes the same whatever happens on the way."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import (
    CLASSES,
    HANGS,
    PER_CLASS,
    Finished,
    Ran,
    json_lines,
    leftovers,
    products,
    run_cli,
    start,
    tree,
    wait_for,
    worker_threads,
)
from PIL import Image
from safetensors.numpy import load_file

from d4m_fast import pipeline
from d4m_fast.flow.stream import Stream
from d4m_fast.runs.run import RunDirectory
from d4m_fast.storage.state import SUMMARY, require_state

Distill = Callable[..., Ran]


def test_images_are_an_image_folder(finished: Finished) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    folder = datasets.ImageFolder(str(finished.run / "images"))
    assert folder.classes == list(CLASSES)
    assert [label for _, label in folder.samples] == [0, 0, 1, 1, 2, 2]
    assert all(image.size == (16, 16) and image.mode == "RGB" for image, _ in folder)


def test_images_are_not_all_alike(finished: Finished) -> None:
    images = tree(finished.run / "images")
    assert len(images) == len(set(images.values())) == 6


def test_manifest_says_how_each_image_was_made(finished: Finished, photos: Path) -> None:
    rows = json_lines(finished.run / "manifest.jsonl")
    assert [(r["class_id"], r["index"]) for r in rows] == [(c, i) for c in range(3) for i in range(2)]
    assert len({r["seed"] for r in rows}) == 6
    for row in rows:
        assert row["prompt"] == CLASSES[row["class_id"]]
        assert (photos / row["nearest"]).parent == photos / row["prompt"]
        assert (photos / row["nearest"]).is_file()
        assert (finished.run / row["file"]).stat().st_size == row["bytes"]
    for class_id in range(3):
        mine = [r for r in rows if r["class_id"] == class_id]
        assert sum(r["cluster_size"] for r in mine) == PER_CLASS
        assert sum(r["inertia_share"] for r in mine) == pytest.approx(1)


def test_prototypes_are_scaled_float32_latents(finished: Finished) -> None:
    files = sorted((finished.run / "prototypes").iterdir())
    assert [f.name for f in files] == [f"{c:05d}.safetensors" for c in range(3)]
    for file in files:
        centroids = load_file(file)["centroids"]
        assert centroids.shape == (2, 4, 8, 8)
        assert centroids.dtype == np.float32
        assert np.isfinite(centroids).all()


def test_the_run_documents_itself(finished: Finished) -> None:
    names = {f.name for f in finished.run.iterdir()} - {".lock"}
    derived = {"manifest.jsonl", "quarantine.jsonl", "summary.json", "preview.png"}
    assert names == {"images", "prototypes", "groups", "config.json", "plan.json", *derived}
    config = json.loads((finished.run / "config.json").read_text())
    assert config["options"]["ipc"] == 2
    assert config["options"]["device"] in ("cpu", "cuda")
    assert {"torch", "diffusers", "d4m-fast"} <= config["versions"].keys()
    plan = json.loads((finished.run / "plan.json").read_text())
    assert plan["groups"] == [{"id": 0, "classes": [0, 1, 2], "batch_size": 6, "decode_batch": 6}]
    assert plan["why"] == {name: {"by": "default"} for name in ("encode_batch", "batch_size", "decode_batch")}
    with Image.open(finished.run / "preview.png") as sheet:
        assert sheet.height == 3 * 64
    assert (finished.run / "quarantine.jsonl").read_text() == ""
    summary = require_state(finished.run / "summary.json", SUMMARY)
    summary.pop("config")  # of the run, as the records have it
    assert {"run": str(finished.run), "output": None, **summary} == finished.ran.json


def test_json_is_all_there_is_on_stdout(finished: Finished) -> None:
    summary = finished.ran.json
    assert (summary["images"], summary["classes"], summary["quarantined"]) == (6, 3, 0)
    assert {"open", "encode", "cluster", "denoise", "decode", "write"} <= summary["seconds"].keys()
    assert len(finished.ran.out.splitlines()) == 1


def test_quiet_is_silent_and_progress_is_on_stderr(distill: Distill, finished: Finished) -> None:
    assert finished.ran.err == ""
    ran = distill()
    assert ran.err.splitlines()[-1] == "distill 6/6"
    assert "encode" in ran.err
    assert "encode 1/1" not in ran.out
    assert "6 images of 3 classes" in ran.out


def test_the_libraries_are_silent_too(tmp_path: Path, options: tuple[object, ...]) -> None:
    process = start("distill", *options, "--out", tmp_path / "r", "--artifacts", tmp_path / "a", "--quiet", "--json")
    out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["images"] == 6


def test_artifacts_default_to_the_users_cache_and_runs_to_the_working_directory(
    tmp_path: Path, options: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_cli("distill", *options, "--json")
    assert re.fullmatch("runs/[0-9a-f]{12}", ran.json["run"])
    assert (tmp_path / ran.json["run"] / "summary.json").is_file()
    assert list((tmp_path / "cache" / "d4m-fast" / "latents").glob("*/index.json"))


def test_same_bytes_with_other_directories(distill: Distill, tmp_path: Path, finished: Finished) -> None:
    assert distill("--artifacts", tmp_path / "elsewhere").code == 0
    assert products(tmp_path / "run") == products(finished.run)
    assert tree(tmp_path / "elsewhere", "**/*.npy") == tree(finished.artifacts, "**/*.npy")


def test_config_file_repeats_a_run_and_flags_win(tmp_path: Path, finished: Finished) -> None:
    config = ("--config", finished.run / "config.json", "--artifacts", finished.artifacts)
    assert run_cli("distill", *config, "--out", tmp_path / "same").code == 0
    assert products(tmp_path / "same") == products(finished.run)
    assert (tmp_path / "same" / "config.json").read_bytes() == (finished.run / "config.json").read_bytes()
    assert run_cli("distill", *config, "--out", tmp_path / "one", "--ipc", 1).code == 0
    assert len(tree(tmp_path / "one" / "images")) == 3


def test_toml_config(tmp_path: Path, finished: Finished, options: tuple[object, ...]) -> None:
    (tmp_path / "d4m.toml").write_text('ipc = 1\nnegative-prompt = "blurry"\n')
    flags = [value for i, value in enumerate(options) if options[i - i % 2] != "--ipc"]
    run = ("--out", tmp_path / "run", "--artifacts", finished.artifacts)
    assert run_cli("distill", *flags, "--config", tmp_path / "d4m.toml", *run).code == 0
    assert len(tree(tmp_path / "run" / "images")) == 3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["negative_prompt"] == "blurry"


def stamps(root: Path) -> dict[Path, int]:
    return {f: f.stat().st_mtime_ns for f in root.rglob("*.*") if f.is_file() and f.name != ".lock"}


def test_the_same_command_again_does_nothing(distill: Distill, tmp_path: Path) -> None:
    first = distill("--json")
    before = stamps(tmp_path)
    again = distill("--json")
    assert (again.code, again.out) == (0, first.out)
    assert stamps(tmp_path) == before


@pytest.mark.parametrize("flags", [("--ipc", 3), ("--guidance", 2), ("--seed", 1), ("--guidance", 1)])
def test_latents_are_used_again(
    distill: Distill, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, int]
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(pipeline, "encode", never)
    ran = distill("--artifacts", finished.artifacts, "--json", *flags)
    assert ran.code == 0
    assert "encode" not in ran.json["seconds"]
    assert tree(tmp_path / "run" / "images") != tree(finished.run / "images")


@pytest.mark.parametrize("flags", [("--latent", "mean"), ("--resolution", 32)])
def test_other_latents_are_not_mistaken_for_these(
    distill: Distill, finished: Finished, tmp_path: Path, flags: tuple[str, Any]
) -> None:
    shutil.copytree(finished.artifacts, tmp_path / "art")
    assert "encode" in distill("--json", *flags).json["seconds"]
    assert len(list((tmp_path / "art" / "latents").iterdir())) == 2


def interrupt_after(count: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes when the run asks for one more image than that."""
    write = RunDirectory.write

    def interrupted(*args: Any) -> Stream[dict[str, Any]]:
        def items() -> Iterator[dict[str, Any]]:
            yield from islice(write(*args), count)
            raise KeyboardInterrupt

        return Stream(count + 1, items())

    patch.setattr(RunDirectory, "write", interrupted)


@pytest.mark.parametrize("after", [0, 3, 5])
def test_same_bytes_after_an_interruption(
    distill: Distill, tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(after, patch)
        ran = distill()
    assert (ran.code, ran.err.splitlines()[-1]) == (130, "interrupted; run the same command to go on")
    assert len(tree(tmp_path / "run", "images/**/*.png")) >= after
    assert worker_threads() == []
    assert not (tmp_path / "run" / "summary.json").exists()
    assert distill().code == 0
    assert products(tmp_path / "run") == products(finished.run)


@pytest.mark.parametrize(
    ("number", "code", "sign"), [(signal.SIGINT, 130, "images/*/*.png"), (signal.SIGTERM, 143, "config.json")]
)
def test_same_bytes_after_a_signal(
    distill: Distill, tmp_path: Path, finished: Finished, number: int, code: int, sign: str
) -> None:
    run = tmp_path / "run"
    flags = ("--out", run, "--artifacts", tmp_path / "art", "--batch-size", 1, "--ipc", 4, "--steps", 16)
    process = start("distill", *finished.options, *flags)
    wait_for(lambda: any(run.glob(sign)), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == code, err
    assert (out, "Traceback" in err) == ("", False)
    assert leftovers(tmp_path) == []
    assert len(tree(run, "images/**/*.png")) < 12
    assert distill(*flags).code == 0
    assert distill(*flags, "--out", tmp_path / "whole").code == 0
    assert products(run) == products(tmp_path / "whole")


def pixels(run: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(f).convert("RGB"), int) for f in sorted(run.glob("images/*/*.png"))])


def test_batches_cross_class_borders(distill: Distill, tmp_path: Path, finished: Finished) -> None:
    for batch in (1, 3):
        flags = ("--artifacts", finished.artifacts, "--out", tmp_path / str(batch), "--batch-size", batch)
        assert distill(*flags).code == 0
    (group,) = json.loads((tmp_path / "3" / "plan.json").read_text())["groups"]
    assert (group["classes"], group["batch_size"]) == ([0, 1, 2], 3)
    assert len(json.loads((tmp_path / "1" / "plan.json").read_text())["groups"]) == 3
    assert np.abs(pixels(tmp_path / "1") - pixels(tmp_path / "3")).max() <= 1


def test_chosen_classes_are_those_of_the_whole_set(distill: Distill, tmp_path: Path, finished: Finished) -> None:
    assert distill("--classes", "1-2", "--batch-size", 2).code == 0
    assert [r["class_id"] for r in json_lines(tmp_path / "run" / "manifest.jsonl")] == [1, 1, 2, 2]
    seeds = {(r["class_id"], r["index"]): r["seed"] for r in json_lines(finished.run / "manifest.jsonl")}
    for row in json_lines(tmp_path / "run" / "manifest.jsonl"):
        assert row["seed"] == seeds[row["class_id"], row["index"]]


def test_files_of_another_size_and_medoids(distill: Distill, tmp_path: Path, finished: Finished) -> None:
    assert distill("--artifacts", finished.artifacts, "--image-size", 24, "--prototype", "medoid").code == 0
    assert pixels(tmp_path / "run").shape == (6, 24, 24, 3)
    (latents,) = finished.artifacts.glob("latents/*/00000.npy")
    rows = np.load(latents).astype(np.float32)
    for prototype in load_file(tmp_path / "run" / "prototypes" / "00000.safetensors")["centroids"]:
        assert (rows == prototype).all(axis=(1, 2, 3)).any()


def test_no_command_shows_the_commands() -> None:
    ran = run_cli()
    assert ran.code == 2
    assert "distill" in ran.out + ran.err
