"""Conversions of a run, what they must hold, and runs of photographs that are written for a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from driving import Ran, json_lines, run_cli, tree, write_photos
from PIL import Image

FORMS = ("imagefolder", "webdataset", "parquet")
SHARD_IMAGES = 4  # of six: two files
COLUMNS = ("class_id", "prompt", "index", "seed", "cluster_size", "inertia_share", "nearest", "sha256")


@dataclass(frozen=True)
class Expected:
    """An image by the run's own manifest: its row, and its pixels."""

    row: dict[str, Any]
    pixels: np.ndarray
    data: bytes

    @property
    def folder(self) -> str:
        return Path(self.row["file"]).parent.name


def expected(run: Path) -> dict[str, Expected]:
    """The images of a run by their SHA-256."""
    images = {}
    for row in json_lines(run / "manifest.jsonl"):
        file = run / row["file"]
        with Image.open(file) as image:
            images[row["sha256"]] = Expected(row, np.asarray(image), file.read_bytes())
    return images


def convert(run: Path, form: str, out: Path, *args: object) -> Ran:
    return run_cli("convert", run, "--to", form, "--out", out, *args, "--quiet")


def converted(run: Path, form: str, out: Path) -> Path:
    """A conversion to two tars or parquet files, which is whole."""
    flags = () if form == "imagefolder" else ("--shard-images", SHARD_IMAGES)
    ran = convert(run, form, out, *flags)
    assert (ran.code, ran.err) == (0, "")
    return out


def made_of(root: Path, folders: Sequence[str], model: Path, *args: object) -> Path:
    """A run of two photographs of each of these class folders, one image each, with prompts that any name has."""
    photos = write_photos(root / "photos", folders, 2)
    prompts = root / "prompts.json"
    prompts.write_text(json.dumps({folder: f"thing {place}" for place, folder in enumerate(folders)}))
    options = ("--data", photos, "--prompts", prompts, "--model", model, "--ipc", 1, "--steps", 4, "--threads", 1)
    ran = run_cli("distill", *options, "--out", root / "run", "--artifacts", root / "art", "--quiet", *args)
    assert ran.code == 0, ran.err
    return root / "run"


def copied(run: Path, target: Path) -> Path:
    return Path(shutil.copytree(run, target, ignore=shutil.ignore_patterns("evaluation", "outputs")))


def state_of(out: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file."""
    return {name: (data, (out / name).stat().st_mtime_ns) for name, data in tree(out).items()}
