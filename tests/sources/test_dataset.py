import os
import struct
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d4m_fast.errors import DataError, PreflightError, UsageError
from d4m_fast.sources import arrays, idx
from d4m_fast.sources.dataset import open_source, subset


def picture(size: tuple[int, int] = (5, 4), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def image_folder(root: Path, *paths: str) -> Path:
    for seed, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture(seed=seed).save(root / path)
    return root


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def write_idx(folder: Path, split: str, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    labels = (np.arange(count) * 3 % 10).astype(np.uint8)
    for name, array in zip(idx.FILES[split], (images, labels), strict=True):
        header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / name).write_bytes(header + array.tobytes())
    return images, labels


# Class folders


def test_agrees_with_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    root = image_folder(
        tmp_path,
        "b/2.png",
        "b/10.PNG",
        "b/x/1.jpg",
        "b/x y/1.jpg",
        "b/x/y/0.webp",
        "a/z.bmp",
        "Ünï cöde/猫.tif",
        "10/1.ppm",
    )
    (root / "a" / "notes.txt").write_text("not an image")
    theirs = datasets.ImageFolder(str(root))
    ours = open_source(str(root))
    assert [info.folder for info in ours.classes] == theirs.classes
    assert [(str(root / i.origin), i.class_id) for i in ours.items] == theirs.samples
    assert [i.rank for i in ours.items if i.class_id == theirs.class_to_idx["b"]] == [0, 1, 2, 3, 4]
    for item, (image, _) in zip(ours.items, theirs, strict=True):
        assert np.array_equal(pixels(ours.read(item)), pixels(image))


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    root = image_folder(tmp_path, "a/1.png", "a/.cache/2.png", ".git/3.png")
    (root / "a" / "._1.png").write_bytes(b"resource fork")
    assert [item.origin for item in open_source(str(root)).items] == ["a/1.png"]


@pytest.mark.parametrize(
    ("paths", "split", "chosen"),
    [
        (["train/a/1.png", "test/a/2.png"], "train", "train"),
        (["train/a/1.png", "val/a/2.png"], "test", "val"),
        (["train/a/1.png", "val/a/2.png", "test/a/3.png"], "test", "test"),
        (["train/1.png", "bus/1.png"], "train", "."),
        (["images/a/1.png"], "train", "images"),
        (["photos/1.png", "videos/1.png"], "test", "."),
        (["train/a/1.png", "train/stray.png", "val/a/2.png"], "train", "train"),
        (["train/a/images/1.png", "train/stray.png"], "train", "train"),
        (["images/a/1.png", "images/stray.png"], "train", "images"),
    ],
)
def test_which_folder_holds_the_classes(tmp_path: Path, paths: list[str], split: str, chosen: str) -> None:
    source = open_source(str(image_folder(tmp_path, *paths)), split=split)
    assert source.fingerprint == open_source(str(tmp_path / chosen)).fingerprint


def test_run_directory(tmp_path: Path) -> None:
    image_folder(tmp_path, "images/a/00000.png", "groups/0.png", "prototypes/x/0.png")
    (tmp_path / "plan.json").write_text("{}")
    assert [info.folder for info in open_source(str(tmp_path)).classes] == ["a"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "root", "a/1.png", "b/2.png")
    image_folder(tmp_path / "elsewhere", "c/3.png")
    (root / "c").symlink_to(tmp_path / "elsewhere" / "c")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "itself").symlink_to(root / "a")
    (root / "b" / "self.png").symlink_to(root / "b" / "self.png")
    source = open_source(str(root))
    assert [item.origin for item in source.items] == ["a/1.png", "b/2.png", "b/self.png", "c/3.png"]


@pytest.mark.parametrize(
    ("paths", "split", "reason"),
    [
        ([], "train", "no class folders"),
        (["1.png"], "train", "no class folders"),
        (["a/1.png", "b/1.png", "test/x/1.png"], "train", "has test/ but no train/"),
        (["train/a/1.png"], "test", "has train/ but no test or val/"),
        (["train/a/1.png", "train/b/1.png", "val/b/1.png"], "test", r"different class folders \(a\)"),
    ],
)
def test_directories_without_classes(tmp_path: Path, paths: list[str], split: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_source(str(image_folder(tmp_path, *paths)), split=split)


def test_class_without_images_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path, "a/1.png")
    (root / "empty one").mkdir()
    (root / "empty one" / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="without images: empty one"):
        open_source(str(root))
    (root / "a" / "1.png").unlink()
    with pytest.raises(DataError, match="no images in its 2 class folders"):
        open_source(str(root))


def test_missing_directory_and_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        open_source(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="not a directory"):
        open_source(str(tmp_path / "file"))
    with pytest.raises(UsageError, match="train or test"):
        open_source(str(tmp_path), split="val")


