"""Enlarging folded into the convolution after it, against PyTorch's own enlarging and convolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch.nn import functional

from d4m_fast.export.fold import fold_upsampling

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 5, 3, 3, generator=GENERATOR)
BIAS = torch.randn(6, generator=GENERATOR)


class Enlarge(torch.nn.Module):
    def __init__(self, *, scale: float = 2.0, mode: str = "nearest", kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.scale, self.mode, self.stride = scale, mode, stride
        self.weight = torch.nn.Parameter(WEIGHT[:, :, :kernel, :kernel].clone())
        self.bias = torch.nn.Parameter(BIAS.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = functional.interpolate(x, scale_factor=self.scale, mode=self.mode)
        padding = self.weight.shape[2] // 2
        return functional.conv2d(large, self.weight, self.bias, padding=padding, stride=self.stride).relu()


def exported(module: torch.nn.Module, path: Path) -> ir.Model:
    torch.onnx.export(
        module.eval(), (torch.zeros(2, 5, 4, 7),), path, dynamo=True, opset_version=20, input_names=["x"], verbose=False
    )
    return ir.load(path)


def run(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x.numpy()})[0]
    return result


def test_the_same_sums_from_fewer_products(tmp_path: Path) -> None:
    module, x = Enlarge(), torch.randn(2, 5, 4, 7, generator=GENERATOR)
    model = exported(module, tmp_path / "plain.onnx")
    assert fold_upsampling(model) == 1
    ir.save(model, tmp_path / "folded.onnx")
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Conv") == 4
    assert "Resize" not in kinds
    wanted = module(x).detach().numpy()
    np.testing.assert_allclose(run(tmp_path / "folded.onnx", x), wanted, atol=1e-5)
    assert np.abs(wanted).max() > 1


@pytest.mark.parametrize(
    "other", [Enlarge(scale=3.0), Enlarge(mode="bilinear"), Enlarge(kernel=1), Enlarge(stride=2)], ids=str
)
def test_what_is_something_else_stays(tmp_path: Path, other: torch.nn.Module) -> None:
    model = exported(other, tmp_path / "plain.onnx")
    before = [node.op_type for node in model.graph]
    assert fold_upsampling(model) == 0
    assert [node.op_type for node in model.graph] == before
