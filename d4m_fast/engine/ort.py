"""The ONNX Runtime runtime: one session, on the CPU or on a GPU, and never on another device than the one asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from d4m_fast.engine.memory import is_exhaustion
from d4m_fast.engine.runtime import InPieces, Runtime, Tensors, place
from d4m_fast.engine.signature import SIGNATURES, Component
from d4m_fast.errors import ModelError, PreflightError

SPINNING: frozenset[Component] = frozenset({"unet"})
"""Networks called back to back, whose threads wait spinning; the others' would take the cores from reading images."""
INSTALL = {"cpu": "pip install 'd4m-fast[cpu]'"}
INSTALL_GPU = "pip install 'd4m-fast[gpu]'"


class OrtRuntime:
    """A session whose inputs and outputs are torch's own memory, bound by address; outputs belong to the caller."""

    def __init__(self, session: Any, component: Component, sizes: Mapping[str, int], device: torch.device) -> None:
        self._session = session
        self._signature = SIGNATURES[component]
        self._sizes = sizes
        self.device = device
        self.dtype = _dtype_of(session, component)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        placed = place(inputs, self._signature, self.device, self.dtype)
        contiguous = {name: x.contiguous() for name, x in placed.items()}
        outputs = self._empty(self._signature.rows(placed))
        binding = self._session.io_binding()
        for bind, tensors in ((binding.bind_input, contiguous), (binding.bind_output, outputs)):
            for name, x in tensors.items():
                bind(name, self.device.type, _index(self.device), _element(x), list(x.shape), x.data_ptr())
        if self.device.type != "cpu":
            torch.cuda.current_stream(self.device).synchronize()
        try:
            self._session.run_with_iobinding(binding)
        except _errors() as error:
            if is_exhaustion(error):
                raise MemoryError(str(error)) from error
            raise
        return outputs

    def _empty(self, rows: int) -> Tensors:
        shapes = {name: self._signature.shape(name, self._sizes, rows) for name in self._signature.outputs}
        return {name: torch.empty(shape, dtype=self.dtype, device=self.device) for name, shape in shapes.items()}


def open_ort(
    path: Path,
    component: Component,
    sizes: Mapping[str, int],
    device: torch.device,
    *,
    threads: int,
    static_batch: int | None = None,
    most_rows: int | None = None,
) -> Runtime:
    """Open an exported ONNX file; `sizes` are the axes' lengths (`Model.sizes`).

    Args:
        static_batch: rows the file was exported for, when it takes no others; other batches are cut and padded.
        most_rows: rows of one call at most; larger batches are cut.

    Raises:
        PreflightError: ONNX Runtime is not installed, or has no provider for the device.
        ModelError: the file cannot be opened, or its tensors are not those of the component.
    """
    session = _session(path, device, threads, spin=component in SPINNING)
    _check(session, component, path)
    runtime = OrtRuntime(session, component, sizes, device)
    rows = most_rows if static_batch is None else static_batch
    if rows is None:
        return runtime
    return InPieces(runtime, SIGNATURES[component], rows, exact=static_batch is not None)


def provider_of(device: torch.device) -> str:
    return "CPUExecutionProvider" if device.type == "cpu" else "CUDAExecutionProvider"


def require_ort(device: torch.device) -> Any:
    """ONNX Runtime's module.

    Raises:
        PreflightError: not installed, or installed without a provider for the device.
    """
    install = INSTALL.get(device.type, INSTALL_GPU)
    try:
        import onnxruntime
    except ImportError as error:
        raise PreflightError(f"--engine onnx needs ONNX Runtime: {install}") from error
    if provider_of(device) not in onnxruntime.get_available_providers():
        raise PreflightError(
            f"--engine onnx on {device}: this ONNX Runtime has no {provider_of(device)}; pip uninstall onnxruntime"
            f" and {install}"
        )
    return onnxruntime


def _session(path: Path, device: torch.device, threads: int, *, spin: bool) -> Any:
    ort = require_ort(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # its warnings are about its own optimiser
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    if device.type != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    wanted = provider_of(device)
    try:
        session = ort.InferenceSession(str(path), options, providers=[(wanted, _provider_options(device))])
    except _errors() as error:
        raise ModelError(f"{path}: ONNX Runtime cannot open it ({str(error).splitlines()[0]})") from error
    if session.get_providers()[0] != wanted:
        raise PreflightError(f"{path}: ONNX Runtime fell back to {session.get_providers()[0]}; {wanted} did not load")
    return session


def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises at a file it cannot open; its errors have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    return (RuntimeError, *(getattr(state, name) for name in names), state.RuntimeException)


def _provider_options(device: torch.device) -> dict[str, str]:
    if device.type == "cpu":
        return {}
    return {
        "device_id": str(_index(device)),
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": "0",
    }


def _check(session: Any, component: Component, path: Path) -> None:
    signature = SIGNATURES[component]
    found = ([x.name for x in session.get_inputs()], [x.name for x in session.get_outputs()])
    if found != (list(signature.inputs), list(signature.outputs)):
        raise ModelError(f"{path}: its tensors {found} are not a {component}'s; export it again")


def _dtype_of(session: Any, component: Component) -> torch.dtype:
    (name, *_) = SIGNATURES[component].outputs
    kind = next(x.type for x in session.get_outputs() if x.name == name)
    return {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}[kind]


def _index(device: torch.device) -> int:
    return 0 if device.index is None else device.index


def _element(x: torch.Tensor) -> Any:
    import numpy as np

    return {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}[x.dtype]
