"""Students by name: those of the libraries but for the first layers, at every size."""

from __future__ import annotations

import pytest
import timm
import torch
from torchvision import models
from torchvision.transforms.v2 import functional as V

from d4m_fast.errors import UsageError
from d4m_fast.evaluation.convnet import IMAGENET_MEAN, IMAGENET_STD, ConvNet, Normalised
from d4m_fast.evaluation.stems import patch_of
from d4m_fast.evaluation.students import build_student
from d4m_fast.planning.calculate import trace_student

FIRST_LAYERS = {
    "resnet18": {"conv1.weight"},
    "shufflenet_v2_x0_5": set(),  # 3x3 already
    "mobilenet_v3_small": set(),
    "squeezenet1_0": {"features.0.weight"},
    "vit_b_32": {"conv_proj.weight", "encoder.pos_embedding"},
    "convnext_tiny": {"features.0.0.weight"},
    "timm/vit_tiny_patch16_224": {"patch_embed.proj.weight", "pos_embed"},
    "timm/tf_efficientnet_lite0": set(),
    "timm/resnet18": {"conv1.weight"},
}
"""Of networks at 32 pixels: the only weights whose shapes are not those at 224."""


def student(name: str, size: int, classes: int = 7) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_student(name, classes=classes, image_size=size, width=8).eval()


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "timm/mobilenetv3_small_100", "timm/vit_tiny_patch16_224"]
)
def test_at_224_pixels_it_is_the_librarys_own(name: str) -> None:
    ours = student(name, 224)
    torch.manual_seed(0)
    if name.startswith("timm/"):
        theirs = timm.create_model(name.removeprefix("timm/"), num_classes=7)
    else:
        theirs = models.get_model(name, num_classes=7)
    pixels = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs.eval()(V.normalize(pixels, IMAGENET_MEAN, IMAGENET_STD))
        assert torch.allclose(ours(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "changed"), FIRST_LAYERS.items())
def test_small_images_change_the_first_layers_only(name: str, changed: set[str]) -> None:
    with torch.device("meta"):
        small, large = student(name, 32), student(name, 224)
    assert isinstance(small, Normalised)
    assert isinstance(large, Normalised)
    theirs = {key: value.shape for key, value in large.network.state_dict().items()}
    ours = {key: value.shape for key, value in small.network.state_dict().items()}
    assert {key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)} == changed


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize(
    "name",
    [
        *("convnet3", "convnet-2-5", "convnet-4-6-bn", "alexnet", "vgg11_bn", "densenet121", "googlenet", "mnasnet0_5"),
        *("swin_t", "efficientnet_b0", "timm/swin_tiny_patch4_window7_224", "timm/levit_128s"),
    ],
)
def test_every_family_takes_small_images(name: str, size: int) -> None:
    if name == "timm/levit_128s" and size == 28:
        pytest.skip("LeViT halves 28 pixels four times, to a fraction")
    with torch.device("meta"):
        assert student(name, size)(torch.rand(2, 3, size, size)).shape == (2, 7)


def test_a_small_resnet_is_that_of_cifar_10() -> None:
    """He et al. (2016), section 4.2: no pooling, so that the last of four stages is 4x4 of 32 pixels."""
    with torch.device("meta"):
        network = student("resnet18", 32)
        sides = list[int]()
        for stage in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            layer = network.get_submodule(f"network.{stage}")
            layer.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
        network(torch.zeros(1, 3, 32, 32))
    assert sides == [32, 32, 32, 16, 8, 4]


def test_a_convnet_is_named_by_depth_and_width() -> None:
    named, published = student("convnet-3-8", 32), student("convnet3", 32)
    assert isinstance(named, ConvNet)
    assert {k: v.shape for k, v in named.state_dict().items()} == {
        k: v.shape for k, v in published.state_dict().items()
    }
    assert "blocks.0.1.running_mean" in student("convnet-2-8-bn", 32).state_dict()


@pytest.mark.parametrize(("size", "patch"), [(28, 4), (32, 4), (48, 6), (56, 8), (64, 8), (29, 1)])
def test_patches_divide_the_image(size: int, patch: int) -> None:
    assert patch_of(size) == patch


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("resnet8", 32, "Did you mean 'resnet18'?"),
        ("timm/vit_tinny_patch16_224", 32, "Did you mean 'vit_tiny_patch16_224'?"),
        ("convnet-0-8", 32, "no network"),
        ("convnet-6-8", 32, "6 halvings leave no pixel"),
        ("maxvit_t", 32, "does not take images of 32 pixels"),
        ("inception_v3", 32, "does not take images of 32 pixels"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name: str, size: int, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        student(name, size)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf", "timm/vit_tiny_patch16_224"])
def test_a_plan_counts_every_student(name: str) -> None:
    parameters = sum(value.numel() for value in student(name, 64).parameters())
    assert trace_student(name, 64, 7).parameters == parameters
