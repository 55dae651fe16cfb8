"""Pictures of a run's images beside the real ones: the very pixels, and nothing from outside of the run."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from driving import CLASSES, Finished, json_lines
from PIL import Image

from d4m_fast.errors import D4MError, DamageError, DataError
from d4m_fast.report.contact import PER_CLASS, contact_sheets, data_uri
from d4m_fast.storage.state import CONFIG, require_state, write_state


def pixels(uri: str) -> np.ndarray:
    kind, data = uri.split(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def copied(tmp_path: Path, finished: Finished) -> Path:
    """A run of one's own to damage."""
    return Path(shutil.copytree(finished.run, tmp_path / "run"))


def test_pairs_are_the_files_themselves(finished: Finished, photos: Path) -> None:
    sheets = contact_sheets(finished.run)
    assert [sheet.name for sheet in sheets] == list(CLASSES)
    rows = json_lines(finished.run / "manifest.jsonl")
    pairs = [pair for sheet in sheets for pair in sheet.pairs]
    assert len(pairs) == len(rows) == 2 * len(CLASSES)
    for pair, row in zip(pairs, rows, strict=True):
        assert (pair.index, pair.origin) == (row["index"], row["nearest"])
        for uri, file in ((pair.distilled, finished.run / row["file"]), (pair.real, photos / row["nearest"])):
            with Image.open(file) as image:
                assert np.array_equal(pixels(uri), np.asarray(image.convert("RGB")))


def test_classes_are_spread_and_few(copied: Path) -> None:
    rows = json_lines(copied / "manifest.jsonl")
    many = [{**rows[0], "class_id": i, "index": j, "prompt": f"p{i}"} for i, j in np.ndindex(101, 6)]
    (copied / "manifest.jsonl").write_text("\n".join(map(json.dumps, many)))
    sheets = contact_sheets(copied)
    assert [sheet.name for sheet in sheets] == ["p0", "p11", "p22", "p33", "p44", "p55", "p66", "p77", "p88", "p100"]
    assert {len(sheet.pairs) for sheet in sheets} == {PER_CLASS}


@pytest.mark.parametrize("file", ["../config.json", "/etc/hostname", "images/../../x.png", "config.json", 3])
def test_a_file_outside_of_the_images_is_refused(copied: Path, file: object) -> None:
    rows = json_lines(copied / "manifest.jsonl")
    (copied / "manifest.jsonl").write_text(json.dumps({**rows[0], "file": file}))
    with pytest.raises(DamageError, match="verify --repair"):
        contact_sheets(copied)


@pytest.mark.parametrize("text", ["{", '{"file": "images/a.png"}', "[]", "3"])
def test_a_damaged_manifest_is_refused(copied: Path, text: str) -> None:
    (copied / "manifest.jsonl").write_text(text)
    with pytest.raises(DamageError, match=r"manifest\.jsonl: damaged"):
        contact_sheets(copied)


def test_what_is_not_there_is_named(copied: Path, tmp_path: Path) -> None:
    config = require_state(copied / "config.json", CONFIG)
    gone = {**config["options"], "data": str(tmp_path / "gone")}
    write_state(copied / "config.json", CONFIG, {**config, "options": gone})
    with pytest.raises(DataError, match="gone: no such directory"):
        contact_sheets(copied)
    (copied / "manifest.jsonl").unlink()
    with pytest.raises(DataError, match="manifest"):
        contact_sheets(copied)
    for other in (tmp_path, tmp_path / "missing"):
        with pytest.raises(D4MError, match="no run of d4m-fast"):
            contact_sheets(other)


def test_large_images_are_made_small() -> None:
    ramp = np.linspace(0, 255, 640, dtype=np.uint8)
    image = Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :320], 0), -1).astype(np.uint8))
    small = pixels(data_uri(image))
    assert small.shape == (128, 64, 3)
    assert image.size == (320, 640)
    expected = np.asarray(image.resize((64, 128), Image.Resampling.BOX), np.float64)
    assert np.abs(small - expected).mean() < 4
