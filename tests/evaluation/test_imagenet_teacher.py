"""A published ImageNet classifier as a teacher, checked on real photographs in folders by WordNet id."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from imagenet_teacher import ARCH, lite0_weights, photographs, write_lite0

from d4m_fast.errors import ModelError
from d4m_fast.evaluation.imagenet import imagenet_wnids
from d4m_fast.evaluation.images import ImageSet, load_images
from d4m_fast.evaluation.teacher_check import check_teacher, require_sound
from d4m_fast.evaluation.teachers import Teacher, open_teacher, save_teacher
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.records import ClassInfo


@pytest.fixture(scope="module")
def teacher_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"{ARCH}={write_lite0(tmp_path_factory.mktemp('lite0') / 'lite0.safetensors')}"


def opened(name: str, folder: Path) -> tuple[Teacher, ImageSet, list[str]]:
    source = open_source(str(folder), prompts_needed=False)
    teacher = open_teacher(name, source.classes, resolution=224)
    return teacher, load_images(source, 224, shorter_side=256), [info.folder for info in source.classes]


def test_it_is_the_network_of_its_authors(teacher_name: str) -> None:
    authors = pytest.importorskip("efficientnet_lite_pytorch")
    network = authors.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(lite0_weights())).eval()
    teacher = open_teacher(teacher_name, [ClassInfo(i, wnid, wnid) for i, wnid in enumerate(imagenet_wnids())])
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(teacher.label(pixels), network(2 * pixels - 1), atol=1e-3)


def test_it_knows_the_photographs(teacher_name: str, tmp_path: Path) -> None:
    teacher, test, names = opened(teacher_name, photographs(tmp_path))
    check = check_teacher(teacher, test, names)
    assert (check.outputs, check.images, len(check.per_class)) == (1000, 40, 40)
    assert check.accuracy >= 80  # of one photograph in each of 40 of the 1,000 classes
    assert check.permuted == ()
    require_sound(check, teacher, test)
    assert teacher.label(test.images[:2].float() / 255).shape == (2, 40)


def test_as_a_directory_it_is_the_same(teacher_name: str, tmp_path: Path) -> None:
    teacher, test, _ = opened(teacher_name, photographs(tmp_path / "photographs"))
    save_teacher(teacher.network, tmp_path / "teacher", imagenet_wnids(), image_size=224, arch=ARCH)
    again, _, _ = opened(str(tmp_path / "teacher"), tmp_path / "photographs")
    pixels = test.images[:4].float() / 255
    assert again.columns == teacher.columns
    assert torch.equal(again.label(pixels), teacher.label(pixels))


def test_folders_in_each_others_places_are_named(teacher_name: str, tmp_path: Path) -> None:
    folder = photographs(tmp_path)
    wnids = sorted(path.name for path in folder.iterdir())
    for wnid in wnids:
        (folder / wnid).rename(folder / f"was-{wnid}")
    for wnid, other in zip(wnids, wnids[7:] + wnids[:7], strict=True):
        (folder / f"was-{wnid}").rename(folder / other)
    teacher, test, names = opened(teacher_name, folder)
    check = check_teacher(teacher, test, names)
    index = {wnid: number for number, wnid in enumerate(imagenet_wnids())}
    place = {wnids[(number + 7) % 40]: wnid for number, wnid in enumerate(wnids)}
    assert len(check.permuted) >= 25
    assert all(index[place[swap.name]] == swap.predicted for swap in check.permuted)
    with pytest.raises(
        ModelError, match=r"0\.0 % of 40 real test images right.*its classes are permuted: folder \d+ 'n0"
    ):
        require_sound(check, teacher, test)
