"""TensorRT and TensorRT for RTX: import of either, and every name of theirs that this package uses.

Each protocol is called as the class it describes. `tests/export/test_trt_api.py` looks all of them up, with their
arguments, in the bindings of both libraries; the type checker keeps other names out.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from d4m_fast.engine.libraries import one_line
from d4m_fast.errors import PreflightError

Flavour = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
INSTALL: dict[Flavour, str] = {
    "tensorrt": "pip install 'd4m-fast[gpu]'",
    "tensorrt-rtx": "pip install 'd4m-fast[rtx]'",
}


class IHostMemory(Protocol):
    @property
    def nbytes(self) -> int: ...


class ITensor(Protocol):
    name: str
    dtype: Any
    shape: Sequence[int]


class ILayer(Protocol):
    name: str
    type: Any

    @property
    def num_inputs(self) -> int: ...

    @property
    def num_outputs(self) -> int: ...

    def get_input(self, index: int) -> ITensor | None: ...

    def get_output(self, index: int) -> ITensor: ...


class INetworkDefinition(Protocol):
    name: str

    @property
    def num_inputs(self) -> int: ...

    @property
    def num_outputs(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    def get_input(self, index: int) -> ITensor: ...

    def get_output(self, index: int) -> ITensor: ...

    def get_layer(self, index: int) -> ILayer: ...


class ParserError(Protocol):
    def desc(self) -> str: ...

    def node_name(self) -> str: ...


class OnnxParser(Protocol):
    @property
    def num_errors(self) -> int: ...

    def parse_from_file(self, model: str) -> bool: ...

    def get_error(self, index: int) -> ParserError: ...


class IOptimizationProfile(Protocol):
    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...


class ITimingCache(Protocol):
    def serialize(self) -> IHostMemory: ...


class IBuilderConfig(Protocol):
    builder_optimization_level: int
    profiling_verbosity: Any
    progress_monitor: Any

    def set_flag(self, flag: Any) -> None: ...

    def clear_flag(self, flag: Any) -> None: ...

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache: ...

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...

    def get_timing_cache(self) -> ITimingCache: ...


class RtxBuilderConfig(IBuilderConfig, Protocol):
    """The builder's configuration of TensorRT for RTX, which can also build for GPUs that are not here."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool: ...


class Builder(Protocol):
    def create_network(self, flags: int) -> INetworkDefinition: ...

    def create_builder_config(self) -> IBuilderConfig: ...

    def create_optimization_profile(self) -> IOptimizationProfile: ...

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None: ...


class EngineInspector(Protocol):
    execution_context: Any

    def get_engine_information(self, format: Any) -> str: ...


class IExecutionContext(Protocol):
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def infer_shapes(self) -> list[str]: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    @property
    def num_optimization_profiles(self) -> int: ...

    @property
    def num_io_tensors(self) -> int: ...

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_dtype(self, name: str) -> Any: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Sequence[int]]: ...

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int: ...

    def create_execution_context(self, strategy: Any) -> IExecutionContext: ...

    def create_engine_inspector(self) -> EngineInspector: ...


class Runtime(Protocol):
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


# Members of enumerations, and callbacks, that this package uses.
ENUMS: dict[str, tuple[str, ...]] = {
    "BuilderFlag": ("TF32",),
    "DataType": ("FLOAT", "HALF", "INT64"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "LayerInformationFormat": ("JSON",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "ProfilingVerbosity": ("DETAILED",),
}
CALLBACKS: dict[str, tuple[str, ...]] = {
    "ILogger": ("log",),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
}


class Api:
    """Access to either library; enumeration members are given by name and must be in `ENUMS`."""

    def __init__(self, module: Any, flavour: Flavour) -> None:
        self.module = module
        self.flavour = flavour
        self.version = str(module.__version__)

    def member(self, enumeration: str, name: str) -> Any:
        if name not in ENUMS[enumeration]:
            raise KeyError(f"{enumeration}.{name} is not in ENUMS")
        return getattr(getattr(self.module, enumeration), name)

    def capability(self, target: str) -> Any:
        """Return the ComputeCapability of "sm89", which only TensorRT for RTX has; None if it does not build for it."""
        return getattr(self.module.ComputeCapability, target.upper(), None)

    def logger(self, write: Any) -> Any:
        """Return an ILogger that hands every (severity, message) to `write`."""

        base: Any = self.module.ILogger

        class Logger(base):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()  # pybind11 refuses an object whose own __init__ was not called

            def log(self, severity: Any, msg: str) -> None:
                write(severity.name, msg)

        return Logger()

    def builder(self, logger: Any) -> Builder:
        builder: Builder = self.module.Builder(logger)
        return builder

    def parser(self, network: INetworkDefinition, logger: Any) -> OnnxParser:
        parser: OnnxParser = self.module.OnnxParser(network, logger)
        return parser

    def runtime(self, logger: Any) -> Runtime:
        runtime: Runtime = self.module.Runtime(logger)
        return runtime

    def monitor(self, start: Any, finish: Any) -> Any:
        """Return an IProgressMonitor that calls `start` and `finish` at each phase of a build."""

        base: Any = self.module.IProgressMonitor

        class Monitor(base):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return True

            def phase_finish(self, phase_name: str) -> None:
                finish(phase_name)

        return Monitor()


def load_trt(flavour: Flavour) -> Api:
    """Import a library.

    Raises:
        PreflightError: it is not installed, or its shared libraries do not load; the error names the extra to install.
    """
    for name in MODULES[flavour]:
        try:
            return Api(importlib.import_module(name), flavour)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            raise PreflightError(f"{name} does not load ({one_line(error)}); {INSTALL[flavour]}") from error
    raise PreflightError(f"{MODULES[flavour][0]} is not installed: {INSTALL[flavour]}")
