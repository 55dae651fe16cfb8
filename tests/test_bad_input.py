"""Damaged and unsuitable images, options, directories and devices: one clear line and the documented exit code."""

from __future__ import annotations

import fcntl
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import Finished, Ran, json_lines, products, refused, run_cli, tree, write_photos
from PIL import Image

Distill = Callable[..., Ran]


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    """A copy of the photographs that may be damaged."""
    return Path(shutil.copytree(photos, tmp_path / "data"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def text(path: Path) -> None:
    path.write_text("not an image at all")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def bomb(path: Path) -> None:
    """A PNG that says in its header that it is 20,000 pixels wide and high."""
    Image.new("L", (8, 8)).save(path, "png")
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])


def latents(artifacts: Path) -> dict[str, np.ndarray]:
    return {f.name: np.load(f) for f in artifacts.glob("latents/*/*.npy")}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(truncate, "truncated"), (text, "text in place of an image"), (empty, "zero bytes"), (bomb, "too many pixels")],
)
def test_damaged_images_are_quarantined(
    distill: Distill, data: Path, tmp_path: Path, finished: Finished, damage: Callable[[Path], None], reason: str
) -> None:
    damage(data / "bread" / "3.jpg")
    ran = distill("--data", data, "--max-bad-fraction", 0.06)
    assert ran.code == 3, ran.err
    assert "quarantine.jsonl" in ran.out
    (row,) = json_lines(tmp_path / "run" / "quarantine.jsonl")
    assert (row["class_id"], row["origin"]) == (1, "bread/3.jpg")
    assert reason in row["reason"]

    clean, mine = latents(finished.artifacts), latents(tmp_path / "art")
    rank = row["index"]
    assert mine["00001.npy"][rank].any() == 0
    mine["00001.npy"][rank] = clean["00001.npy"][rank]
    assert all(np.array_equal(mine[name], clean[name]) for name in clean)
    for folder in ("apple", "cloud"):
        assert tree(tmp_path / "run" / "images" / folder) == tree(finished.run / "images" / folder)
    assert all(r["nearest"] != "bread/3.jpg" for r in json_lines(tmp_path / "run" / "manifest.jsonl"))
    assert distill("--data", data, "--max-bad-fraction", 0.06).code == 3


def test_too_many_damaged_images_then_a_larger_budget(distill: Distill, data: Path, tmp_path: Path) -> None:
    text(data / "bread" / "3.jpg")
    refused(distill("--data", data), 1, "1 of 18 images cannot be used", "--max-bad-fraction", "bread/3.jpg")
    assert not tree(tmp_path / "run", "images/**/*.png")
    assert distill("--data", data, "--max-bad-fraction", 0.5).code == 3


def test_a_class_with_too_few_good_images_is_refused_before_any_is_made(
    distill: Distill, data: Path, tmp_path: Path
) -> None:
    empty(data / "cloud" / "0.png")
    ran = distill("--data", data, "--ipc", 6, "--batch-size", 1, "--max-bad-fraction", 0.5)
    refused(ran, 1, "class cloud: 5 usable images, fewer than --ipc 6")
    assert not tree(tmp_path / "run", "images/**/*.png")


def test_unusual_images_are_welcome(distill: Distill, data: Path) -> None:
    with Image.open(data / "apple" / "1.jpg") as image:
        image.convert("CMYK").save(data / "apple" / "1.jpg")
        image.convert("RGBA").save(data / "apple" / "2.png")
        image.convert("P").save(data / "bread" / "0.png", transparency=b"\0\x80")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160).save(data / "cloud" / "0.png")
    ran = distill("--data", data)
    assert (ran.code, "arning" in ran.err) == (0, False)


def test_unicode_class_names_and_equal_prompts(distill: Distill, tmp_path: Path) -> None:
    names = ("Ünï cöde", "猫")
    data = write_photos(tmp_path / "data", names, 3)
    (tmp_path / "prompts.txt").write_text("a cat\na cat\n")
    assert distill("--data", data, "--prompts", tmp_path / "prompts.txt").code == 0
    assert {f.name for f in (tmp_path / "run" / "images").iterdir()} == set(names)
    rows = json_lines(tmp_path / "run" / "manifest.jsonl")
    assert [r["prompt"] for r in rows] == ["a cat"] * 4
    assert len(set(tree(tmp_path / "run" / "images").values())) == 4


