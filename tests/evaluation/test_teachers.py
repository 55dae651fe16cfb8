"""Teachers from directories, files and caches, and whose classes they label."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torchvision import models
from torchvision.transforms.v2 import functional as V

from d4m_fast.errors import ModelError
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.imagenet import imagenet_indices, imagenet_wnids
from d4m_fast.evaluation.students import build_student
from d4m_fast.evaluation.teachers import Teacher, labeller, load_teacher, open_teacher, save_teacher
from d4m_fast.sources.class_names import imagenet_labels
from d4m_fast.sources.records import ClassInfo

ABC = ("a", "b", "c")


def infos(*folders: str) -> list[ClassInfo]:
    return [ClassInfo(index, folder, f"a {folder}") for index, folder in enumerate(folders)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_teacher(ConvNet(3, width=8, norm="batch", mean=(0.3,) * 3), tmp_path / "teacher", ABC)
    return tmp_path / "teacher"


def test_round_trip_keeps_the_function(tmp_path: Path) -> None:
    model = ConvNet(2, width=4, norm="batch", mean=(0.3,) * 3, std=(0.2,) * 3, image_size=28).eval()
    save_teacher(model, tmp_path, ["a", "b"], image_size=28)
    pixels = torch.rand(3, 3, 28, 28)
    teacher = load_teacher(tmp_path)
    assert torch.equal(teacher.network(pixels), model(pixels))
    assert torch.equal(teacher.label(pixels), labeller(model)(pixels))
    assert (teacher.classes, teacher.image_size) == (("a", "b"), 28)
    assert not teacher.network.training
    assert not any(p.requires_grad for p in teacher.network.parameters())


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "timm/vit_tiny_patch16_224"])
def test_round_trip_of_a_librarys_network(tmp_path: Path, arch: str) -> None:
    model = build_student(arch, classes=3, image_size=32, width=1).eval()
    save_teacher(model, tmp_path, ABC, image_size=32, arch=arch)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_teacher(tmp_path).label(pixels), model(pixels))


def test_saved_weights_are_named_as_the_library_names_them(tmp_path: Path) -> None:
    model = build_student("resnet18", classes=3, image_size=32, width=1)
    save_teacher(model, tmp_path, ABC, image_size=32, arch="resnet18")
    assert load_file(tmp_path / "model.safetensors").keys() == models.resnet18(num_classes=3).state_dict().keys()


def test_half_precision_is_widened(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    halves = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save_file(halves, folder / "model.safetensors")
    assert {v.dtype for v in load_teacher(folder).network.state_dict().values()} == {torch.float32, torch.int64}


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": None}, "has no 'width'"),
        ({"width": "wide"}, "not a teacher's config"),
        ({"norm": "layer"}, "not a teacher's config"),
        ({"classes": 3}, "not a teacher's config"),
        ({"classes": ["a", "b"]}, r"head\.\w+ has shape"),
        ({"width": 16}, "has shape"),
        ({"depth": 4}, "missing"),
        ({"depth": 2}, "not part of the teacher"),
        ({"norm": "instance"}, "not part of the teacher"),
        ({"arch": "resnet8"}, "Did you mean 'resnet18'"),
        ({"arch": "resnet18"}, "has no 'mean'"),
        ({"arch": "resnet18", "mean": [0, 0, 0], "std": [1, 1, 0]}, "std"),
        ({"arch": "resnet18", "mean": [0, 0, 0], "std": [1, 1, 1]}, "is not part of the teacher"),
    ],
)
def test_config_that_does_not_fit(folder: Path, change: dict[str, object], said: str) -> None:
    edit(folder, **change)
    with pytest.raises(ModelError, match=said) as refused:
        load_teacher(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damaged_files(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    raw = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(raw[: len(raw) // 2] if damage == "cut" else b"")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")) as refused:
        load_teacher(folder)
    assert "\n" not in str(refused.value)


def test_classes_must_fit_the_head(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="2 classes"):
        save_teacher(ConvNet(3, width=4), tmp_path, ["a", "b"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_logits_that_are_not_finite(folder: Path, value: float) -> None:
    teacher = load_teacher(folder)
    with torch.no_grad():
        teacher.network.get_parameter("head.bias")[1] = value
    with pytest.raises(ModelError, match="its logits are NaN or infinite"):
        teacher.label(torch.rand(2, 3, 32, 32))
    save_teacher(teacher.network, folder, ABC)
    with pytest.raises(ModelError, match="holds NaN or infinity"):
        load_teacher(folder)


def test_classes_are_matched_by_name_whatever_their_order(folder: Path) -> None:
    pixels = torch.rand(4, 3, 32, 32)
    logits = open_teacher(str(folder), infos("a", "b", "c")).label(pixels)
    assert torch.equal(open_teacher(str(folder), infos("c", "a")).label(pixels), logits[:, [2, 0]])
    # Of other names the count is all that can be compared; the check on test images tells the rest.
    assert torch.equal(open_teacher(str(folder), infos("x", "y", "z")).label(pixels), logits)


@pytest.mark.parametrize(
    ("name", "folders", "resolution", "said"),
    [
        ("{folder}", ("x", "y"), None, "knows 3 classes, the images have 2 of other names"),
        ("{folder}", ABC, 64, "takes images of 32 pixels a side, not 64"),
        ("bundled", ABC, None, "knows Fashion-MNIST's classes only"),
        ("nowhere", ABC, None, "no such directory"),
        ("{folder}+bundled", ABC, None, "differ in classes"),
        ("resnet8=x.pth", ABC, None, "Did you mean 'resnet18'"),
        ("resnet18=nowhere.safetensors", ABC, None, "nowhere.safetensors: the teacher's weights cannot be read"),
        ("resnet18={folder}/model.safetensors", ABC, None, "is not part of the teacher"),
        ("resnet18={folder}/config.json", ABC, None, "config.json: the teacher's weights cannot be read"),
    ],
)
def test_teachers_that_are_refused(
    folder: Path, name: str, folders: tuple[str, ...], resolution: int | None, said: str
) -> None:
    with pytest.raises(ModelError) as refused:
        open_teacher(name.format(folder=folder), infos(*folders), resolution=resolution)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_ensemble_averages_logits(tmp_path: Path) -> None:
    pixels, logits = torch.rand(4, 3, 32, 32), []
    for seed in range(2):
        torch.manual_seed(seed)
        model = ConvNet(3, width=4).eval()
        save_teacher(model, tmp_path / str(seed), ABC)
        logits.append(model(pixels))
    teacher = open_teacher(f"{tmp_path / '0'}+{tmp_path / '1'}", infos(*ABC))
    assert torch.allclose(teacher.label(pixels), (logits[0] + logits[1]) / 2, atol=1e-6)
    assert teacher.sha256 not in (load_teacher(tmp_path / "0").sha256, load_teacher(tmp_path / "1").sha256)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_torchvision_from_a_file(tmp_path: Path, suffix: str) -> None:
    network = models.mobilenet_v3_small(num_classes=3).eval()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, path)
    else:
        save_file(network.state_dict(), path)
    teacher = open_teacher(f"mobilenet_v3_small={path}", infos(*ABC))
    pixels = torch.rand(2, 3, 224, 224)
    preset = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms()
    with torch.inference_mode():
        expected = network(V.normalize(pixels, preset.mean, preset.std))
    assert torch.allclose(teacher.label(pixels), expected, atol=1e-5)
    with pytest.raises(ModelError, match="knows 3 classes, the images have 2"):
        open_teacher(f"mobilenet_v3_small={path}", infos("a", "b"))


class Trap:
    """Pickled code, which must not run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trapped"),)  # type: ignore[return-value]


