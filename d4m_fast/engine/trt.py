"""The TensorRT runtime: engines on one stream, activations in one shared block, a CUDA graph for each batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from d4m_fast.engine.artifacts import Artifact
from d4m_fast.engine.runtime import InPieces, OpenRuntime, Runtime, Tensors, clone, place
from d4m_fast.engine.signature import BATCH, SIGNATURES, Component, Signature
from d4m_fast.engine.trt_api import Api, ICudaEngine, IExecutionContext, load_trt
from d4m_fast.errors import ModelError, PreflightError

# Batch sizes per network whose buffers and graph are kept: the full one, its half without guidance, and tails.
KEPT_GRAPHS = 4
Launch = Callable[[], None]


class Device(Protocol):
    """A GPU's stream, on which all engines run, and the block of memory they share for activations."""

    device: torch.device
    stream: int

    def block(self, size: int) -> tuple[int, int]:
        """Return address and generation of at least `size` bytes; the generation changes when the block moves."""

    def ordered(self, launch: Launch) -> None:
        """Launch on the stream, after what the caller has queued and before what the caller queues next."""

    def capture(self, launch: Launch) -> Launch:
        """Record what a launch queues, as a launch of its own."""


class TorchDevice:
    """A GPU of PyTorch's, with a stream that is not the default one, whose launches would wait for every other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.stream = int(self._stream.cuda_stream)
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self._generation = 0

    def block(self, size: int) -> tuple[int, int]:
        if self._memory.numel() < size:
            self._stream.synchronize()  # launches that are queued still use the old block
            self._memory = torch.empty(size, dtype=torch.uint8, device=self.device)
            self._generation += 1
        return self._memory.data_ptr(), self._generation

    def ordered(self, launch: Launch) -> None:
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        launch()
        current.wait_stream(self._stream)

    def capture(self, launch: Launch) -> Launch:
        graph = torch.cuda.CUDAGraph()
        # Readers pin memory in other threads meanwhile, which a capture of the whole process would refuse.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            launch()

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return replay


@dataclass(frozen=True)
class _Bound:
    """The buffers of one batch size and what computes on them, in a context of its own.

    A captured graph is tied to its context's state, which other shapes would change (NVIDIA/TensorRT #3798), and so
    lives no longer than it.
    """

    context: IExecutionContext
    inputs: Tensors
    outputs: Tensors
    launch: Launch
    generation: int


class TrtRuntime:
    """An engine whose buffers are bound, and its CUDA graph captured, at the first call with each batch size.

    Outputs belong to the caller.
    """

    def __init__(
        self, api: Api, engine: ICudaEngine, component: Component, sizes: Mapping[str, int], device: Device, path: Path
    ) -> None:
        self._api, self._engine, self._gpu, self._path = api, engine, device, path
        self._signature = SIGNATURES[component]
        self._sizes = sizes
        self._bound_sizes: dict[tuple[int, int], _Bound] = {}
        self.device = device.device
        self.dtype = _checked_dtype(api, engine, component, path)
        self.profiles = _profiles(engine, self._signature)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        inputs = place(inputs, self._signature, self.device, self.dtype)
        bound = self._bind(self._signature.rows(inputs), self._signature.samples(inputs))
        for name, x in inputs.items():
            bound.inputs[name].copy_(x)
        self._gpu.ordered(bound.launch)
        # The next call writes to the same buffers.
        return clone(bound.outputs)

    def _bind(self, rows: int, samples: int) -> _Bound:
        profile = self._profile(rows)
        size = self._engine.get_device_memory_size_for_profile_v2(profile)
        address, generation = self._gpu.block(size)
        bound = self._bound_sizes.pop((rows, samples), None)
        if bound is None or bound.generation != generation:
            bound = self._capture(rows, samples, profile, address, size, generation)
        self._bound_sizes[rows, samples] = bound  # the last used comes last
        while len(self._bound_sizes) > KEPT_GRAPHS:
            del self._bound_sizes[next(iter(self._bound_sizes))]
        return bound

    def _profile(self, rows: int) -> int:
        """Return the first profile that takes this many rows."""
        for index, (least, most) in enumerate(self.profiles):
            if least <= rows <= most:
                return index
        raise ModelError(f"{self._path}: built for {self.profiles} rows, not for {rows}; export it again")

    def _capture(self, rows: int, samples: int, profile: int, address: int, size: int, generation: int) -> _Bound:
        context = _open_context(self._api, self._engine, profile, self._gpu.stream, self._path)
        context.set_device_memory(address, size)
        inputs, outputs = self._buffers(rows, samples)
        for name, x in (inputs | outputs).items():
            context.set_tensor_address(name, x.data_ptr())
        for name, x in inputs.items():
            if not context.set_input_shape(name, tuple(x.shape)):
                raise ModelError(f"{self._path}: refuses {name} of shape {tuple(x.shape)}")
        if missing := context.infer_shapes():
            raise ModelError(f"{self._path}: does not know the shape of {', '.join(missing)}")

        def launch() -> None:
            if not context.execute_async_v3(self._gpu.stream):
                raise ModelError(f"{self._path}: the engine failed at {rows} rows")

        # Once without a capture, because allocations at the first launch must not become part of the graph.
        self._gpu.ordered(launch)
        return _Bound(context, inputs, outputs, self._gpu.capture(launch), generation)

    def _buffers(self, rows: int, samples: int) -> tuple[Tensors, Tensors]:
        """Return inputs and outputs of zeros, so that the run before the capture meets no NaN."""
        signature = self._signature

        def zeros(name: str) -> torch.Tensor:
            dtype = torch.int64 if name in signature.integers else self.dtype
            shape = signature.shape(name, self._sizes, rows, samples=samples)
            return torch.zeros(shape, dtype=dtype, device=self.device)

        return {name: zeros(name) for name in signature.inputs}, {name: zeros(name) for name in signature.outputs}


def open_trt(
    api: Api,
    path: Path,
    component: Component,
    sizes: Mapping[str, int],
    device: Device,
    *,
    most_rows: int | None = None,
) -> Runtime:
    """Open an engine file; batches it cannot take at once are cut, and padded where it takes one size only.

    Args:
        most_rows: rows one launch may have, when that is fewer than the engine's; kernels count elements in 32 bits.

    Raises:
        ModelError: the file is no engine of this component for this GPU.
    """
    engine = _deserialize(api, path)
    runtime = TrtRuntime(api, engine, component, sizes, device, path)
    most = max(most for _, most in runtime.profiles)  # an engine has a profile for each range of batches
    rows = most if most_rows is None else min(most, most_rows)
    exact = all(least == most for least, most in runtime.profiles)
    return InPieces(runtime, SIGNATURES[component], rows, exact=exact)


def trt_opener(artifact: Artifact, sizes: Mapping[str, int], device: torch.device) -> OpenRuntime:
    """Return the function that opens each engine of an exported set, all on one stream, with one block of memory.

    Raises:
        PreflightError: not a GPU, or the library that built the set does not run here.
    """
    require_gpu(device)
    api, gpu = load_trt(artifact.certificate["library"]), TorchDevice(device)

    def open_runtime(component: Component) -> Runtime:
        file = artifact.path / f"{component}.engine"
        return open_trt(api, file, component, sizes, gpu, most_rows=artifact.most_rows(component))

    return open_runtime


def inspect(api: Api, path: Path, component: Component, stream: int) -> str:
    """Return the layers of an engine, as the inspector's JSON, for the batch size that its last profile is tuned for.

    The inspector gives types and dimensions of a free batch only with a context that has shapes.

    Raises:
        ModelError: the file is no engine for this GPU.
    """
    engine = _deserialize(api, path)
    last = engine.num_optimization_profiles - 1
    context = _open_context(api, engine, last, stream, path)
    for name in SIGNATURES[component].inputs:
        _, tuned, _ = engine.get_tensor_profile_shape(name, last)
        context.set_input_shape(name, tuple(tuned))
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return inspector.get_engine_information(api.member("LayerInformationFormat", "JSON"))


def _open_context(api: Api, engine: ICudaEngine, profile: int, stream: int, path: Path) -> IExecutionContext:
    """Create a context without memory of its own, and set its profile."""
    context = engine.create_execution_context(api.member("ExecutionContextAllocationStrategy", "USER_MANAGED"))
    if not context.set_optimization_profile_async(profile, stream):
        raise ModelError(f"{path}: profile {profile} cannot be set")
    return context


def _deserialize(api: Api, path: Path) -> ICudaEngine:
    messages: list[str] = []
    logger = api.logger(lambda severity, message: messages.append(f"{severity} {message}"))
    engine = api.runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        reason = next((message for message in messages if "ERROR" in message), "no reason given")
        raise ModelError(f"{path}: {api.flavour} {api.version} cannot open it ({reason}); export it again on this GPU")
    return engine


def require_gpu(device: torch.device) -> None:
    """Refuse devices TensorRT does not run on.

    Raises:
        PreflightError: not a GPU.
    """
    if device.type == "cpu":
        raise PreflightError("--engine tensorrt needs an NVIDIA GPU; use --engine onnx or --engine torch on the CPU")


def describe_trt(device: torch.device) -> str:
    """Say what TensorRT is ready for.

    Raises:
        PreflightError: it does not run here.
    """
    if device.type == "cpu":
        raise PreflightError("PyTorch sees no GPU here; engines can be built with export --target")
    version = load_trt("tensorrt").version
    return f"TensorRT {version}, for models that d4m-fast export has certified on this GPU"


def _checked_dtype(api: Api, engine: ICudaEngine, component: Component, path: Path) -> torch.dtype:
    """Return the type of an engine's outputs, and refuse one whose tensors have other names than the component's."""
    signature = SIGNATURES[component]
    names = set(map(engine.get_tensor_name, range(engine.num_io_tensors)))
    if names != {*signature.inputs, *signature.outputs}:
        raise ModelError(f"{path}: its tensors {sorted(names)} are not a {component}'s; export it again")
    dtypes = {api.member("DataType", "FLOAT"): torch.float32, api.member("DataType", "HALF"): torch.float16}
    return dtypes[engine.get_tensor_dtype(next(iter(signature.outputs)))]


def _profiles(engine: ICudaEngine, signature: Signature) -> list[tuple[int, int]]:
    """Return least and most rows of each profile."""
    name = next(name for name, axes in signature.inputs.items() if BATCH in axes)
    profiles = []
    for index in range(engine.num_optimization_profiles):
        least, _, most = engine.get_tensor_profile_shape(name, index)
        profiles.append((least[0], most[0]))
    return profiles
