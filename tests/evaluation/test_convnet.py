from __future__ import annotations

import pytest
import torch
from torch import nn

from d4m_fast.evaluation.convnet import ConvNet, HalvingPool, Norm, quicken
from d4m_fast.evaluation.teachers import labeller


def published(classes: int, width: int = 128) -> nn.Sequential:
    """ConvNet-3 as printed by DC's code: convolution, affine GroupNorm(width, width), ReLU, AvgPool, three times."""
    layers: list[nn.Module] = []
    for inputs in (3, width, width):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 4 * 4, classes))


def test_parameters_as_published() -> None:
    def count(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    convolutions = 3 * 3 * (3 + 128 + 128) * 128 + 3 * 128
    assert convolutions + 3 * 2 * 128 + 128 * 16 * 10 + 10 == 320_010
    assert count(ConvNet(10)) == count(published(10)) == 320_010


def test_same_function_as_published() -> None:
    ours, theirs = ConvNet(10, width=16), published(10, 16)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), [p.data for p in ours.parameters()], strict=True)))
    x = torch.rand(5, 3, 32, 32)
    assert torch.allclose(ours(x), theirs((x - 0.5) / 0.5), atol=1e-5)


def test_quickened_student_has_the_same_logits_and_gradients() -> None:
    torch.manual_seed(0)
    plain = ConvNet(10, width=8)
    quick = ConvNet(10, width=8)
    quick.load_state_dict(plain.state_dict())
    x = torch.rand(4, 3, 32, 32)
    quicken(quick)
    for model in (plain, quick):
        model(x).square().sum().backward()
    assert torch.allclose(plain(x), quick(x), atol=1e-6)
    for one, two in zip(plain.parameters(), quick.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.allclose(one.grad, two.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (2, 3)])
def test_halving_pool_is_average_pooling(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(HalvingPool()(x), nn.functional.avg_pool2d(x, 2))
    assert torch.autograd.gradcheck(HalvingPool(), (x,))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_labeller_equals_the_teacher(norm: Norm) -> None:
    torch.manual_seed(0)
    teacher = ConvNet(10, width=12, norm=norm, mean=(0.3,) * 3, std=(0.2,) * 3)
    for _ in range(3):
        teacher(torch.rand(20, 3, 32, 32))
    teacher.eval()
    x = torch.rand(20, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(labeller(teacher)(x), teacher(x), atol=1e-4)
