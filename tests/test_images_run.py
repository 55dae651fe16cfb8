"""Runs on images of several containers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from driving import CLASSES, Ran
from image_variants import picture, rgb, saved
from PIL import Image

from d4m_fast import job as prepare
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.decode import RULES

Distill = Callable[..., Ran]
UPSIDE_DOWN = picture().transpose(Image.Transpose.ROTATE_180)


@pytest.fixture
def data(tmp_path: Path, photos: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "data"))


def test_animations_are_said_once(distill: Distill, data: Path) -> None:
    animated = {"save_all": True, "append_images": [UPSIDE_DOWN]}
    (data / CLASSES[0] / "a.gif").write_bytes(saved(picture(), "GIF", **animated))
    (data / CLASSES[1] / "a.webp").write_bytes(saved(picture(), "WEBP", **animated))
    (data / CLASSES[1] / "still.gif").write_bytes(saved(picture(), "GIF"))
    ran = distill("--data", data, "--ipc", 1)
    assert ran.code == 0, ran.err
    assert ran.out.count("only their first frame was read") == 1
    assert "2 animated or paged images: only their first frame was read" in ran.out
    again = distill("--data", data, "--ipc", 2, "--out", data.parent / "again", "--json", "--quiet")
    assert again.json["first_frames"] == 2  # of kept latents, too


def test_without_animations_nothing_is_said(distill: Distill) -> None:
    assert "frame" not in distill("--ipc", 1).out


def test_new_containers_are_listed(tmp_path: Path) -> None:
    names = ("a.GIF", "b.avif", "c.jp2", "d.ico", "e.mpo", "f.jfif")
    for name, form in zip(names, ("GIF", "AVIF", "JPEG2000", "ICO", "MPO", "JPEG"), strict=True):
        (tmp_path / "class").mkdir(exist_ok=True)
        (tmp_path / "class" / name).write_bytes(saved(picture(), form))
    source = open_source(str(tmp_path))
    assert [Path(item.origin).name for item in source.items] == sorted(names)
    assert np.asarray(source.read(source.items[0])).shape == rgb(picture()).shape


def test_other_rules_give_other_latents_and_are_another_run(
    distill: Distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distill("--ipc", 1).code == 0
    monkeypatch.setattr(prepare, "RULES", RULES + 1)
    assert distill("--ipc", 1).code == 4
    assert distill("--ipc", 1, "--out", tmp_path / "other").code == 0
    assert len(list((tmp_path / "art" / "latents").iterdir())) == 2
