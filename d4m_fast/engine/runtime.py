"""The one seam round everything that computes: a dictionary of tensors in, a dictionary of tensors out."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from d4m_fast.config.choices import Precision
from d4m_fast.engine.signature import BATCH, SAMPLES, Component, Signature
from d4m_fast.errors import PreflightError, UsageError
from d4m_fast.flow.stopwatch import Mark

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


OpenRuntime = Callable[[Component], Runtime]


class InPieces:
    """A runtime that takes any batch, from one that takes at most, or exactly, `rows` of them.

    Where they must be exact, the last piece is padded with its last row, and what is computed for the padding dropped.
    An exact UNet takes half as many samples; without guidance, the second half of its rows is padding.
    """

    def __init__(self, runtime: Runtime, signature: Signature, rows: int, *, exact: bool) -> None:
        self._runtime = runtime
        self._signature = signature
        self._rows = rows
        self._exact = exact
        self.device = runtime.device
        self.dtype = runtime.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        samples = self._signature.samples(inputs)
        halves = self._signature.rows(inputs) // samples
        length = max(1, self._rows // (self._signature.halves if self._exact else halves))
        if samples <= length and not self._exact:
            return self._runtime(inputs)
        run = partial(self._padded, length) if self._exact else self._runtime
        pieces = torch.split(torch.arange(samples), length)
        return join([run(cut(inputs, self._signature, piece)) for piece in pieces], halves)

    def _padded(self, samples: int, piece: Tensors) -> Tensors:
        signature, real = self._signature, self._signature.samples(piece)
        halves, filled = signature.rows(piece) // real, torch.arange(samples).clamp(max=real - 1)
        of_row = torch.cat([filled + real * min(half, halves - 1) for half in range(signature.halves)])
        kept = torch.cat([torch.arange(real) + half * samples for half in range(halves)])
        outputs = self._runtime(_indexed(piece, signature, filled, of_row))
        return {name: x[kept.to(x.device)] for name, x in outputs.items()}


def cut(inputs: Mapping[str, torch.Tensor], signature: Signature, samples: torch.Tensor) -> Tensors:
    """The inputs of some samples, by index, in both halves of guidance where there are two."""
    total = signature.samples(inputs)
    halves = range(signature.rows(inputs) // total)
    return _indexed(inputs, signature, samples, torch.cat([samples + half * total for half in halves]))


def join(pieces: Sequence[Mapping[str, torch.Tensor]], halves: int) -> Tensors:
    """The outputs of pieces that were cut, each half of all of them together."""
    if len(pieces) == 1:
        return dict(pieces[0])
    names = pieces[0]
    return {n: torch.cat([p[n].chunk(halves)[half] for half in range(halves) for p in pieces]) for n in names}


def _indexed(
    inputs: Mapping[str, torch.Tensor], signature: Signature, samples: torch.Tensor, rows: torch.Tensor
) -> Tensors:
    of = {SAMPLES: samples, BATCH: rows}
    first_axes = {name: axes[0] for name, axes in signature.axes_of(inputs).items() if axes}
    return {name: x[of[first_axes[name]].to(x.device)] if name in first_axes else x for name, x in inputs.items()}


def place(
    inputs: Mapping[str, torch.Tensor], signature: Signature, device: torch.device, dtype: torch.dtype
) -> Tensors:
    """The inputs in the signature's order, where and as a runtime wants them."""
    return {
        name: inputs[name].to(device=device, dtype=_dtype(name, inputs[name], dtype))
        for name in signature.axes_of(inputs)
    }


def _dtype(name: str, x: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """The runtime's, or int64; a timestep between two noise levels has digits that half precision has not."""
    if not x.is_floating_point():
        return torch.int64
    return torch.float32 if name == "timestep" else dtype


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
    if device.type == "cuda":
        torch.cuda.set_device(device)  # TensorRT and CuPy work on the current one
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


def processor_name() -> str:
    """The CPU's model, where the system tells it; else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def hardware(device: torch.device) -> str:
    """The name of what computes: bytes and figures hold on this."""
    return processor_name() if device.type == "cpu" else device_name(device)


def compute_capability(device: torch.device) -> str:
    """ "sm90" of an H100."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def full_fp32() -> None:
    """fp32 on GPUs without TF32, whose 10 bits PyTorch lets convolutions use unless told not to."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
