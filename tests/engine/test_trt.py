"""The TensorRT runtime over a fake library that computes with PyTorch at the addresses it is given."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from d4m_fast.engine.eager import open_eager
from d4m_fast.engine.model import open_model
from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.signature import SIGNATURES
from d4m_fast.engine.trt import KEPT_GRAPHS, Launch, TrtRuntime, open_trt, require_gpu
from d4m_fast.engine.trt_api import Api
from d4m_fast.errors import ModelError, PreflightError

UNET = SIGNATURES["unet"]
BLOCK = 1 << 20


class FakeDevice:
    """A CPU that counts what a GPU would be asked for."""

    def __init__(self) -> None:
        self.device, self.stream = torch.device("cpu"), 7
        self.captures = self.replays = self.generation = 0

    def block(self, size: int) -> tuple[int, int]:
        return BLOCK, self.generation

    def ordered(self, launch: Launch) -> None:
        launch()

    def capture(self, launch: Launch) -> Launch:
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            launch()

        return replay


class FakeContext:
    """Runs the eager network on the memory behind the bound addresses."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.profile = -1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return stream_handle == 7

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._shapes[name] = tuple(shape)
        least, _, most = self._engine.get_tensor_profile_shape("sample", self.profile)
        return name != "sample" or least[0] <= shape[0] <= most[0]  # as the engine has it for samples

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert (memory, size) == (BLOCK, 100 + self.profile)

    def infer_shapes(self) -> list[str]:
        return [name for name in UNET.inputs if name not in self._shapes]

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._engine.broken:
            return False
        kinds = {name: torch.int64 if name in UNET.integers else torch.float32 for name in self._shapes}
        inputs = {name: view(self._addresses[name], self._shapes[name], kind) for name, kind in kinds.items()}
        noise = self._engine.network(inputs)["noise"]
        view(self._addresses["noise"], tuple(noise.shape), torch.float32).copy_(noise)
        return stream_handle == 7


def view(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    count = max(1, torch.Size(shape).numel())
    kind = ctypes.c_int64 if dtype == torch.int64 else ctypes.c_float
    return torch.frombuffer((kind * count).from_address(address), dtype=dtype).reshape(shape)


class FakeEngine:
    def __init__(self, network: Runtime, profiles: Sequence[tuple[int, int]]) -> None:
        self.network, self.profiles, self.broken = network, profiles, False
        self.contexts: list[FakeContext] = []
        self.names = [*UNET.inputs, *UNET.outputs]

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> str:
        return "FLOAT"

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Sequence[int]]:
        least, most = self.profiles[profile_index]
        if name == "sample":
            least, most = (least + 1) // 2, most // 2 if self.profiles == [(least, most)] else most
        return [(least, 4, 8, 8), (most, 4, 8, 8), (most, 4, 8, 8)]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 100 + profile_index

    def create_execution_context(self, strategy: Any) -> FakeContext:
        assert strategy == "USER_MANAGED"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]

    def create_engine_inspector(self) -> Any:
        return None


