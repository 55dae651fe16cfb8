"""Layouts of data sets as they are unpacked, and what opening each does: rows of tests and of docs/data.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Layout:
    """Files below a root, and the prompts of the classes, or the reason why it is refused.

    Attributes:
        paths: images are made where a name ends like one's; others are empty files; `{root}` in `refusal` is the root.
        folders: of the classes, in class order.
        notes: parts of what is said of files left out.
    """

    name: str
    paths: Sequence[str]
    folders: Sequence[str] = ()
    prompts: Sequence[str] = ()
    refusal: str = ""
    split: str = "train"
    notes: Sequence[str] = ()

    def make(self, root: Path) -> Path:
        for path in self.paths:
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif"):
                Image.new("RGB", (4, 4), (len(path), 0, 0)).save(file)
            else:
                file.touch()
        return root


_WNIDS = ("n01440764", "n01443537")
_FISH = ("tench, Tinca tinca", "goldfish, Carassius auratus")


def _each(folders: Sequence[str], *paths: str) -> list[str]:
    return [path.format(folder=folder) for folder in folders for path in paths]


LAYOUTS = (
    Layout(
        "ImageNet as torchvision has it, the archives beside",
        [*_each(_WNIDS, "train/{folder}/1.JPEG", "val/{folder}/1.JPEG"), "ILSVRC2012_devkit_t12.tar.gz", "meta.bin"],
        _WNIDS,
        _FISH,
    ),
    Layout("... its val", _each(_WNIDS, "train/{folder}/1.JPEG", "val/{folder}/1.JPEG"), _WNIDS, _FISH, split="test"),
    Layout(
        "ImageNet as Kaggle has it",
        [
            *_each(_WNIDS, "ILSVRC/Data/CLS-LOC/train/{folder}/1.JPEG"),
            "ILSVRC/Data/CLS-LOC/val/1.JPEG",
            "ILSVRC/Annotations/CLS-LOC/val/1.xml",
            "LOC_synset_mapping.txt",
        ],
        refusal="did you mean {root}/ILSVRC/Data/CLS-LOC/train?",
    ),
    Layout(
        "... from its ILSVRC folder",
        [
            *_each(_WNIDS, "Data/CLS-LOC/train/{folder}/1.JPEG"),
            "Data/CLS-LOC/test/1.JPEG",
            "ImageSets/CLS-LOC/train_cls.txt",
            "Annotations/1.xml",
        ],
        refusal="did you mean {root}/Data/CLS-LOC/train?",
    ),
    Layout(
        "ImageNet as the devkit leaves it, a class packed",
        ["n01440764/1.JPEG", "n01443537.tar"],
        refusal="n01443537.tar is still packed",
    ),
    Layout("ImageNet, all classes packed", ["n01440764.tar", "n01443537.tar"], refusal="n01440764.tar is still packed"),
    Layout(
        "ImageNet with a folder of notes",
        ["n01440764/1.JPEG", "n01443537/1.JPEG", "notes/page.png"],
        refusal="2 of 3 folders are WordNet ids; notes is not",
    ),
    Layout(
        "Tiny-ImageNet",
        [
            *_each(_WNIDS, "train/{folder}/images/1.JPEG", "train/{folder}/{folder}_boxes.txt"),
            "val/images/1.JPEG",
            "val/val_annotations.txt",
            "test/images/1.JPEG",
        ],
        _WNIDS,
        _FISH,
        notes=("2 .txt",),
    ),
    Layout(
        "... its val, without class folders",
        [*_each(_WNIDS, "train/{folder}/images/1.JPEG"), "val/images/1.JPEG", "val/val_annotations.txt"],
        refusal="has train/ but no test or val/ with class folders",
        split="test",
    ),
    Layout(
        "... in the archive's folder",
        _each(_WNIDS, "tiny-imagenet-200/train/{folder}/images/1.JPEG"),
        refusal="did you mean {root}/tiny-imagenet-200/train?",
    ),
    Layout(
        "Imagenette",
        _each(_WNIDS, "imagenette2/train/{folder}/1.JPEG", "imagenette2/val/{folder}/1.JPEG"),
        refusal="did you mean {root}/imagenette2/train?",
    ),
    Layout(
        "Stanford Dogs",
        [
            "Images/n02085620-Chihuahua/1.jpg",
            "Images/n02085782-Japanese_spaniel/1.jpg",
            "Annotation/n02085620-Chihuahua/1",
            "lists/train_list.mat",
        ],
        refusal="did you mean {root}/Images?",
    ),
    Layout(
        "... its Images",
        ["n02085620-Chihuahua/1.jpg", "n02085782-Japanese_spaniel/1.jpg"],
        ("n02085620-Chihuahua", "n02085782-Japanese_spaniel"),
        ("Chihuahua", "Japanese spaniel"),
    ),
    Layout(
        "Food-101",
        ["food-101/images/apple_pie/1.jpg", "food-101/images/waffles/1.jpg", "food-101/meta/classes.txt"],
        refusal="did you mean {root}/food-101/images?",
    ),
    Layout(
        "... its images alone",
        ["images/apple_pie/1.jpg", "images/waffles/1.jpg"],
        ("apple_pie", "waffles"),
        ("apple pie", "waffles"),
    ),
    Layout(
        "Oxford Pets, whose classes are in the files' names",
        ["images/Abyssinian_1.jpg", "annotations/trimaps/Abyssinian_1.png"],
        refusal="images/ holds images without class folders",
    ),
    Layout(
        "Flowers-102, whose classes are in a .mat",
        ["jpg/image_00001.jpg", "imagelabels.mat"],
        refusal="jpg/ holds images without class folders",
    ),
    Layout(
        "Caltech-101",
        ["101_ObjectCategories/accordion/1.jpg", "101_ObjectCategories/yin_yang/1.jpg", "Annotations/accordion/1.mat"],
        refusal="did you mean {root}/101_ObjectCategories?",
    ),
    Layout(
        "Caltech-256",
        ["001.ak47/1.jpg", "002.american-flag/1.jpg"],
        ("001.ak47", "002.american-flag"),
        ("ak47", "american-flag"),
    ),
    Layout(
        "CUB-200",
        [
            "images/001.Black_footed_Albatross/1.jpg",
            "images/002.Laysan_Albatross/1.jpg",
            "attributes/attributes.txt",
            "parts/parts.txt",
            "classes.txt",
        ],
        refusal="did you mean {root}/images?",
    ),
    Layout("EuroSAT", ["2750/AnnualCrop/1.jpg", "2750/Forest/1.jpg"], refusal="did you mean {root}/2750?"),
    Layout(
        "Training/ and Testing/",
        _each(("glioma", "pituitary"), "Training/{folder}/1.jpg", "Testing/{folder}/2.jpg"),
        ("glioma", "pituitary"),
        ("glioma", "pituitary"),
    ),
    Layout(
        "... the second",
        _each(("glioma", "pituitary"), "Training/{folder}/1.jpg", "Testing/{folder}/2.jpg"),
        ("glioma", "pituitary"),
        ("glioma", "pituitary"),
        split="test",
    ),
    Layout("Train/ and Test/ of bare images", ["Train/1.png", "Test/2.png"], refusal="one folder of images per class"),
    Layout(
        "Dogs vs. Cats (Kaggle), all images side by side",
        ["train/cat.0.jpg", "train/dog.0.jpg", "test1/1.jpg"],
        refusal="test1 and train are splits by their names",
    ),
    Layout(
        "Intel scenes (Kaggle)",
        [
            *_each(("sea", "street"), "seg_train/seg_train/{folder}/1.jpg", "seg_test/seg_test/{folder}/1.jpg"),
            "seg_pred/1.jpg",
        ],
        refusal="did you mean {root}/seg_train/seg_train",
    ),
    Layout(
        "numbered splits",
        _each(("cat", "dog"), "01_train/{folder}/1.jpg", "02_test/{folder}/1.jpg"),
        refusal="did you mean {root}/01_train",
    ),
    Layout(
        "cats and dogs as courses hold them",
        _each(("cats", "dogs"), "training_set/training_set/{folder}/1.jpg", "test_set/test_set/{folder}/1.jpg"),
        refusal="did you mean {root}/training_set/training_set",
    ),
    Layout(
        "Flowers (Kaggle), the set once more inside itself",
        [*_each(("daisy", "rose"), "{folder}/1.jpg", "flowers/{folder}/1.jpg")],
        refusal="holds folders called like the classes beside it (daisy, rose)",
    ),
    Layout(
        "superclasses of classes that share names",
        ["colour/apple/1.jpg", "colour/pear/1.jpg", "grey/apple/1.jpg"],
        ("colour", "grey"),
        ("colour", "grey"),
    ),
    Layout(
        "classes that are called like splits",
        ["bullet_train/1.jpg", "test_tube/1.jpg"],
        ("bullet_train", "test_tube"),
        ("bullet train", "test tube"),
    ),
    Layout(
        "a split of other classes",
        ["train/a/1.png", "train/b/1.png", "valid/a/1.png"],
        refusal="different class folders",
        split="test",
    ),
    Layout("numbers", [f"{i}/1.png" for i in range(12)], [str(i) for i in range(12)], [str(i) for i in range(12)]),
    Layout(
        "what tools leave",
        [
            "cat/1.jpg",
            "dog/1.jpg",
            "dog/Thumbs.db",
            "dog/.DS_Store",
            "__MACOSX/cat/1.jpg",
            ".git/x.png",
            "cat/@eaDir/1.jpg",
            "cat/.ipynb_checkpoints/1.jpg",
            "$RECYCLE.BIN/x.png",
            "stray.png",
        ],
        ("cat", "dog"),
        ("cat", "dog"),
        notes=("1 images beside the class folders", "1 .db", "1 hidden", "__MACOSX", "@eaDir", ".git"),
    ),
    Layout(
        "a run and a cache below",
        [
            "cat/1.jpg",
            "dog/1.jpg",
            "runs/0a/config.json",
            "runs/0a/images/cat/1.png",
            "runs/0a/groups/0.json",
            "cache/latents/0123456789abcdef-50/0.npy",
        ],
        ("cat", "dog"),
        ("cat", "dog"),
        notes=("not read: cache, runs",),
    ),
    Layout(
        "MNIST's relatives under other names",
        ["k49-train-images-idx3-ubyte.gz"],
        refusal="rename it and its labels to train-images-idx3-ubyte",
    ),
    Layout(
        "EMNIST, whose images lie transposed",
        ["EMNIST/raw/emnist-letters-train-images-idx3-ubyte", "EMNIST/raw/emnist-letters-train-labels-idx1-ubyte"],
        refusal="EMNIST's images lie transposed in its files",
    ),
    Layout(
        "IDX images without their labels",
        ["MNIST/raw/train-images-idx3-ubyte"],
        refusal="train-images-idx3-ubyte without train-labels-idx1-ubyte; add it",
    ),
)
