"""Layouts of data sets as they are unpacked, and what opening each does: rows of tests and of docs/data.md."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from containers import write_tar
from PIL import Image


@dataclass(frozen=True)
class Layout:
    """Files below a root, and the prompts of the classes, or the reason why it is refused.

    Attributes:
        paths: images are made where a name ends like one's, tars of one image where it ends like theirs; others are
            empty files; `{root}` in `refusal` is the root.
        folders: of the classes, in class order.
        notes: parts of what is said of files left out.
        texts: more files, with what is in them.
    """

    name: str
    paths: Sequence[str]
    folders: Sequence[str] = ()
    prompts: Sequence[str] = ()
    refusal: str = ""
    split: str = "train"
    notes: Sequence[str] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    def make(self, root: Path) -> Path:
        for path in self.paths:
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif"):
                Image.new("RGB", (4, 4), (len(path), 0, 0)).save(file)
            elif file.suffix == ".tar":
                stream = io.BytesIO()
                Image.new("RGB", (4, 4), (len(path), 0, 0)).save(stream, "JPEG")
                write_tar(file, [(f"{file.stem}_1.JPEG", stream.getvalue())])
            else:
                file.touch()
        for path, text in self.texts.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return root


_WNIDS = ("n01440764", "n01443537")
_FISH = ("tench, Tinca tinca", "goldfish, Carassius auratus")


def _each(folders: Sequence[str], *paths: str) -> list[str]:
    return [path.format(folder=folder) for folder in folders for path in paths]


_KAGGLE = [
    *_each(_WNIDS, "ILSVRC/Data/CLS-LOC/train/{folder}/1.JPEG"),
    "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG",
    "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG",
    "ILSVRC/Annotations/CLS-LOC/val/1.xml",
    "LOC_synset_mapping.txt",
]
_KAGGLE_LIST = {
    "LOC_val_solution.csv": "ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 1 2 3 4 n01440764 5 6 7 8 \n"
    "ILSVRC2012_val_00000001,n01443537 85 1 499 272 \n"
}

LAYOUTS = (
    Layout(
        "ImageNet as torchvision has it, the archives beside",
        [*_each(_WNIDS, "train/{folder}/1.JPEG", "val/{folder}/1.JPEG"), "ILSVRC2012_devkit_t12.tar.gz", "meta.bin"],
        _WNIDS,
        _FISH,
    ),
    Layout("... its val", _each(_WNIDS, "train/{folder}/1.JPEG", "val/{folder}/1.JPEG"), _WNIDS, _FISH, split="test"),
    Layout("ImageNet as Kaggle has it", _KAGGLE, _WNIDS, _FISH),
    Layout("... its val", _KAGGLE, _WNIDS, _FISH, split="test", texts=_KAGGLE_LIST),
    Layout("... its val without the list", _KAGGLE, refusal="put Kaggle's LOC_val_solution.csv", split="test"),
    Layout(
        "... from its ILSVRC folder",
        [
            *_each(_WNIDS, "Data/CLS-LOC/train/{folder}/1.JPEG"),
            "Data/CLS-LOC/test/1.JPEG",
            "ImageSets/CLS-LOC/train_cls.txt",
            "Annotations/1.xml",
        ],
        _WNIDS,
        _FISH,
    ),
    Layout(
        "ImageNet's validation images side by side, with Kaggle's list",
        ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"],
        _WNIDS,
        _FISH,
        texts=_KAGGLE_LIST,
    ),
    Layout(
        "... of which the list lacks one",
        [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3)],
        refusal="1 of 3 images are not in their list (ILSVRC2012_val_00000003.JPEG)",
        texts=_KAGGLE_LIST,
    ),
    Layout(
        "ImageNet as the devkit leaves it, a class packed",
        ["n01440764/1.JPEG", "n01443537.tar"],
        refusal="n01443537.tar is still packed",
    ),
    Layout("ImageNet, all classes packed", ["n01440764.tar", "n01443537.tar"], _WNIDS, _FISH),
    Layout(
        "... beside other folders than classes",
        ["n01440764.tar", "n01443537.tar", "ILSVRC2012_devkit_t12/readme.txt"],
        _WNIDS,
        _FISH,
    ),
    Layout("tars that are no classes by their names", ["part-0.tar", "part-1.tar"], refusal="nothing tells the class"),
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
        "... its val, classes by a list",
        [*_each(_WNIDS, "train/{folder}/images/1.JPEG"), "val/images/val_0.JPEG", "val/images/val_1.JPEG"],
        _WNIDS,
        _FISH,
        split="test",
        texts={"val/val_annotations.txt": "val_0.JPEG\tn01443537\t0\t32\t44\t62\nval_1.JPEG\tn01440764\t0\t0\t9\t9\n"},
    ),
    Layout(
        "... whose list is damaged",
        [*_each(_WNIDS, "train/{folder}/images/1.JPEG"), "val/images/val_0.JPEG"],
        refusal="val_annotations.txt: line 1 names no image and its class",
        split="test",
        texts={"val/val_annotations.txt": "val_0.JPEG cat\n"},
    ),
    Layout(
        "... whose list has other classes than train/",
        [*_each(_WNIDS, "train/{folder}/images/1.JPEG"), "val/images/val_0.JPEG"],
        refusal="its classes and those of train/ are not the same (n01440764)",
        split="test",
        texts={"val/val_annotations.txt": "val_0.JPEG\tn01443537\t0\t32\t44\t62\n"},
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
        "... with its lists",
        _each(("apple_pie", "waffles"), "food-101/images/{folder}/1.jpg", "food-101/images/{folder}/2.jpg"),
        ("apple_pie", "waffles"),
        ("apple pie", "waffles"),
        texts={"food-101/meta/train.txt": "waffles/1\napple_pie/1\n"},
    ),
    Layout(
        "... without images of its list",
        ["food-101/images/apple_pie/1.jpg"],
        refusal="1 images of train.txt are not there (apple_pie/2.jpg)",
        texts={"food-101/meta/train.txt": "apple_pie/1\napple_pie/2\n"},
    ),
    Layout(
        "... whose list leads out of it",
        ["food-101/images/apple_pie/1.jpg"],
        refusal="there is no class folder images/'..'",
        texts={"food-101/meta/train.txt": "../../1\n"},
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
        "splits inside the classes",
        _each(("cat", "dog"), "{folder}/train/1.jpg", "{folder}/val/2.jpg"),
        refusal="{root}/cat: holds train, val, a part of the set by name",
    ),
    Layout(
        "one split inside the classes",
        _each(("cat", "dog"), "{folder}/train/1.jpg"),
        refusal="{root}/cat: holds train, a part of the set by name",
        split="test",
    ),
    Layout(
        "a superclass that has trains",
        ["vehicles/train/1.jpg", "vehicles/bus/1.jpg", "fish/ray/1.jpg"],
        ("fish", "vehicles"),
        ("fish", "vehicles"),
    ),
    Layout("trains and buses", ["train/1.jpg", "bus/1.jpg"], ("bus", "train"), ("bus", "train")),
    Layout(
        "images and what was drawn of them",
        ["images/1.png", "masks/1.png", "edges/1.png"],
        refusal="images/ holds images without class folders",
    ),
    Layout(
        "images/ of bare images beside other folders",
        ["img/1.png", "sketches/1.png"],
        refusal="img/ holds images without class folders, one folder of images per class is needed; if img is a class",
    ),
    Layout(
        "ImageNet-100 (Kaggle), whose train split is in parts",
        ["train.X1/n01440764/1.JPEG", "train.X2/n01443537/1.JPEG", *_each(_WNIDS, "val.X/{folder}/1.JPEG")],
        refusal="train.X1, train.X2 are parts of one set by their names, no classes; move or link",
    ),
    *(
        Layout(
            f"{parts[0]} and {parts[1]}",
            _each(parts, "{folder}/cat/1.jpg", "{folder}/dog/1.jpg"),
            refusal=f"{parts[0]}, {parts[1]} are parts of one set by their names",
        )
        for parts in (
            ("train_1", "train_2"),
            ("fold1", "fold2"),
            ("Part-A", "Part-B"),
            ("client_data_1", "client_data_2"),
        )
    ),
    Layout(
        "HAM10000 (Kaggle), whose classes are in a table",
        ["HAM10000_images_part_1/1.jpg", "HAM10000_images_part_2/2.jpg", "HAM10000_metadata.csv"],
        refusal="HAM10000_images_part_1, HAM10000_images_part_2 are parts of one set",
    ),
    Layout("parts as classes", ["part1/1.jpg", "part2/1.jpg"], ("part1", "part2"), ("part1", "part2")),
    Layout(
        "tr/ and te/",
        _each(("cat", "dog"), "tr/{folder}/1.jpg", "te/{folder}/2.jpg"),
        refusal="te and tr are splits by their names, no classes; did you mean {root}/tr?",
    ),
    Layout(
        "Office-Home: domains that hold the same classes",
        _each(("Art", "Clipart", "Product"), "{folder}/Bed/1.jpg", "{folder}/Chair/1.jpg"),
        refusal="Art, Clipart, Product all hold Bed, Chair, so they may be parts or domains",
    ),
    Layout(
        "Office-31",
        _each(("amazon", "dslr"), "{folder}/images/bike/1.jpg", "{folder}/images/mug/1.jpg"),
        refusal="amazon, dslr all hold bike, mug, so they may be parts or domains",
    ),
    Layout(
        "PlantVillage (Kaggle)",
        _each(("Apple___scab", "Corn___rust"), "pv/color/{folder}/1.jpg", "pv/grayscale/{folder}/1.jpg"),
        refusal="did you mean one of {root}/pv/color, {root}/pv/grayscale?",
    ),
    Layout(
        "COVID-19 radiography (Kaggle)",
        _each(("COVID", "Normal"), "{folder}/images/1.png", "{folder}/masks/1.png"),
        refusal="{root}/COVID: holds masks/ beside its images",
    ),
    Layout(
        "COVID-19 radiography without masks",
        _each(("COVID", "Normal"), "{folder}/images/1.png"),
        ("COVID", "Normal"),
        ("COVID", "Normal"),
    ),
    Layout(
        "a superclass that has masks",
        ["clothing/mask/1.jpg", "clothing/hat/1.jpg", "fish/ray/1.jpg"],
        ("clothing", "fish"),
        ("clothing", "fish"),
    ),
    Layout(
        "SUN397, classes by their first letters",
        ["a/abbey/1.jpg", "a/airport/1.jpg", "b/bar/1.jpg", "b/beach/indoor/1.jpg"],
        refusal="a, b hold the classes by their first letter (a/abbey)",
    ),
    Layout(
        "... in the archive's folder",
        ["SUN397/a/abbey/1.jpg", "SUN397/a/airport/1.jpg", "SUN397/b/bar/1.jpg"],
        refusal="SUN397: no class folders; give the folder that holds one folder of images per class",
    ),
    Layout("letters as classes", ["a/1.jpg", "b/1.jpg", "b/more/1.jpg"], ("a", "b"), ("a", "b")),
    Layout(
        "Cityscapes",
        _each(("aachen", "bochum"), "leftImg8bit/train/{folder}/1.png", "gtFine/train/{folder}/1.png"),
        refusal="did you mean {root}/leftImg8bit/train?",
    ),
    Layout(
        "a stray image in train/",
        [*_each(("cat", "dog"), "train/{folder}/1.jpg", "val/{folder}/1.jpg"), "train/stray.png"],
        ("cat", "dog"),
        ("cat", "dog"),
        notes=("1 images beside the class folders",),
    ),
    Layout(
        "many stray images in train/",
        ["train/cat.0.jpg", "train/dog.0.jpg", "train/extra/1.jpg"],
        refusal="{root}/train: more images beside its class folders (2) than in them (1)",
    ),
    Layout(
        "class folders beside train/",
        ["train/steam/1.jpg", "train/diesel/1.jpg", "bus/1.jpg", "road/car/1.jpg"],
        refusal="beside train/, which holds class folders, are others with images: bus, road",
    ),
    Layout(
        "a second part beside train/",
        _each(("cat", "dog"), "train/{folder}/1.jpg", "train_2/{folder}/1.jpg", "val/{folder}/1.jpg"),
        refusal="both train/ and train_2/ may be the split; give {root}/train or {root}/train_2",
    ),
    Layout(
        "other images beside train/ and val/",
        [*_each(("cat", "dog"), "train/{folder}/1.jpg", "val/{folder}/1.jpg"), "samples/1.jpg", "code/main.py"],
        ("cat", "dog"),
        ("cat", "dog"),
        notes=("not read, as train/ is taken: samples",),
    ),
    Layout(
        "a run beside train/",
        [
            *_each(("cat", "dog"), "train/{folder}/1.jpg"),
            "runs/0a/config.json",
            "runs/0a/images/cat/1.png",
            "runs/0a/preview.png",
        ],
        ("cat", "dog"),
        ("cat", "dog"),
    ),
    Layout(
        "a run's own folder beside train/",
        [*_each(("cat", "dog"), "train/{folder}/1.jpg"), "run/config.json", "run/images/cat/1.png", "run/preview.png"],
        ("cat", "dog"),
        ("cat", "dog"),
    ),
    Layout(
        "a run and a stray image below",
        ["cat/1.jpg", "dog/1.jpg", "runs/0a/config.json", "runs/0a/images/cat/1.png", "runs/stray.png"],
        refusal="{root}/runs: holds d4m-fast's own runs or cache (runs/0a) beside images (runs/stray.png)",
    ),
    Layout(
        "classes of folders with hashes for names",
        ["cat/0123456789abcdef/1.jpg", "dog/0123456789abcdee/1.jpg"],
        ("cat", "dog"),
        ("cat", "dog"),
    ),
    Layout(
        "Stanford Cars (Kaggle), whose classes are in a .mat",
        ["cars_train/cars_train/1.jpg", "cars_test/cars_test/2.jpg", "cars_annos.mat"],
        refusal="cars_test and cars_train are splits by their names, no classes; one folder of images per class",
    ),
    Layout(
        "CelebA, whose classes are in a table",
        ["img_align_celeba/1.jpg", "list_attr_celeba.txt"],
        ("img_align_celeba",),
        ("img align celeba",),
        notes=("one class only: img_align_celeba",),
    ),
    Layout(
        "... as Kaggle has it",
        ["img_align_celeba/img_align_celeba/1.jpg", "list_attr_celeba.csv"],
        refusal="img_align_celeba: no class folders; give the folder",
    ),
    Layout(
        "Fruits-360",
        [
            *_each(("Apple 1", "Pear"), "fruits-360/Training/{folder}/1.jpg", "fruits-360/Test/{folder}/2.jpg"),
            "fruits-360/test-multiple_fruits/1.jpg",
        ],
        refusal="did you mean {root}/fruits-360/Training?",
    ),
    Layout(
        "FGVC-Aircraft, whose classes are in a table",
        ["fgvc-aircraft-2013b/data/images/1.jpg", "fgvc-aircraft-2013b/data/variants.txt"],
        refusal="fgvc-aircraft-2013b: no class folders; give the folder",
    ),
    Layout(
        "VOC",
        ["JPEGImages/1.jpg", "SegmentationClass/1.png", "SegmentationObject/1.png", "Annotations/1.xml"],
        refusal="JPEGImages/ holds images without class folders",
    ),
    Layout(
        "COCO, a split of bare images beside others",
        ["test2017/1.jpg", "unlabeled2017/1.jpg"],
        refusal="test2017/ holds images without class folders",
    ),
    Layout(
        "GTSRB (Kaggle)",
        [*_each(("0", "1", "10", "2"), "Train/{folder}/1.png"), "Test/1.png", "Meta/0.png", "Train.csv"],
        ("0", "1", "2", "10"),
        ("0", "1", "2", "10"),
    ),
    Layout(
        "MVTec AD",
        _each(
            ("bottle", "cable"),
            "{folder}/train/good/1.png",
            "{folder}/test/broken/1.png",
            "{folder}/ground_truth/1.png",
        ),
        refusal="bottle, cable: no class folders",
    ),
    Layout(
        "DTD",
        ["dtd/images/banded/1.jpg", "dtd/images/dotted/1.jpg", "dtd/imdb/imdb.mat", "dtd/labels/train1.txt"],
        refusal="did you mean {root}/dtd/images?",
    ),
    Layout(
        "chest X-rays (Kaggle), the set once more inside itself",
        _each(
            ("NORMAL", "PNEUMONIA"), "train/{folder}/1.jpeg", "test/{folder}/1.jpeg", "chest_xray/train/{folder}/1.jpeg"
        ),
        ("NORMAL", "PNEUMONIA"),
        ("NORMAL", "PNEUMONIA"),
    ),
    Layout("classes packed one by one", ["n02119789.gz", "n01440764.gz"], refusal="n01440764.gz is still packed"),
    Layout("... in volumes", ["cat/1.jpg", "dog.zip.001", "dog.zip.002"], refusal="dog.zip.001 is still packed"),
    Layout(
        "a packed table beside the classes",
        ["cat/1.jpg", "dog/1.jpg", "labels.csv.gz"],
        ("cat", "dog"),
        ("cat", "dog"),
        notes=("1 .gz",),
    ),
    Layout("a folder without a name that shows", [" /1.jpg", "cat/1.jpg"], refusal="a folder is called ' '"),
    Layout("... that is no prompt", ["_/1.jpg", "cat/1.jpg"], refusal="class '_': its name is no prompt"),
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
