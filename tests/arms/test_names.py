"""What `--arms`, `--arm` and `--classes` take."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from fakes import make_source

from d4m_fast.arms.classes import part_of
from d4m_fast.arms.names import ARMS, parse_arms, parse_folders
from d4m_fast.errors import DataError, UsageError
from d4m_fast.sources.dataset import open_source


def test_a_list_of_arms() -> None:
    assert parse_arms("random, medoid,random") == ("random", "medoid")
    assert parse_arms(",".join(ARMS)) == tuple(ARMS)


@pytest.mark.parametrize("text", ["", " , "])
def test_no_arm_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no arm"):
        parse_arms(text)


def test_a_misspelt_arm_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no arm 'medoids'.*Did you mean 'medoid'"):
        parse_arms("random,medoids")


def test_folders_are_arms(tmp_path: Path) -> None:
    assert parse_folders([f"rded={tmp_path}"]) == {"rded": tmp_path}
    assert list(parse_folders([f"z={tmp_path}", f"a={tmp_path}"])) == ["z", "a"]


@pytest.mark.parametrize("text", ["rded", "=x", "rded=", "a b=x", "<b>=x"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=DIR"):
        parse_folders([text])


def test_a_name_that_is_taken_and_a_folder_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already"):
        parse_folders([f"medoid={tmp_path}"])
    with pytest.raises(UsageError, match="already"):
        parse_folders([f"rded={tmp_path}", f"rded={tmp_path}"])
    with pytest.raises(DataError, match="no such directory"):
        parse_folders([f"rded={tmp_path / 'x'}"])


def test_the_names_are_read_without_pytorch() -> None:
    program = "import sys, d4m_fast.arms.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=os.environ, check=False).returncode == 0


def folders(source: object) -> list[str]:
    return [class_info.folder for class_info in source.classes]  # type: ignore[attr-defined]


def test_a_part_is_named_by_the_test_sets_ids_and_folders(tmp_path: Path) -> None:
    run, test = make_source(["b", "d"], [2, 2]), make_source(["a", "b", "c", "d"], [1, 1, 1, 1])
    assert folders(part_of(run, test, "1")) == ["b"]
    assert folders(part_of(run, test, "d,1")) == ["b", "d"]
    part = part_of(run, test, "d")
    assert [item.origin for item in part.items] == ["d/0", "d/1"]
    assert part.classes[0].id == 1  # as in the run
    with pytest.raises(DataError, match="not in the distilled set: c;"):
        part_of(run, test, "b,c")
    with pytest.raises(UsageError, match="no class 'x'"):
        part_of(run, test, "x")


def test_a_part_of_imagenet_is_named_by_a_file_of_wnids(tmp_path: Path) -> None:
    shared = os.environ.get("D4M_SHARED")
    if shared is None:
        pytest.skip("D4M_SHARED is unset: no ImageNet photographs")
    with tarfile.open(Path(shared) / "imagenet-40-samples.tar") as archive:
        archive.extractall(tmp_path / "photos", filter="data")
    source = open_source(str(tmp_path / "photos"), prompts_needed=False)
    wnids = [class_info.folder for class_info in source.classes]
    (tmp_path / "wnids.txt").write_text(f"{wnids[7]} a name\n\n{wnids[3]}\n{wnids[7]}\n")
    part = part_of(source, source, str(tmp_path / "wnids.txt"))
    assert folders(part) == [wnids[3], wnids[7]]
    assert {part.read(item).size for item in part.items} == {source.read(source.items[i]).size for i in (3, 7)}


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", DataError, "names no class"),
        (b"\xff\xfe", DataError, "cannot be read"),
        (b"x\n", UsageError, "no class 'x'"),
    ],
)
def test_a_file_of_no_use_is_refused(tmp_path: Path, content: bytes, kind: type[Exception], message: str) -> None:
    (tmp_path / "wnids.txt").write_bytes(content)
    source = make_source(["a", "b"], [1, 1])
    with pytest.raises(kind, match=message):
        part_of(source, source, str(tmp_path / "wnids.txt"))
