"""`distill` of the same photographs from every kind of container: the same bytes, and the same latents in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from containers import CONTAINERS, files_below
from driving import CLASSES, products, run_cli, tree, write_photos

KINDS = ("shards_with_cls", "tar_of_tars", "parquet_in_order", "parquet_shuffled")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path, dict[str, bytes]]:
    """Class folders, what of them was distilled, and where its latents are."""
    root = tmp_path_factory.mktemp("reference")
    folders = write_photos(root / "photos", CLASSES, 6)
    for path in list(folders.rglob("*.*")):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    return folders, root / "art", distill(folders, tiny_model, root / "run", root / "art")


def distill(data: Path, model: Path, run: Path, artifacts: Path) -> dict[str, bytes]:
    options = ("--model", model, "--ipc", 2, "--steps", 4, "--threads", 1, "--out", run, "--artifacts", artifacts)
    ran = run_cli("distill", "--data", data, *options)
    assert ran.code == 0, ran.err
    return products(run)


@pytest.mark.parametrize("kind", KINDS)
def test_the_container_changes_no_byte(
    tmp_path: Path, tiny_model: Path, reference: tuple[Path, Path, dict[str, bytes]], kind: str
) -> None:
    folders, artifacts, expected = reference
    data = CONTAINERS[kind](tmp_path, files_below(folders))
    assert distill(data, tiny_model, tmp_path / "run", tmp_path / "art") == expected
    assert tree(tmp_path / "art" / "latents") == tree(artifacts / "latents")


@pytest.mark.parametrize("kind", KINDS)
def test_latents_of_one_container_serve_the_others(
    tmp_path: Path, tiny_model: Path, reference: tuple[Path, Path, dict[str, bytes]], kind: str
) -> None:
    folders, artifacts, expected = reference
    data = CONTAINERS[kind](tmp_path, files_below(folders))
    before = {path: path.stat().st_mtime_ns for path in (artifacts / "latents").rglob("*.npy")}
    assert distill(data, tiny_model, tmp_path / "run", artifacts) == expected
    assert {path: path.stat().st_mtime_ns for path in (artifacts / "latents").rglob("*.npy")} == before


def test_the_kind_of_data_is_said_in_one_line(
    tmp_path: Path, tiny_model: Path, reference: tuple[Path, Path, dict[str, bytes]]
) -> None:
    data = CONTAINERS["shards_with_cls"](tmp_path, files_below(reference[0]))
    options = ("--model", tiny_model, "--ipc", 1, "--steps", 2, "--threads", 1, "--artifacts", tmp_path / "art")
    ran = run_cli("distill", "--data", data, *options, "--out", tmp_path / "run")
    assert "data: 3 WebDataset shards, classes by the .cls files; 18 images of 3 classes" in ran.err.splitlines()
