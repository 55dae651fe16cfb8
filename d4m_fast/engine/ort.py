"""The ONNX Runtime runtime: sessions on the CPU or on a GPU, and never on another device than the one asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from d4m_fast.engine.artifacts import Artifact
from d4m_fast.engine.libraries import one_line
from d4m_fast.engine.memory import is_exhaustion
from d4m_fast.engine.runtime import InPieces, OpenRuntime, Runtime, Tensors, clone, cut, join, place
from d4m_fast.engine.signature import SIGNATURES, Component
from d4m_fast.errors import ModelError, PreflightError

# Networks that are called back to back, whose threads wait by spinning. Threads of the others would take the cores from
# the threads that read images.
SPINNING: frozenset[Component] = frozenset({"unet"})
# Samples per thread from which a network is faster when each thread has samples of its own; 1 for networks that are not
# listed. Threads that share a layer wait for one another, which costs most where other threads want the cores, as the
# readers do beside the encoder.
FEWEST: Mapping[Component, int] = MappingProxyType({"unet": 3})
# Samples per thread from which an uneven share of them costs less than threads that wait for one another.
MANY = 4
PROMPTS = "hidden_states"
INSTALL = {"cpu": "pip install 'd4m-fast[cpu]'"}
INSTALL_GPU = "pip install 'd4m-fast[gpu]'"
# Values that the network computes from its prompts alone, ONNX Runtime's own, by name.
Context = Mapping[str, Any]
# ONNX Runtime is told the type of a buffer by NumPy's.
_NUMPY_TYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}
_FLOAT_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class OrtRuntime:
    """An exported network on a CPU or a GPU; outputs belong to the caller.

    On a CPU the samples of a large call are shared out to the threads. These run one session side by side, each alone,
    so that no part of the network is serial. Few samples run together, and all threads share each layer.
    """

    def __init__(
        self, file: OrtFile, component: Component, sizes: Mapping[str, int], *, threads: int, shared: bool
    ) -> None:
        self._file = file
        self._signature = SIGNATURES[component]
        self._sizes = sizes
        self._threads = threads if file.device.type == "cpu" else 1
        self._shared = shared and self._threads > 1
        self._least = FEWEST.get(component, 1) * self._threads
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=component)
        self._context_prompts: list[torch.Tensor] = []
        self._context_values: list[Context] = []
        self.device, self.dtype = file.device, file.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        inputs = place(inputs, self._signature, self.device, self.dtype)
        samples = self._signature.samples(inputs)
        uneven = samples % self._threads and samples < MANY * self._threads
        if not self._shared or samples < self._least or uneven:
            return self._run(inputs, self._contexts([inputs], self._threads)[0], self._threads)
        shares = torch.arange(samples).tensor_split(self._threads)
        pieces = [cut(inputs, self._signature, share) for share in shares]
        outputs = self._pool.map(partial(self._run, threads=1), pieces, self._contexts(pieces, 1))
        return join(list(outputs), self._signature.rows(inputs) // samples)

    def _run(self, inputs: Tensors, context: Context, threads: int) -> Tensors:
        rows = self._signature.rows(inputs)
        shapes = {name: self._signature.shape(name, self._sizes, rows) for name in self._signature.outputs}
        if context:  # stands for the prompts, which the file then does not take
            inputs = {name: x for name, x in inputs.items() if name != PROMPTS}
        return self._file.run(inputs, context, shapes, threads)

    def _contexts(self, pieces: Sequence[Tensors], threads: int) -> list[Context]:
        """Return each piece's context; it is computed anew only where the prompts change, so once for a schedule."""
        if self._file.context is None:
            return [{}] * len(pieces)
        prompts = [piece[PROMPTS] for piece in pieces]
        same_number = len(prompts) == len(self._context_prompts)
        if not same_number or not all(map(torch.equal, prompts, self._context_prompts)):
            self._context_prompts = [states.clone() for states in prompts]
            self._context_values = list(self._pool.map(partial(self._file.run_context, threads=threads), prompts))
        return self._context_values


