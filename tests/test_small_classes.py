"""`--small-classes`: classes with fewer images than `--ipc`, in images, records, checks and re-runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driving import Ran, json_lines, products, refused, run_cli, write_photos

SIZES = {"apple": 6, "bread": 3, "cloud": 1, "dune": 4}
IPC = 4


@pytest.fixture(scope="module")
def long_tail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tail") / "photos"
    for seed, (name, count) in enumerate(SIZES.items()):
        write_photos(root, [name], count, seed)
    return root


@pytest.fixture
def distill(tmp_path: Path, tiny_model: Path, long_tail: Path) -> Callable[..., Ran]:
    def run(*args: object) -> Ran:
        options = ("--data", long_tail, "--model", tiny_model, "--ipc", IPC, "--steps", 4, "--threads", 1)
        return run_cli("distill", *options, "--out", tmp_path / "run", "--artifacts", tmp_path / "art", *args)

    return run


def counts_of(run: Path) -> dict[str, int]:
    return {folder.name: len(list(folder.iterdir())) for folder in sorted((run / "images").iterdir())}


def rows_of(run: Path, folder: str) -> list[dict[str, Any]]:
    return [row for row in json_lines(run / "manifest.jsonl") if f"/{folder}/" in row["file"]]


def test_small_classes_are_refused_unless_told(distill: Callable[..., Ran]) -> None:
    refused(distill(), 1, "class bread: 3 images, fewer than --ipc 4", "--small-classes fewer or repeat")
    refused(distill("--small-classes", "few"), 2, "fewer")


def test_fewer_makes_as_many_as_there_are(tmp_path: Path, distill: Callable[..., Ran]) -> None:
    ran = distill("--small-classes", "fewer", "--json")
    run = tmp_path / "run"
    assert ran.code == 0, ran.err
    assert counts_of(run) == {"apple": 4, "bread": 3, "cloud": 1, "dune": 4}
    assert ran.json["images"] == 12
    rows = rows_of(run, "bread")
    assert [(row["index"], row["class_images"], row["prototype"]) for row in rows] == [(0, 3, 0), (1, 3, 1), (2, 3, 2)]
    assert [row["nearest"] for row in rows] == ["bread/0.png", "bread/1.jpg", "bread/2.png"]
    assert all("class_images" not in row for row in rows_of(run, "apple") + rows_of(run, "dune"))
    assert run_cli("verify", run, "--deep").code == 0


def test_repeat_draws_more_noise(tmp_path: Path, distill: Callable[..., Ran]) -> None:
    ran = distill("--small-classes", "repeat")
    run = tmp_path / "run"
    assert ran.code == 0, ran.err
    assert set(counts_of(run).values()) == {IPC}
    rows = rows_of(run, "bread")
    assert [row["prototype"] for row in rows] == [0, 1, 2, 0]
    assert rows[0]["nearest"] == rows[3]["nearest"] and rows[0]["seed"] != rows[3]["seed"]
    assert len({row["sha256"] for row in rows_of(run, "cloud")}) == IPC
    assert run_cli("verify", run, "--deep").code == 0


@pytest.mark.parametrize("choice", ["fewer", "repeat"])
def test_a_re_run_after_damage_makes_the_same(tmp_path: Path, distill: Callable[..., Ran], choice: str) -> None:
    run = tmp_path / "run"
    assert distill("--small-classes", choice).code == 0
    expected = products(run)
    for folder in ("bread", "cloud"):
        (run / "images" / folder / "00000.png").write_bytes(b"x")
    assert run_cli("verify", run, "--repair").code == 5
    assert distill("--small-classes", choice).code == 0
    assert products(run) == expected


def test_an_image_less_in_the_record_is_noticed(tmp_path: Path, distill: Callable[..., Ran]) -> None:
    from d4m_fast.storage.state import GROUP, require_state, write_state

    run = tmp_path / "run"
    assert distill("--small-classes", "fewer").code == 0
    path = run / "groups" / "00000.json"
    record = require_state(path, GROUP)
    record["images"] = [row for row in record["images"] if row["file"] != "images/bread/00002.png"]
    write_state(path, GROUP, record)
    ran = run_cli("verify", run, "--json")
    assert ran.code == 5
    assert {"file": "groups/00000.json", "problem": "damaged"}.items() <= json.loads(ran.out)["findings"][0].items()


def test_a_damaged_image_makes_a_class_small(tmp_path: Path, tiny_model: Path) -> None:
    photos = write_photos(tmp_path / "photos", ["apple", "bread"], 4)
    (photos / "bread" / "1.jpg").write_bytes(b"no image")
    options = ("--data", photos, "--model", tiny_model, "--ipc", 4, "--steps", 4, "--threads", 1)
    flags = ("--out", tmp_path / "run", "--artifacts", tmp_path / "art", "--max-bad-fraction", 0.5)
    refused(run_cli("distill", *options, *flags), 1, "class bread: 3 usable images, fewer than --ipc 4")
    ran = run_cli("distill", *options, *flags[:1], tmp_path / "fewer", *flags[2:], "--small-classes", "fewer")
    assert ran.code == 3, ran.err
    rows = json_lines(tmp_path / "fewer" / "manifest.jsonl")
    assert Counter(row["class_id"] for row in rows) == {0: 4, 1: 3}
    assert [row["nearest"] for row in rows[4:]] == ["bread/0.png", "bread/2.png", "bread/3.jpg"]
