"""ImageNet-1K's path end to end: folders by WordNet id, a real classifier of 1,000 classes, published protocols.

There is one photograph of each of 40 classes. The photograph itself is the test image; its mirror image and the middle
of it are the two train images: students see nothing new in the test, and their accuracy says nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from driving import Ran, one_line, run_cli
from imagenet_teacher import ARCH, photographs, write_lite0
from models import write_model
from PIL import Image, ImageOps
from torch import nn

from d4m_fast.evaluation.imagenet import imagenet_wnids
from d4m_fast.evaluation.teachers import open_teacher, save_teacher

FOUR = "n01440764,n02110185,n03662601,n07747607"  # tench, husky, lifeboat, orange
# The teacher knows 90 % of the photographs at the 224 pixels it was trained on, half of them at 112, too few at 32.
AT_112 = ("--override", "resolution=112", "--override", "test_resize=128")
SHORT = ("--epochs", 2, "--override", "stored_epochs=2", "--seeds", 1, "--workers", 1, "--student", "resnet18")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with train/ and test/."""
    root = tmp_path_factory.mktemp("imagenet")
    test = photographs(root / "test")
    for file in sorted(test.glob("*/*.JPEG")):
        folder = root / "train" / file.parent.name
        folder.mkdir(parents=True)
        with Image.open(file) as image:
            photograph = image.convert("RGB")
        ImageOps.mirror(photograph).save(folder / "mirrored.jpg", quality=95)
        width, height = photograph.size
        photograph.crop((width // 16, height // 16, width - width // 16, height - height // 16)).save(
            folder / "middle.jpg", quality=95
        )
    return root


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """EfficientNet-Lite0."""
    weights = write_lite0(tmp_path_factory.mktemp("lite0") / "lite0.safetensors")
    return open_teacher(f"{ARCH}={weights}", []).network


def teacher_at(size: int, lite0: nn.Module, folder: Path) -> Path:
    """A directory of the network, which takes images of any size, as a teacher of one size."""
    save_teacher(lite0, folder / f"lite0-{size}", imagenet_wnids(), image_size=size, arch=ARCH)
    return folder / f"lite0-{size}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, lite0: nn.Module) -> Path:
    return teacher_at(112, lite0, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A set of one image per class that somebody else might have made."""
    root = tmp_path_factory.mktemp("theirs")
    for file in data.glob("train/*/middle.jpg"):
        (root / file.parent.name).mkdir()
        shutil.copy(file, root / file.parent.name)
    return root


def evaluate(images: Path, data: Path, teacher: Path, out: Path, *args: object) -> Ran:
    real = ("--train-data", data / "train", "--test-data", data / "test", "--teacher", teacher)
    return run_cli("evaluate", images, *real, *SHORT, "--out", out, "--quiet", *args)


def rotated(test: Path, folder: Path) -> tuple[Path, list[str]]:
    """The photographs in folders of other classes, by seven places, and the folders."""
    wnids = sorted(path.name for path in test.iterdir())
    for wnid, other in zip(wnids, wnids[7:] + wnids[:7], strict=True):
        shutil.copytree(test / wnid, folder / other)
    return folder, wnids


def test_four_classes_of_a_folder_by_stored_labels(images: Path, data: Path, teacher: Path, tmp_path: Path) -> None:
    flags = ("--protocol", "fkd", *AT_112, "--classes", FOUR, "--json")
    report = evaluate(images, data, teacher, tmp_path, *flags).json
    assert report["subject"]["classes"] == FOUR.split(",")
    assert [(row["arm"], row["regime"], row["student"]) for row in report["rows"]] == [
        ("distilled", "fixed", "resnet18"),
        ("random", "fixed", "resnet18"),
    ]
    for row in report["rows"]:
        assert row["protocol"] == "fkd[epochs=2,resolution=112,stored_epochs=2,test_resize=128]"
        assert (row["images_per_class"], row["teacher"]) == (1, str(teacher))
        assert row["label_bytes"] > 2 * 4 * 4 * 2  # two epochs, four images, four logits of two bytes
        assert sum(map(sum, row["confusion"])) == 4
    assert report["teacher_check"]["accuracy"] >= 50
    assert report["teacher_check"]["permuted"] == []


def test_folders_in_each_others_places_are_named_before_anything_is_trained(
    images: Path, data: Path, lite0: nn.Module, tmp_path: Path
) -> None:
    test, wnids = rotated(data / "test", tmp_path / "rotated")
    flags = ("--protocol", "rded", "--override", "resolution=160", "--override", "test_resize=160")
    ran = evaluate(images, data, teacher_at(160, lite0, tmp_path), tmp_path / "out", "--test-data", test, *flags)
    one_line(ran, 1, "of 40 real test images right", "its classes are permuted: folder")
    index = {wnid: number for number, wnid in enumerate(imagenet_wnids())}
    place = {wnids[(number + 7) % len(wnids)]: wnid for number, wnid in enumerate(wnids)}
    pairs = [f"folder {index[name]} '{name}' is predicted as {index[place[name]]} '{place[name]}'" for name in wnids]
    assert sum(pair in ran.err for pair in pairs) >= 3
    assert not (tmp_path / "out" / "students").exists()
    assert not (tmp_path / "out" / "labels").exists()


def test_a_size_at_which_the_teacher_is_lost_is_refused(
    images: Path, data: Path, teacher: Path, lite0: nn.Module, tmp_path: Path
) -> None:
    flags = ("--override", "resolution=32", "--override", "test_resize=32", "--protocol", "rded")
    ran = evaluate(images, data, teacher, tmp_path, *flags)
    one_line(ran, 1, "takes images of 112 pixels a side, not 32")
    ran = evaluate(images, data, teacher_at(32, lite0, tmp_path), tmp_path / "out", *flags)
    one_line(ran, 1, "of 40 real test images right, 25.1 % is the least")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("crane", "goldfish"), "'crane' may be ImageNet's class 134 (n02012849) or 517 (n03126707)"),
        (("maillot", "goldfish"), "'maillot' may be ImageNet's class 638 (n03710637) or 639 (n03710721)"),
        (("crane", "crane bird"), "0.0 % of 2 real test images right"),  # told apart; the photographs are no cranes
        (("maillot", "maillot, tank suit"), "0.0 % of 2 real test images right"),
        (("crane", "n03126707"), "give a teacher of these"),  # ids and names are not mixed
    ],
)
def test_ambiguous_names(data: Path, teacher: Path, tmp_path: Path, names: Sequence[str], words: str) -> None:
    for part in ("train", "test"):
        for wnid, name in zip(("n01440764", "n07747607"), names, strict=True):
            shutil.copytree(data / part / wnid, tmp_path / "data" / part / name)
    images = shutil.copytree(tmp_path / "data" / "train", tmp_path / "images")
    flags = ("--protocol", "fkd", *AT_112, "--regime", "online")
    one_line(evaluate(images, tmp_path / "data", teacher, tmp_path / "out", *flags), 1, words)


@pytest.mark.slow
def test_a_run_of_forty_classes_by_published_protocols(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Random weights stand for the generator: what it makes are no images of these classes."""
    model = write_model(tmp_path / "model", vae_channels=(8, 8, 16, 16), sample_size=14)
    prompts = tmp_path / "prompts.tsv"  # the names are too long for the model's tiny text encoder
    prompts.write_text("".join(f"{path.name}\tclass {path.name[-4:]}\n" for path in sorted((data / "train").iterdir())))
    made = ("--data", data, "--prompts", prompts, "--model", model, "--ipc", 1, "--steps", 4, "--threads", 1)
    assert run_cli("distill", *made, "--out", tmp_path / "run", "--artifacts", tmp_path / "art", "--quiet").code == 0
    common = ("evaluate", tmp_path / "run", "--teacher", teacher, *SHORT, *AT_112, "--json")
    regimes = ("--regime", "hard", "--regime", "fixed", "--regime", "online")
    ran = run_cli(*common, "--protocol", "fkd", *regimes, "--arms", "distilled,random,medoid")
    assert ran.code == 0, ran.err
    rows = {(row["arm"], row["regime"]): row for row in ran.json["rows"]}
    assert set(rows) == {(a, r) for a in ("distilled", "random", "medoid") for r in ("hard", "fixed", "online")}
    for (_, regime), row in rows.items():
        assert row["protocol"] == "fkd[epochs=2,resolution=112,stored_epochs=2,test_resize=128]"
        assert (row["teacher"] is None) == (regime == "hard")
        assert (row["label_bytes"] > 0) == (regime == "fixed")
        assert (len(row["per_class"]), sum(map(sum, row["confusion"]))) == (40, 40)
    assert ran.json["teacher_check"]["accuracy"] >= 40
    again = run_cli(*common, "--protocol", "fkd", *regimes, "--arms", "distilled,random,medoid")
    assert json.dumps(again.json["rows"]) == json.dumps(ran.json["rows"])  # the times as well: nothing was trained
    for protocol, regime in (("d4m", "fixed"), ("rded", "online")):
        ran = run_cli(*common, "--protocol", protocol, "--arms", "distilled")
        ((row),) = ran.json["rows"]
        assert (row["regime"], len(row["accuracy"])) == (regime, 1)
        assert row["protocol"].startswith(f"{protocol}[")


@pytest.mark.slow
def test_the_teacher_knows_the_photographs_at_its_own_size(
    images: Path, data: Path, lite0: nn.Module, tmp_path: Path
) -> None:
    teacher = teacher_at(224, lite0, tmp_path)
    report = evaluate(images, data, teacher, tmp_path / "out", "--protocol", "d4m", "--classes", FOUR, "--json").json
    assert report["teacher_check"]["accuracy"] >= 75
    assert report["subject"]["protocol"]["resolution"] == 224
