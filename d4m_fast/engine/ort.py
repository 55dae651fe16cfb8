"""The ONNX Runtime runtime: one session, on the CPU or on a GPU, and never on another device than the one asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from d4m_fast.engine.artifacts import Artifact
from d4m_fast.engine.libraries import one_line
from d4m_fast.engine.memory import is_exhaustion
from d4m_fast.engine.runtime import InPieces, OpenRuntime, Runtime, Tensors, cut, join, place
from d4m_fast.engine.signature import SIGNATURES, Component
from d4m_fast.errors import ModelError, PreflightError

SPINNING: frozenset[Component] = frozenset({"unet"})
"""Networks called back to back, whose threads wait spinning; the others' would take the cores from reading images."""
FEWEST: Mapping[Component, int] = MappingProxyType({"unet": 3})
"""Samples per thread from which a network is faster when each thread has its own, where that is not one: threads of one
layer wait for one another, which costs most beside others, as the encoder runs beside readers."""
MANY = 4
"""Samples per thread from which an uneven share of them costs less than threads that wait for one another."""
PROMPTS = "hidden_states"
INSTALL = {"cpu": "pip install 'd4m-fast[cpu]'"}
INSTALL_GPU = "pip install 'd4m-fast[gpu]'"
Context = Mapping[str, Any]
"""What the network makes of its prompts alone, as ONNX Runtime's values by name."""


class OrtRuntime:
    """An exported network on a CPU or a GPU; outputs belong to the caller.

    On a CPU the samples of a large call are shared out to the threads, which run one session side by side, each on its
    own: nothing in a network is serial then. Few samples run one after the other, each layer on all threads.
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
        self._prompts: list[torch.Tensor] = []
        self._made: list[Context] = []
        self.device, self.dtype = file.device, file.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        placed = place(inputs, self._signature, self.device, self.dtype)
        samples = self._signature.samples(placed)
        uneven = samples % self._threads and samples < MANY * self._threads
        if not self._shared or samples < self._least or uneven:
            return self._run(placed, self._contexts([placed], self._threads)[0], self._threads)
        shares = torch.arange(samples).tensor_split(self._threads)
        pieces = [cut(placed, self._signature, share) for share in shares]
        runs = self._pool.map(partial(self._run, threads=1), pieces, self._contexts(pieces, 1))
        return join(list(runs), self._signature.rows(placed) // samples)

    def _run(self, inputs: Tensors, context: Context, threads: int) -> Tensors:
        rows = self._signature.rows(inputs)
        outputs = {name: self._signature.shape(name, self._sizes, rows) for name in self._signature.outputs}
        own = {name: x for name, x in inputs.items() if not (context and name == PROMPTS)}
        return self._file.run(own, context, outputs, threads)

    def _contexts(self, pieces: Sequence[Tensors], threads: int) -> list[Context]:
        """Of each piece: kept while its prompts stay the same, as they do through all steps of a schedule."""
        if self._file.context is None:
            return [{}] * len(pieces)
        prompts = [piece[PROMPTS] for piece in pieces]
        if len(prompts) != len(self._prompts) or not all(map(torch.equal, prompts, self._prompts)):
            self._prompts = [x.clone() for x in prompts]
            self._made = list(self._pool.map(partial(self._file.run_context, threads=threads), prompts))
        return self._made


class OrtFile:
    """One exported file, its tensors torch's own memory, bound by address; a session for each number of threads.

    Attributes:
        context: the file beside a UNet's that makes of the prompts what every step reads; None where there is none.
    """

    def __init__(
        self, path: Path, component: Component, device: torch.device, *, threads: int, captured: bool = False
    ) -> None:
        beside = path.with_name(f"{path.stem}.context.onnx")
        self.device = device
        self.context = beside if beside.is_file() else None
        self._path = path
        self._component: Component = component
        self._captured = captured and self.context is None
        self._fixed: tuple[Any, Tensors, Tensors] | None = None
        self._sessions: dict[tuple[Path, int], Any] = {}
        self._check(threads)
        self.dtype = _dtype_of(self._session(path, threads), component)

    def run(self, inputs: Tensors, context: Context, outputs: Mapping[str, tuple[int, ...]], threads: int) -> Tensors:
        """Outputs of these shapes."""
        session = self._session(self._path, threads)
        if self._captured:
            return self._replay(session, inputs, outputs)
        binding, made = session.io_binding(), self._empty(outputs)
        kept = self._bind(binding, inputs, made)
        for name, value in context.items():
            binding.bind_ortvalue_input(name, value)
        self._launch(session, binding)
        del kept  # bound by address: alive until here
        return made

    def run_context(self, prompts: torch.Tensor, threads: int) -> Context:
        assert self.context is not None
        session = self._session(self.context, threads)
        binding = session.io_binding()
        kept = self._bind(binding, {PROMPTS: prompts}, {})
        names = [output.name for output in session.get_outputs()]
        for name in names:
            binding.bind_output(name, self.device.type, _index(self.device))
        self._launch(session, binding)
        del kept
        return dict(zip(names, binding.get_outputs(), strict=True))

    def _replay(self, session: Any, inputs: Tensors, outputs: Mapping[str, tuple[int, ...]]) -> Tensors:
        """On the same memory each time, as a captured CUDA graph needs it."""
        if self._fixed is None:
            binding, fixed, made = session.io_binding(), {n: x.clone() for n, x in inputs.items()}, self._empty(outputs)
            self._fixed = binding, self._bind(binding, fixed, made), made
        binding, fixed, made = self._fixed
        for name, x in inputs.items():
            fixed[name].copy_(x)
        self._launch(session, binding)
        return {name: x.clone() for name, x in made.items()}

    def _bind(self, binding: Any, inputs: Tensors, outputs: Tensors) -> Tensors:
        """Returns the inputs as they are bound, for the caller to keep."""
        contiguous = {name: x.contiguous() for name, x in inputs.items()}
        for bind, tensors in ((binding.bind_input, contiguous), (binding.bind_output, outputs)):
            for name, x in tensors.items():
                bind(name, self.device.type, _index(self.device), _element(x), list(x.shape), x.data_ptr())
        return contiguous

    def _launch(self, session: Any, binding: Any) -> None:
        if self.device.type != "cpu":
            torch.cuda.current_stream(self.device).synchronize()
        try:
            session.run_with_iobinding(binding)
        except _errors() as error:
            if is_exhaustion(error):
                raise MemoryError(str(error)) from error
            raise

    def _empty(self, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
        return {name: torch.empty(shape, dtype=self.dtype, device=self.device) for name, shape in shapes.items()}

    def _session(self, path: Path, threads: int) -> Any:
        if (path, threads) not in self._sessions:
            spin = self._component in SPINNING and threads > 1
            self._sessions[path, threads] = _open(path, self.device, threads, spin=spin, captured=self._captured)
        return self._sessions[path, threads]

    def _check(self, threads: int) -> None:
        """Of the tensors' names; what a context makes, the network reads in place of the prompts."""
        signature = SIGNATURES[self._component]
        made = [] if self.context is None else [x.name for x in self._session(self.context, threads).get_outputs()]
        wanted = [n for n in signature.inputs if not (made and n == PROMPTS)] + made
        session = self._session(self._path, threads)
        found = ([x.name for x in session.get_inputs()], [x.name for x in session.get_outputs()])
        if (sorted(found[0]), found[1]) != (sorted(wanted), list(signature.outputs)):
            raise ModelError(f"{self._path}: its tensors {found} are not a {self._component}'s; export it again")


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
    file = OrtFile(path, component, device, threads=1 if shared else threads, captured=captured)
    runtime = OrtRuntime(file, component, sizes, threads=threads, shared=shared)
    rows = static_batch if static else most_rows
    return runtime if rows is None else InPieces(runtime, SIGNATURES[component], rows, exact=static)