class OrtFile:
    """An exported file, with a session for each number of threads; torch's own memory is bound to it by address.

    Attributes:
        context: the file beside a UNet's that computes from the prompts what every step reads; None without one.
    """

    def __init__(
        self, path: Path, component: Component, device: torch.device, *, threads: int, captured: bool = False
    ) -> None:
        context = path.with_name(f"{path.stem}.context.onnx")
        self.device = device
        self.context = context if context.is_file() else None
        self._path = path
        self._component: Component = component
        self._captured = captured and self.context is None
        self._captured_buffers: tuple[Any, Tensors, Tensors] | None = None
        self._sessions: dict[tuple[Path, int], Any] = {}
        self._require_names(threads)
        types = {tensor.name: tensor.type for tensor in self._session(path, threads).get_outputs()}
        self.dtype = _FLOAT_TYPES[types[next(iter(SIGNATURES[component].outputs))]]

    def run(self, inputs: Tensors, context: Context, shapes: Mapping[str, tuple[int, ...]], threads: int) -> Tensors:
        """Compute the outputs, of these shapes."""
        session = self._session(self._path, threads)
        if self._captured:
            return self._replay(session, inputs, shapes)
        binding, outputs = session.io_binding(), self._empty(shapes)
        bound_inputs = self._bind(binding, inputs, outputs)
        for name, value in context.items():
            binding.bind_ortvalue_input(name, value)
        self._launch(session, binding)
        del bound_inputs  # their addresses had to stay valid until here
        return outputs

    def run_context(self, prompts: torch.Tensor, threads: int) -> Context:
        """Compute the context of a call's prompts."""
        assert self.context is not None
        session = self._session(self.context, threads)
        binding = session.io_binding()
        bound_inputs = self._bind(binding, {PROMPTS: prompts}, {})
        names = _names(session.get_outputs())
        for name in names:
            binding.bind_output(name, self.device.type, _index(self.device))
        self._launch(session, binding)
        del bound_inputs
        return dict(zip(names, binding.get_outputs(), strict=True))

    def _replay(self, session: Any, inputs: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
        """Compute on the same memory each time, as a captured CUDA graph needs it."""
        if self._captured_buffers is None:
            binding, outputs = session.io_binding(), self._empty(shapes)
            # Clones, because the buffers are written to, and the caller's tensors must not be.
            buffers = self._bind(binding, clone(inputs), outputs)
            self._captured_buffers = binding, buffers, outputs
        binding, buffers, outputs = self._captured_buffers
        for name, x in inputs.items():
            buffers[name].copy_(x)
        self._launch(session, binding)
        return clone(outputs)

    def _bind(self, binding: Any, inputs: Tensors, outputs: Tensors) -> Tensors:
        """Bind tensors by their addresses, and return the inputs that were bound, which the caller must keep alive."""
        contiguous = {name: x.contiguous() for name, x in inputs.items()}
        for bind, tensors in ((binding.bind_input, contiguous), (binding.bind_output, outputs)):
            for name, x in tensors.items():
                bind(name, self.device.type, _index(self.device), _NUMPY_TYPES[x.dtype], list(x.shape), x.data_ptr())
        return contiguous

    def _launch(self, session: Any, binding: Any) -> None:
        if self.device.type != "cpu":
            # The session has a stream of its own, which does not wait for what PyTorch has queued on the inputs.
            torch.cuda.current_stream(self.device).synchronize()
        try:
            session.run_with_iobinding(binding)
        except _errors() as error:
            if is_exhaustion(error):
                raise MemoryError(str(error)) from error
            raise

    def _empty(self, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
        empty = partial(torch.empty, dtype=self.dtype, device=self.device)
        return {name: empty(shape) for name, shape in shapes.items()}

    def _session(self, path: Path, threads: int) -> Any:
        if (path, threads) not in self._sessions:
            spin = self._component in SPINNING and threads > 1
            self._sessions[path, threads] = _open(path, self.device, threads, spin=spin, captured=self._captured)
        return self._sessions[path, threads]

    def _require_names(self, threads: int) -> None:
        """Refuse a file whose tensors have other names than the component's."""
        signature = SIGNATURES[self._component]
        expected_inputs = list(signature.inputs)
        if self.context is not None:  # the network then reads what the context returns in place of the prompts
            expected_inputs.remove(PROMPTS)
            expected_inputs += _names(self._session(self.context, threads).get_outputs())
        session = self._session(self._path, threads)
        names = _names(session.get_inputs()), _names(session.get_outputs())
        if (sorted(names[0]), names[1]) != (sorted(expected_inputs), list(signature.outputs)):
            raise ModelError(f"{self._path}: its tensors {names} are not a {self._component}'s; export it again")


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
        static_batch: rows the file was exported for, when it takes no others; other batches are cut and padded, and
            on a GPU each call replays a CUDA graph.
        most_rows: rows of one call at most; larger batches are cut.

    Raises:
        PreflightError: ONNX Runtime is not installed, or has no provider for the device.
        ModelError: the file cannot be opened, or its tensors are not those of the component.
    """
    static, shared = static_batch is not None, static_batch is None and device.type == "cpu"
    captured = static and device.type != "cpu"
    # A shared session is run by all threads at once, so each of its runs has one.
    file = OrtFile(path, component, device, threads=1 if shared else threads, captured=captured)
    runtime = OrtRuntime(file, component, sizes, threads=threads, shared=shared)
    rows = static_batch if static else most_rows
    return runtime if rows is None else InPieces(runtime, SIGNATURES[component], rows, exact=static)


def ort_opener(artifact: Artifact, sizes: Mapping[str, int], device: torch.device) -> OpenRuntime:
    """Return the function that opens each network of an exported set, with as many threads as PyTorch is set to."""
    threads = torch.get_num_threads()

    def open_runtime(component: Component) -> Runtime:
        return open_ort(
            artifact.onnx(component),
            component,
            sizes,
            device,
            threads=threads,
            static_batch=artifact.static_rows(component),
            most_rows=artifact.most_rows(component),
        )

    return open_runtime


def provider_of(device: torch.device) -> str:
    return "CPUExecutionProvider" if device.type == "cpu" else "CUDAExecutionProvider"


def require_ort(device: torch.device) -> Any:
    """Import and return ONNX Runtime.

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


def describe_ort(device: torch.device) -> str:
    """Say what ONNX Runtime is ready for.

    Raises:
        PreflightError: it does not run here.
    """
    require_ort(device)
    return f"on {device}, for models that d4m-fast export has certified"


def _open(path: Path, device: torch.device, threads: int, *, spin: bool, captured: bool) -> Any:
    ort = require_ort(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: its warnings are about its own optimiser
    # CPUs compute with denormal numbers many times slower than with others.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    provider, provider_options = provider_of(device), dict[str, str]()
    if device.type != "cpu":
        provider_options = {
            "device_id": str(_index(device)),
            "cudnn_conv_algo_search": "EXHAUSTIVE",  # its default: all algorithms are timed, at the first call
            "use_tf32": "0",  # as `runtime.full_fp32` has it for PyTorch
            "enable_cuda_graph": str(int(captured)),
        }
        # A free batch's shapes are computed on the CPU by design (onnxruntime #17930); a graph may have no such part.
        if captured:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=[(provider, provider_options)])
    except _errors() as error:
        raise ModelError(f"{path}: ONNX Runtime cannot open it ({one_line(error)})") from error
    # ONNX Runtime falls back to the CPU with no more than a warning.
    if session.get_providers()[0] != provider:
        raise PreflightError(f"{path}: ONNX Runtime fell back to {session.get_providers()[0]}; {provider} did not load")
    return session


def _errors() -> tuple[type[Exception], ...]:
    """Return the errors that ONNX Runtime raises at a file it cannot open; they have no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    return (RuntimeError, *(getattr(state, name) for name in names), state.RuntimeException)


def _index(device: torch.device) -> int:
    return 0 if device.index is None else device.index


def _names(tensors: Sequence[Any]) -> list[str]:
    return [tensor.name for tensor in tensors]