def test_a_file_that_holds_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, "weights.pth")
    with pytest.raises(ModelError, match=r"weights\.pth: the teacher's weights cannot be read"):
        open_teacher("resnet18=weights.pth", infos(*ABC))
    assert not Path("trapped").exists()


def test_torchvisions_cache_is_used_and_never_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ModelError, match=r"not fetched unasked; get them with python -c .*IMAGENET1K_V1"):
        open_teacher("squeezenet1_1", infos(*imagenet_wnids()[:5]))
    network = models.squeezenet1_1().eval()
    (tmp_path / "checkpoints").mkdir()
    weights = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    torch.save(network.state_dict(), tmp_path / "checkpoints" / Path(weights.url).name)
    teacher = open_teacher("squeezenet1_1", infos(*imagenet_wnids()[:5]))
    assert (teacher.classes, teacher.columns) == (imagenet_wnids(), (0, 1, 2, 3, 4))
    assert teacher.label(torch.rand(1, 3, 224, 224)).shape == (1, 5)


def test_timms_cache_is_used_and_never_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = tmp_path / "model.safetensors", []

    def cached(repository: str, file: str) -> str | None:
        asked.append((repository, file))
        return str(path) if path.exists() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    with pytest.raises(
        ModelError, match=r"get them with hf download timm/mobilenetv3_small_050\.\w+ model\.safetensors"
    ):
        open_teacher("timm/mobilenetv3_small_050", infos(*imagenet_wnids()))
    network = timm.create_model("mobilenetv3_small_050").eval()
    save_file(network.state_dict(), path)
    teacher = open_teacher("timm/mobilenetv3_small_050", infos(*imagenet_wnids()))
    assert asked[0] == asked[1] == (timm.get_pretrained_cfg("mobilenetv3_small_050").hf_hub_id, "model.safetensors")
    assert teacher.columns is None
    pixels, config = torch.rand(1, 3, 224, 224), SimpleNamespace(**network.default_cfg)
    with torch.inference_mode():
        expected = network(V.normalize(pixels, config.mean, config.std))
    assert torch.allclose(teacher.label(pixels), expected, atol=1e-5)


def test_torchvisions_categories_are_our_classes_in_order() -> None:
    categories = models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert imagenet_indices(categories) == tuple(range(1000))
    assert imagenet_indices(imagenet_wnids()) == tuple(range(1000))
    assert imagenet_indices(list(imagenet_labels().values())[:100]) == tuple(range(100))


@pytest.mark.parametrize(
    ("folders", "indices"),
    [
        (["n03126707", "n02012849"], (517, 134)),
        (["n02012849_crane", "n03126707-crane"], (134, 517)),
        (["crane", "crane bird"], (517, 134)),
        (["maillot", "maillot, tank suit"], (638, 639)),
        (["cardigan", "Cardigan"], (474, 264)),
        (["Tibetan_terrier", "TENCH"], (200, 0)),
        (["tench", "sofa bed"], None),
        (["n00000000"], None),
        (["3", "7"], None),
        (sorted(map(str, range(1000))), tuple(int(name) for name in sorted(map(str, range(1000))))),
    ],
)
def test_folders_are_classes_of_imagenet(folders: list[str], indices: tuple[int, ...] | None) -> None:
    assert imagenet_indices(folders) == indices


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["crane", "tench"], r"'crane' may be ImageNet's class 134 \(n02012849\) or 517 \(n03126707\)"),
        (["tench", "Tinca tinca"], "'tench' and 'Tinca tinca' are both ImageNet's class 0"),
    ],
)
def test_folders_that_are_not_told_apart(folders: list[str], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        imagenet_indices(folders)


def test_a_teacher_moves_between_devices(folder: Path) -> None:
    assert isinstance(load_teacher(folder).to(torch.device("cpu")), Teacher)
