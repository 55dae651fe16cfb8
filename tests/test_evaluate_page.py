"""docs/evaluate.md and docs/teachers.md say what the code has."""

from __future__ import annotations

import dataclasses
import re
import struct
from pathlib import Path

import pytest
import torch
from driving import ROOT, load_tool

from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.label_store import labels_identity, write_labels
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.stems import patch_of
from d4m_fast.evaluation.teacher_check import TeacherCheck
from d4m_fast.examination.opening import MATRIX

EVALUATE = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEACHERS = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
SIDE, CLASSES, IMAGES = 16, 12, 9


def test_the_tables_are_those_of_the_code() -> None:
    assert load_tool("render_evaluate").render(EVALUATE) == EVALUATE, "run python tools/render_evaluate.py"


@pytest.mark.slow  # networks of Stable Diffusion's size are traced
def test_the_readmes_table_is_what_plan_calculates() -> None:
    assert load_tool("render_evaluate").render(README) == README, "run python tools/render_evaluate.py"


def test_every_table_is_on_a_page() -> None:
    tool = load_tool("render_evaluate")
    assert {*tool.page_tables.names_of(f"{EVALUATE}\n{README}", tool.KIND)} == {*tool.TABLES}


def test_a_stale_table_is_noticed() -> None:
    tool = load_tool("render_evaluate")
    assert tool.render(EVALUATE.replace("| epochs | 300 |", "| epochs | 301 |")) == EVALUATE
    with pytest.raises(ValueError, match="no begin and end"):
        tool.render("<!-- code:arms begin -->\n")


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("top_k", [None, 3])
def test_the_bytes_of_a_label_are_those_that_the_store_writes(tmp_path: Path, name: str, top_k: int | None) -> None:
    protocol = dataclasses.replace(PROTOCOLS[name], resolution=SIDE, stored_epochs=1, cutmix=1.0)
    images = ImageSet(torch.arange(IMAGES).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE).byte(), torch.arange(IMAGES))
    identity = labels_identity(images, protocol, "sha", range(CLASSES), 0, top_k)
    logits = torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(0))
    list(write_labels(tmp_path, images, protocol, lambda pixels: logits[: len(pixels)], identity, batch_size=4))
    (file,) = tmp_path.glob("*.safetensors")
    data = file.read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    assert len(data) - 8 - header == IMAGES * load_tool("render_evaluate").bytes_of_label(protocol, CLASSES, top_k)


def test_the_students_of_the_matrix_are_named() -> None:
    assert [name for name in MATRIX if f"`{name}`" not in EVALUATE] == []


def test_the_least_accuracy_of_a_teacher_is_that_of_the_check() -> None:
    for outputs in (10, 1000):
        least = TeacherCheck("t", outputs, 1, 0.0, {}, (), (0.0, 0)).least_accuracy
        assert f"{least:.1f} % of {outputs:,}" in " ".join(TEACHERS.split())


@pytest.mark.parametrize("side", [28, 32, 64])
def test_the_patches_are_those_that_a_student_gets(side: int) -> None:
    (sentence,) = re.findall(r"the largest patch that leaves 7 along a side: (.*?) \|", TEACHERS)
    assert sentence == "4 at 28 and 32, 8 at 64"
    assert patch_of(side) == (8 if side == 64 else 4)
