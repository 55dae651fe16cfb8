"""The interface of everything that computes a network: a dictionary of tensors in, a dictionary of tensors out.

Devices and precisions are resolved here, too.
"""

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
    """A network, opened and ready to run.

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

    Where they must be exact, the last piece is padded with its last row, and the padding's outputs are dropped. A UNet
    of exactly `rows` takes half as many samples; without guidance, the second half of its rows is padding.
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
        # In samples. A call of exactly `rows` has all halves, whether or not this one does.
        length = max(1, self._rows // (self._signature.halves if self._exact else halves))
        if samples <= length and not self._exact:
            return self._runtime(inputs)
        run = partial(self._padded, length) if self._exact else self._runtime
        pieces = torch.split(torch.arange(samples), length)
        return join([run(cut(inputs, self._signature, piece)) for piece in pieces], halves)

    def _padded(self, samples: int, piece: Tensors) -> Tensors:
        signature, unpadded = self._signature, self._signature.samples(piece)
        halves = signature.rows(piece) // unpadded
        padded_samples = torch.arange(samples).clamp(max=unpadded - 1)
        # A half that the call does not have is padded with the rows of the half before it.
        padded_rows = [padded_samples + unpadded * min(half, halves - 1) for half in range(signature.halves)]
        unpadded_rows = [torch.arange(unpadded) + half * samples for half in range(halves)]
        outputs = self._runtime(_indexed(piece, signature, padded_samples, torch.cat(padded_rows)))
        rows = torch.cat(unpadded_rows)
        return {name: x[rows.to(x.device)] for name, x in outputs.items()}


def cut(inputs: Mapping[str, torch.Tensor], signature: Signature, samples: torch.Tensor) -> Tensors:
    """Return the inputs of some samples, by index, in both halves of guidance where there are two."""
    total = signature.samples(inputs)
    halves = range(signature.rows(inputs) // total)
    return _indexed(inputs, signature, samples, torch.cat([samples + half * total for half in halves]))


def join(pieces: Sequence[Mapping[str, torch.Tensor]], halves: int) -> Tensors:
    """Return the outputs of pieces that were cut as those of one call: each half of all pieces together."""
    if len(pieces) == 1:
        return dict(pieces[0])
    outputs: Tensors = {}
    for name in pieces[0]:
        chunks = [piece[name].chunk(halves) for piece in pieces]
        rows = list[torch.Tensor]()
        for half in range(halves):
            rows += [chunk[half] for chunk in chunks]
        outputs[name] = torch.cat(rows)
    return outputs


def clone(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return copies of tensors, in memory that nothing else writes to."""
    return {name: x.clone() for name, x in tensors.items()}


def _indexed(
    inputs: Mapping[str, torch.Tensor], signature: Signature, samples: torch.Tensor, rows: torch.Tensor
) -> Tensors:
    """Return the inputs with these samples or rows, as their first axis is; those without axes stay."""
    indices = {SAMPLES: samples, BATCH: rows}
    selected: Tensors = {}
    for name, axes in signature.axes_of(inputs).items():
        x = inputs[name]
        selected[name] = x[indices[axes[0]].to(x.device)] if axes else x
    return selected


def place(
    inputs: Mapping[str, torch.Tensor], signature: Signature, device: torch.device, dtype: torch.dtype
) -> Tensors:
    """Return the inputs in the signature's order, on a runtime's device and in its dtype."""
    tensors: Tensors = {}
    for name in signature.axes_of(inputs):
        # A timestep between two noise levels has more digits than half precision.
        float_dtype = torch.float32 if name == "timestep" else dtype
        x = inputs[name]
        tensors[name] = x.to(device=device, dtype=float_dtype if x.is_floating_point() else torch.int64)
    return tensors


def resolve_device(name: str) -> torch.device:
    """Return the device of `--device auto|cpu|cuda[:i]`.

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
    # Of other kinds that PyTorch knows (mps, xpu) there are none: no network is run on them.
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(device.type, 0)
    if (0 if device.index is None else device.index) >= count:
        raise PreflightError(f"--device {name}: this machine has no such device for PyTorch; use --device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # TensorRT and CuPy work on the current one
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of `--precision`: for "auto" fp16 on GPUs and fp32 on CPUs.

    Raises:
        UsageError: fp16 on a CPU, where half precision is slower than fp32.
    """
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 is for GPUs; use --precision fp32 on the CPU")
    return torch.float16 if precision == "fp16" else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work; a CPU's calls return when they have."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def marks(device: torch.device) -> Mark:
    """Return the context manager that names ranges for NVIDIA's profilers on GPUs, and does nothing on CPUs."""
    return contextlib.nullcontext if device.type == "cpu" else torch.cuda.nvtx.range


def device_name(device: torch.device) -> str:
    """Return "cpu", or the GPU's name and compute capability, for which certificates hold."""
    if device.type == "cpu":
        return "cpu"
    return f"{torch.cuda.get_device_name(device)} ({compute_capability(device)})"


def processor_name() -> str:
    """Return the CPU's model, where the system tells it, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def hardware(device: torch.device) -> str:
    """Return the name of what computes: runs with equal bytes, and figures, are of one hardware."""
    return processor_name() if device.type == "cpu" else device_name(device)


def compute_capability(device: torch.device) -> str:
    """Return the compute capability as TensorRT writes it: "sm90" for an H100."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def full_fp32() -> None:
    """Switch TF32 off, whose 10 bits PyTorch lets fp32 convolutions on GPUs use unless told not to."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
