"""The one seam round everything that computes: a dictionary of tensors in, a dictionary of tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from d4m_fast.config import Precision
from d4m_fast.engine.signature import Signature
from d4m_fast.errors import PreflightError, UsageError

Tensors = dict[str, torch.Tensor]


class Runtime(Protocol):
    """One network, opened and ready.

    Names and axes are those of `signature.SIGNATURES`. Tensors live on `device`; floating-point ones have `dtype`.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors: ...


class FixedBatch:
    """A runtime that takes any batch, from one that takes exactly `rows` of them.

    A batch is computed in pieces; the last is padded with its last row, and what is computed for the padding dropped.
    """

    def __init__(self, runtime: Runtime, signature: Signature, rows: int) -> None:
        self._runtime = runtime
        self._signature = signature
        self._rows = rows
        self.device = runtime.device
        self.dtype = runtime.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        pieces = [self._piece(inputs, start) for start in range(0, self._signature.rows(inputs), self._rows)]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in self._signature.outputs}

    def _piece(self, inputs: Mapping[str, torch.Tensor], start: int) -> Tensors:
        total = self._signature.rows(inputs)
        rows = torch.arange(start, start + self._rows).clamp(max=total - 1)
        batched = self._signature.batched
        piece = {name: x[rows.to(x.device)] if name in batched else x for name, x in inputs.items()}
        return {name: x[: total - start] for name, x in self._runtime(piece).items()}


def place(
    inputs: Mapping[str, torch.Tensor], signature: Signature, device: torch.device, dtype: torch.dtype
) -> Tensors:
    """The inputs in the signature's order, where and as a runtime wants them."""
    return {
        name: inputs[name].to(device=device, dtype=dtype if inputs[name].is_floating_point() else torch.int64)
        for name in signature.inputs
    }


def resolve_device(name: str) -> torch.device:
    """The device of `--device auto|cpu|cuda[:i]`.

    Raises:
        UsageError: not the name of a device.
        PreflightError: the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: not a device; use auto, cpu or cuda") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise PreflightError(f"--device {name}: this machine has no such device for PyTorch; use --device cpu")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """fp16 on GPUs, fp32 on CPUs, unless asked for otherwise.

    Raises:
        UsageError: fp16 on a CPU, where half precision is slower than fp32.
    """
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 is for GPUs; use --precision fp32 on the CPU")
    return torch.float16 if precision == "fp16" else torch.float32
