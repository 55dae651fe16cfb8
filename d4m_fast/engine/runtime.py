"""The one seam round everything that computes: a dictionary of tensors in, a dictionary of tensors out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Protocol

import torch

from d4m_fast.config import Precision
from d4m_fast.data.timing import Mark
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


class InPieces:
    """A runtime that takes any batch, from one that takes at most, or exactly, `rows` of them.

    Where they must be exact, the last piece is padded with its last row, and what is computed for the padding dropped.
    """

    def __init__(self, runtime: Runtime, signature: Signature, rows: int, *, exact: bool) -> None:
        self._runtime = runtime
        self._signature = signature
        self._rows = rows
        self._exact = exact
        self.device = runtime.device
        self.dtype = runtime.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        total = self._signature.rows(inputs)
        if total == self._rows or (total < self._rows and not self._exact):
            return self._runtime(inputs)
        pieces = [self._piece(inputs, start, total) for start in range(0, total, self._rows)]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in self._signature.outputs}

    def _piece(self, inputs: Mapping[str, torch.Tensor], start: int, total: int) -> Tensors:
        length = self._rows if self._exact else min(self._rows, total - start)
        rows = torch.arange(start, start + length).clamp(max=total - 1)
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


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def marks(device: torch.device) -> Mark:
    """Named ranges for NVIDIA's profilers on GPUs, nothing on CPUs."""
    return contextlib.nullcontext if device.type == "cpu" else torch.cuda.nvtx.range


def device_name(device: torch.device) -> str:
    """ "cpu", or the GPU's name and compute capability: what a certificate is for."""
    if device.type == "cpu":
        return "cpu"
    return f"{torch.cuda.get_device_name(device)} ({compute_capability(device)})"


def compute_capability(device: torch.device) -> str:
    """ "sm90" of an H100."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def full_fp32() -> None:
    """fp32 on GPUs without TF32, whose 10 bits PyTorch lets convolutions use unless told not to."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