def test_unusable_data(distill: Distill, data: Path, tmp_path: Path) -> None:
    refused(distill("--data", tmp_path / "nope"), 1, "nope: no such directory")
    refused(distill("--ipc", 7), 1, "class apple: 6 images, fewer than --ipc 7")
    refused(distill("--prompts", tmp_path / "nope.txt"), 1, "nope.txt")
    (data / "dust").mkdir()
    refused(distill("--data", data), 1, "dust")
    refused(run_cli("evaluate", tmp_path / "nope"), 1, "nope: no such directory")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--ipc", 0), "--ipc"),
        (("--ipc", "ten"), "--ipc"),
        (("--prototype", "median"), "median"),
        (("--engine", "jax"), "jax"),
        (("--nonsense",), "--nonsense"),
        (("--strength", 0), "--strength"),
        (("--strength", "nan"), "--strength"),
        (("--guidance", "inf"), "--guidance"),
        (("--steps", 1), "no step at all"),
        (("--max-bad-fraction", 1), "--max-bad-fraction"),
        (("--resolution", 15), "multiple of 4"),
        (("--precision", "fp16", "--device", "cpu"), "--precision fp32"),
        (("--device", "abacus"), "abacus"),
        (("--classes", "zebra"), "zebra"),
        (("--prompts", "official"), "ImageNet"),
    ],
)
def test_unusable_options(distill: Distill, tmp_path: Path, flags: tuple[object, ...], said: str) -> None:
    refused(distill(*flags), 2, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.toml", "ipc ="),
        ("c.toml", "colour = 3"),
        ("c.toml", "resolution = 0"),
        ("c.json", "{}"),
        ("c.json", "[1]"),
        ("c.json", '{"options": [1]}'),
        ("c.toml", None),
    ],
)
def test_unusable_config_file(distill: Distill, tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    refused(distill("--config", tmp_path / name), 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(distill: Distill) -> None:
    refused(distill("--device", "cuda"), 6, "--device cuda", "--device cpu")
    refused(distill("--kmeans-on", "gpu", "--device", "cpu"), 6, "--kmeans-on gpu", "leave it at cpu")
    refused(distill("--kmeans-on", "gpu", "--kmeans", "minibatch"), 2, "--kmeans minibatch")


def test_no_such_gpu(distill: Distill) -> None:
    refused(distill("--device", "cuda:99"), 6, "--device cuda:99")


# Run directories


def test_run_of_another_config(distill: Distill, tmp_path: Path, finished: Finished) -> None:
    shutil.copytree(finished.run, tmp_path / "run")
    before = tree(tmp_path / "run")
    refused(distill("--guidance", 2, "--seed", 5), 4, "guidance: 8.0 there, 2.0 now", "seed: 0 there, 5 now", "--out")
    assert tree(tmp_path / "run") == before


def test_foreign_directory_is_left_alone(distill: Distill, tmp_path: Path) -> None:
    (tmp_path / "run" / "below").mkdir(parents=True)
    for name in ("thesis.tex", ".tmp-mine", "below/.tmp-mine"):
        (tmp_path / "run" / name).write_text("precious")
    refused(distill(), 4, "not a run of ours (")
    assert set(tree(tmp_path / "run").values()) <= {b"precious", b""}
    assert len(tree(tmp_path / "run", "**/.tmp-mine")) == 2


def test_run_in_use(distill: Distill, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held'); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path / "run" / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    refused(distill("--lease-seconds", 0.1), 4, "in use")
    other.communicate("\n")
    assert distill().code == 0


def test_artifacts_in_use(distill: Distill, tmp_path: Path, finished: Finished) -> None:
    shutil.copytree(finished.artifacts, tmp_path / "art")
    (lock,) = tmp_path.glob("art/latents/*/.lock")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(distill("--lease-seconds", 0.1), 4, "in use", str(lock.parent))


@pytest.mark.parametrize("name", ["*.npy", "index.json"])
def test_damaged_latents(distill: Distill, tmp_path: Path, finished: Finished, name: str) -> None:
    shutil.copytree(finished.artifacts, tmp_path / "art")
    file = sorted(tmp_path.glob(f"art/latents/*/{name}"))[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x80
    file.write_bytes(content)
    refused(distill(), 5, str(file), "run again")


@pytest.mark.parametrize("name", ["config.json", "plan.json", "groups/00000.json", "summary.json"])
def test_damaged_run_files(distill: Distill, tmp_path: Path, finished: Finished, name: str) -> None:
    shutil.copytree(finished.run, tmp_path / "run")
    (tmp_path / "run" / name).write_text('{"half": ')
    refused(distill(), 5, name)


def test_a_lost_image_is_made_again(distill: Distill, tmp_path: Path, finished: Finished) -> None:
    shutil.copytree(finished.run, tmp_path / "run")
    (tmp_path / "run" / "images" / "bread" / "00001.png").unlink()
    assert distill("--artifacts", finished.artifacts).code == 0
    assert products(tmp_path / "run") == products(finished.run)


# Model directories


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_unusable_model_directory(distill: Distill, model: Path, tmp_path: Path) -> None:
    refused(distill("--model", tmp_path / "nope"), 1, "nope: no such model directory")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    refused(distill("--model", model), 1, "unet", "pickled")
    weights.with_suffix(".bin").unlink()
    refused(distill("--model", model), 1, "parts missing (unet/diffusion_pytorch_model.safetensors)")
    shutil.rmtree(model / "scheduler")
    refused(distill("--model", model), 1, "parts missing (scheduler/scheduler_config.json)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\xff"])
@pytest.mark.parametrize("file", ["vae/config.json", "unet/config.json", "tokenizer/tokenizer_config.json"])
def test_broken_model_config(distill: Distill, model: Path, tmp_path: Path, file: str, content: str) -> None:
    (model / file).write_text(content, encoding="latin-1")
    refused(distill("--model", model), 1, file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["vae/diffusion_pytorch_model", "unet/diffusion_pytorch_model", "text_encoder/model"])
@pytest.mark.parametrize("how", ["cut", "header", "weight missing"])
def test_damaged_weights(distill: Distill, model: Path, part: str, how: str) -> None:
    file = model / f"{part}.safetensors"
    content = file.read_bytes()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "header":
        file.write_bytes(content[:30] + b"\xff\xfe" + content[32:])
    else:
        drop_weight(file)
    refused(distill("--model", model), 1, str(model), "cannot be loaded")


def drop_weight(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    del weights[min(name for name in weights if "norm" in name)]
    save_file(weights, file, metadata={"format": "pt"})


def test_artifacts_below_a_file(distill: Distill, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(distill("--artifacts", tmp_path / "file" / "art"), 6, "choose another directory")
    assert distill().code == 0