@pytest.mark.parametrize("path", [b"\xff/1.png", b"a/\xff.png", b"new\nline/1.png"])
def test_names_that_no_manifest_could_hold(tmp_path: Path, path: bytes) -> None:
    image_folder(tmp_path, "a/1.png")
    target = os.path.join(os.fsencode(tmp_path), path)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(os.fsdecode(target)).write_bytes(b"")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    with pytest.raises(DataError, match="rename it"):
        open_source(str(tmp_path))


def test_fingerprint_depends_on_files_and_not_on_prompts_or_times(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "root", "a/1.png", "b/1.png")
    before = open_source(str(root)).fingerprint
    os.utime(root / "a" / "1.png", (0, 0))
    (tmp_path / "prompts").write_text("x\ny\n")
    source = open_source(str(root), prompts=str(tmp_path / "prompts"))
    assert source.fingerprint == before and [info.prompt for info in source.classes] == ["x", "y"]
    with (root / "a" / "1.png").open("ab") as file:
        file.write(b"more")
    assert open_source(str(root)).fingerprint != before


def test_files_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder(tmp_path, "a/1.png")
    (root / "a" / "2.png").symlink_to(root / "gone.png")
    os.mkfifo(root / "a" / "3.png")
    source = open_source(str(root))
    for item, reason in zip(source.items[1:], ("unreadable", "is a named pipe, not a file"), strict=True):
        with pytest.raises(DataError, match=reason):
            source.read(item)
    monkeypatch.setattr(Image, "open", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(PreflightError, match=r"1\.png: cannot be read \(Permission denied\)"):
        source.read(source.items[0])


# Subsets


def test_subset_keeps_ids_and_ranks(tmp_path: Path) -> None:
    source = open_source(str(image_folder(tmp_path, "a/1.png", "b/1.png", "b/2.png", "c/1.png", "d/1.png")))
    part = subset(source, "3, b")
    assert [(info.id, info.folder) for info in part.classes] == [(1, "b"), (3, "d")]
    assert [(i.class_id, i.rank) for i in part.items] == [(1, 0), (1, 1), (3, 0)]
    assert np.array_equal(pixels(part.read(part.items[2])), pixels(source.read(source.items[4])))
    assert part.fingerprint == subset(source, "1,3").fingerprint != source.fingerprint
    assert subset(source, "0-3") is source
    assert [info.id for info in subset(part, "3").classes] == [3]


@pytest.mark.parametrize("classes", ["", "a,", "x", "4", "1-9", "2-1", "-1", "0-99999999999999999999"])
def test_unknown_classes_are_refused(tmp_path: Path, classes: str) -> None:
    source = open_source(str(image_folder(tmp_path, "a/1.png", "b/1.png", "c/1.png", "d/1.png")))
    with pytest.raises(UsageError, match=r"no class .* there are a, b, c, d \(ids 0 to 3\)"):
        subset(source, classes)


def test_a_number_that_is_a_folder_and_another_id(tmp_path: Path) -> None:
    source = open_source(str(image_folder(tmp_path / "all", *(f"{i}/1.png" for i in range(11)))))
    assert [info.folder for info in source.classes] == [str(i) for i in range(11)]
    assert subset(source, "10").classes[0].folder == "10"
    part = open_source(str(image_folder(tmp_path / "gaps", "0/1.png", "2/1.png", "4/1.png")))
    with pytest.raises(UsageError, match="write 1-1 or 2-2"):
        subset(part, "2")
    assert subset(part, "2-2").classes[0].folder == "4"


# Arrays


def test_idx_files(tmp_path: Path) -> None:
    images, labels = write_idx(tmp_path, "train")
    with pytest.raises(DataError, match=r"10 classes \(labels 0 to 9\); give --prompts FILE with 10 lines"):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path), prompts_needed=False)
    assert [info.prompt for info in source.classes] == list("0123456789")
    assert [info.folder for info in source.classes] == list("0123456789")
    assert [item.class_id for item in source.items] == labels.tolist()
    assert [item.rank for item in source.items] == [0] * 10 + [1] * 10
    read = pixels(source.read(source.items[7]))
    assert np.array_equal(read, np.repeat(np.pad(images[7], 2)[..., None], 3, axis=-1))
    with pytest.raises(DataError, match="for the test split"):
        open_source(str(tmp_path), split="test", prompts_needed=False)


def test_idx_files_that_do_not_fit(tmp_path: Path) -> None:
    write_idx(tmp_path, "train")
    labels = tmp_path / idx.FILES["train"][1]
    labels.write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 20) + bytes(range(10)) * 2)
    fingerprint = open_source(str(tmp_path), prompts_needed=False).fingerprint
    for values, reason in [
        (bytes(19), "belong together"),
        (bytes([10] * 20), "no images of 10 of 11"),
        (bytes(19) + b"\2", "no images of 1 of 3"),
    ]:
        labels.write_bytes(b"\0\0\x08\x01" + struct.pack(">I", len(values)) + values)
        with pytest.raises(DataError, match=reason):
            open_source(str(tmp_path), prompts_needed=False)
    write_idx(tmp_path, "train")
    assert open_source(str(tmp_path), prompts_needed=False).fingerprint != fingerprint