def ort_opener(artifact: Artifact, sizes: Mapping[str, int], device: torch.device) -> OpenRuntime:
    """Return what opens each network of an exported set, with as many threads as PyTorch is set to."""
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
    options.log_severity_level = 3  # its warnings are about its own optimiser
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    # A free batch's shapes are computed on the CPU by design (onnxruntime #17930); a graph may have no such part.
    if captured and device.type != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    wanted = provider_of(device)
    try:
        session = ort.InferenceSession(str(path), options, providers=[(wanted, _provider_options(device, captured))])
    except _errors() as error:
        raise ModelError(f"{path}: ONNX Runtime cannot open it ({one_line(error)})") from error
    if session.get_providers()[0] != wanted:
        raise PreflightError(f"{path}: ONNX Runtime fell back to {session.get_providers()[0]}; {wanted} did not load")
    return session


def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises at a file it cannot open; its errors have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    return (RuntimeError, *(getattr(state, name) for name in names), state.RuntimeException)


def _provider_options(device: torch.device, captured: bool) -> dict[str, str]:
    if device.type == "cpu":
        return {}
    return {
        "device_id": str(_index(device)),
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": "0",
        "enable_cuda_graph": str(int(captured)),
    }


def _dtype_of(session: Any, component: Component) -> torch.dtype:
    (name, *_) = SIGNATURES[component].outputs
    kind = next(x.type for x in session.get_outputs() if x.name == name)
    return {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}[kind]


def _index(device: torch.device) -> int:
    return 0 if device.index is None else device.index


def _element(x: torch.Tensor) -> Any:
    import numpy as np

    return {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}[x.dtype]