def fake_api(engine: FakeEngine | None) -> Api:
    class Logger:
        def __init__(self) -> None: ...

    class Deserializer:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
            if engine is None:
                self._logger.log(SimpleNamespace(name="ERROR"), "wrong GPU")
            return engine

    return Api(
        SimpleNamespace(
            __version__="11.4",
            ILogger=Logger,
            Runtime=Deserializer,
            DataType=SimpleNamespace(FLOAT="FLOAT", HALF="HALF"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        ),
        "tensorrt",
    )


@pytest.fixture(scope="module")
def unet(tiny_model: Path) -> Runtime:
    return open_eager(tiny_model, "unet", torch.device("cpu"), torch.float32)


@pytest.fixture
def engine(unet: Runtime) -> FakeEngine:
    return FakeEngine(unet, [(1, 1), (2, 8), (9, 16)])


@pytest.fixture
def opened(engine: FakeEngine, tiny_model: Path, tmp_path: Path) -> Callable[..., tuple[Runtime, FakeDevice]]:
    def make(most_rows: int | None = None) -> tuple[Runtime, FakeDevice]:
        (tmp_path / "unet.engine").write_bytes(b"plan")
        device, sizes = FakeDevice(), open_model(str(tiny_model)).sizes(16)
        api = fake_api(engine)
        return open_trt(api, tmp_path / "unet.engine", "unet", sizes, device, most_rows=most_rows), device

    return make


def call(tiny_model: Path, rows: int, timestep: int = 701, *, halves: int = 1) -> Tensors:
    """Of `rows` rows: as many samples, or half as many with guidance."""
    sizes, generator = open_model(str(tiny_model)).sizes(16), torch.Generator().manual_seed(rows)
    shapes = {n: UNET.shape(n, sizes, rows, samples=rows // halves) for n in ("sample", "hidden_states")}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {"sample": made["sample"], "timestep": torch.tensor(timestep), "hidden_states": made["hidden_states"]}


Opened = Callable[..., tuple[Runtime, FakeDevice]]


@pytest.mark.parametrize(("rows", "halves"), [(1, 1), (2, 2), (8, 1), (9, 1), (16, 2), (17, 1), (40, 2)])
def test_any_batch(opened: Opened, unet: Runtime, tiny_model: Path, rows: int, halves: int) -> None:
    runtime, _ = opened()
    inputs = call(tiny_model, rows, halves=halves)
    torch.testing.assert_close(runtime(inputs)["noise"], unet(inputs)["noise"], atol=1e-5, rtol=1e-5)


def test_each_batch_has_a_graph_and_a_context(
    opened: Opened, engine: FakeEngine, unet: Runtime, tiny_model: Path
) -> None:
    """A kept graph computes its own batch, whatever the profile has been bound to since."""
    runtime, device = opened()
    for step, rows in enumerate((8, 16, 8, 4, 16, 8)):
        inputs = call(tiny_model, rows, timestep=700 - step)
        torch.testing.assert_close(runtime(inputs)["noise"], unet(inputs)["noise"], atol=1e-5, rtol=1e-5)
    assert (device.captures, device.replays) == (3, 6)
    assert [context.profile for context in engine.contexts] == [1, 2, 1]


def test_a_context_lives_as_long_as_its_graph(opened: Opened, engine: FakeEngine, tiny_model: Path) -> None:
    """A replay does not hold what was launched at its capture."""
    runtime, device = opened()
    device.capture = lambda launch: lambda: None  # type: ignore[method-assign]
    runtime(call(tiny_model, 8))
    (context,) = map(weakref.ref, engine.contexts)
    engine.contexts.clear()
    gc.collect()
    assert context() is not None


def test_outputs_belong_to_the_caller(opened: Opened, unet: Runtime, tiny_model: Path) -> None:
    runtime, _ = opened()
    first = runtime(call(tiny_model, 2))["noise"]
    kept = first.clone()
    runtime(call(tiny_model, 2, timestep=1))
    assert torch.equal(first, kept)


def test_graphs_are_captured_again_when_the_block_moves(opened: Opened, tiny_model: Path) -> None:
    runtime, device = opened()
    runtime(call(tiny_model, 2))
    device.generation += 1
    runtime(call(tiny_model, 2))
    assert device.captures == 2


def test_few_graphs_are_kept(opened: Opened, tiny_model: Path) -> None:
    runtime, device = opened()
    for rows in (2, 3, 4, 5, 6, 2):
        runtime(call(tiny_model, rows))
    assert device.captures == 6
    runtime(call(tiny_model, 6))
    assert device.captures == 6
    assert KEPT_GRAPHS == 4


def test_a_limit_on_rows_cuts_batches(opened: Opened, unet: Runtime, tiny_model: Path) -> None:
    runtime, device = opened(most_rows=8)
    inputs = call(tiny_model, 16)
    torch.testing.assert_close(runtime(inputs)["noise"], unet(inputs)["noise"], atol=1e-5, rtol=1e-5)
    assert (device.captures, device.replays) == (1, 2)


@pytest.mark.parametrize("halves", [1, 2])
def test_a_fixed_batch_is_padded(
    opened: Opened, engine: FakeEngine, unet: Runtime, tiny_model: Path, halves: int
) -> None:
    """Four samples in two halves; without guidance the second half is padding."""
    engine.profiles = [(8, 8)]
    runtime, device = opened()
    inputs = call(tiny_model, 7 * halves, halves=halves)
    torch.testing.assert_close(runtime(inputs)["noise"], unet(inputs)["noise"], atol=1e-5, rtol=1e-5)
    assert (device.captures, device.replays) == (1, 2)


def test_an_engine_that_fails_is_not_silent(opened: Opened, engine: FakeEngine, tiny_model: Path) -> None:
    runtime, _ = opened()
    engine.broken = True
    with pytest.raises(ModelError, match="the engine failed at 2 rows"):
        runtime(call(tiny_model, 2))


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("set_input_shape", False, "refuses sample of shape"),
        ("infer_shapes", ["sample"], "does not know the shape of sample"),
        ("set_optimization_profile_async", False, "profile 1 cannot be set"),
    ],
)
def test_a_context_that_refuses_is_not_silent(
    opened: Opened, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, method: str, answer: object, said: str
) -> None:
    monkeypatch.setattr(FakeContext, method, lambda *_: answer)
    with pytest.raises(ModelError, match=said):
        opened()[0](call(tiny_model, 2))


def test_rows_outside_every_profile(engine: FakeEngine, tiny_model: Path) -> None:
    sizes = open_model(str(tiny_model)).sizes(16)
    runtime = TrtRuntime(fake_api(engine), engine, "unet", sizes, FakeDevice(), Path("unet.engine"))
    with pytest.raises(ModelError, match="not for 17"):
        runtime(call(tiny_model, 17))


def test_an_engine_of_something_else(opened: Opened, engine: FakeEngine) -> None:
    engine.names = ["latents", "pixels"]
    with pytest.raises(ModelError, match="not a unet's"):
        opened()


def test_an_engine_of_another_gpu(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "unet.engine").write_bytes(b"plan")
    sizes = open_model(str(tiny_model)).sizes(16)
    with pytest.raises(ModelError, match=r"cannot open it .ERROR wrong GPU"):
        open_trt(fake_api(None), tmp_path / "unet.engine", "unet", sizes, FakeDevice())


def test_a_cpu_is_refused() -> None:
    with pytest.raises(PreflightError, match="needs an NVIDIA GPU"):
        require_gpu(torch.device("cpu"))