def test_bundled_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = write_idx(tmp_path, "test")
    archive = tmp_path / "small.npz"
    np.savez(archive, test_images=images, test_labels=labels)
    monkeypatch.setattr(arrays, "_archive", lambda: archive)
    source = open_source("bundled", split="test")
    assert source.fingerprint == open_source(str(tmp_path), split="test", prompts_needed=False).fingerprint
    assert source.items[3].origin == "test/00003"
    with pytest.raises(DataError, match="install the package again"):
        open_source("bundled", split="train")


def test_bundled_archive_with_pickles_or_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "bad.npz"
    monkeypatch.setattr(arrays, "_archive", lambda: archive)
    for spoil in (
        lambda: None,
        lambda: np.savez(archive, train_images=np.array([{}])),
        lambda: archive.write_bytes(b"x"),
    ):
        spoil()
        with pytest.raises(DataError, match="install the package again"):
            open_source("bundled")


def test_shipped_archive() -> None:
    if not arrays._archive().is_file():
        pytest.skip("the package was built without its images")
    for split in ("train", "test"):
        source = open_source("bundled", split=split)
        assert len(source.classes) == 10 and source.read(source.items[-1]).size == (32, 32)


def cifar_files(root: Path, folder: str, keys: dict[str, object], files: list[str]) -> None:
    import pickle

    (root / folder).mkdir()
    for name in files:
        (root / folder / name).write_bytes(pickle.dumps(keys))


def test_cifar_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    cifar_files(tmp_path, "cifar-10-batches-py", {}, ["data_batch_1", "test_batch", "batches.meta"])
    for data in (tmp_path, tmp_path / "cifar-10-batches-py"):
        with pytest.raises(DataError, match="MD5"):
            open_source(str(data))
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(DataError, match="both CIFAR-10 and CIFAR-100"):
        open_source(str(tmp_path))


def test_cifar_100_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar = pytest.importorskip("torchvision.datasets.cifar")
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5: True)
    data = np.random.default_rng(0).integers(0, 256, (100, 3072), np.uint8)
    names = [f"aquarium_fish {i}" for i in range(100)]
    keys: dict[str, object] = {"data": data, "fine_labels": list(range(99, -1, -1)), "fine_label_names": names}
    cifar_files(tmp_path, "cifar-100-python", keys, ["train", "test", "meta"])
    source = open_source(str(tmp_path / "cifar-100-python"))
    assert [info.folder for info in source.classes][::99] == ["00", "99"]
    assert source.classes[7].prompt == "aquarium fish 7"
    assert source.items[0].class_id == 99
    assert np.array_equal(pixels(source.read(source.items[1])), data[1].reshape(3, 32, 32).transpose(1, 2, 0))


# Real photographs


def unpack(name: str, target: Path, limit: int, wanted: str = "") -> Path:
    shared = os.environ.get("D4M_SHARED")
    if shared is None:
        pytest.skip("D4M_SHARED is not set")
    folder = next((f for f in (Path(shared), Path(shared) / "data") if (f / name).is_file()), None)
    if folder is None:
        pytest.skip(f"no {name} in $D4M_SHARED")
    with tarfile.open(folder / name) as archive:
        for member in islice((m for m in archive if m.isfile() and wanted in m.name), limit):
            parts = [part for part in Path(member.name).parts if part not in ("/", "..")]
            stream = archive.extractfile(member)
            assert stream is not None
            target.joinpath(*parts).parent.mkdir(parents=True, exist_ok=True)
            target.joinpath(*parts).write_bytes(stream.read())
    return target


def test_imagenet_photographs_get_their_label_lines(tmp_path: Path) -> None:
    source = open_source(str(unpack("imagenet-40-samples.tar", tmp_path, 40)))
    assert len(source.classes) == len(source.items) == 40
    assert source.classes[0].prompt == "tench, Tinca tinca"
    for item, info in zip(source.items[:8], source.classes, strict=False):
        assert info.prompt.split(",")[0].lower().replace(" ", "_") in item.origin.lower()
        assert min(pixels(source.read(item)).shape[:2]) > 32


def test_cifar_10_photographs(tmp_path: Path) -> None:
    source = open_source(str(unpack("cifar10-imagefolder.tar", tmp_path, 20, "train/")))
    assert [info.folder for info in source.classes] == ["airplane"]
    assert [item.rank for item in source.items] == list(range(20))
    assert pixels(source.read(source.items[0])).shape == (32, 32, 3)
