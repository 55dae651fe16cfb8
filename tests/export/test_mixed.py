"""fp16 conversion: real exports of a Stable-Diffusion-shaped model, and small graphs for the rules."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from models import TOKENS, WIDTH_TEXT
from onnx import parser

from d4m_fast.engine.modules import load_module
from d4m_fast.errors import ModelError
from d4m_fast.export.calibration import activation_maxima
from d4m_fast.export.mixed import MixedReport, to_mixed_precision
from d4m_fast.export.rounded_fp16 import write_rounded

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
NORMALISATIONS = {"InstanceNormalization", "GroupNormalization", "LayerNormalization"}
PRODUCTS = {"Conv", "MatMul", "Gemm", "Attention"}
Feed = dict[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Converted:
    component: str
    source: Path
    target: Path
    feed: Feed
    maxima: dict[str, float]
    report: MixedReport


def feed_of(component: str, rows: int = 3) -> Feed:
    random = np.random.default_rng(0)
    latents = random.standard_normal((rows, 4, 8, 8), dtype=np.float32)
    if component == "vae_decoder":
        return {"latents": latents}
    states = random.standard_normal((rows, TOKENS, WIDTH_TEXT), dtype=np.float32)
    return {"sample": latents, "timestep": np.array(701), "hidden_states": states}


@pytest.fixture(scope="module")
def programs(tiny_model: Path) -> dict[str, torch.export.ExportedProgram]:
    """Each traced once, with a dynamic batch."""
    return {component: trace(tiny_model, component) for component in ("unet", "vae_decoder")}


def trace(model: Path, component: Any) -> torch.export.ExportedProgram:
    arrays = feed_of(component).values()
    shapes = tuple({0: torch.export.Dim.DYNAMIC} if array.ndim else None for array in arrays)
    module = load_module(model, component, torch.float32)
    arguments = tuple(torch.from_numpy(np.asarray(array)) for array in arrays)
    return torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)


def export(program: torch.export.ExportedProgram, component: str, opset: int, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program,
            (),
            path,
            input_names=list(feed_of(component)),
            output_names=["result"],
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@pytest.fixture(scope="module", params=["unet-20", "unet-23", "vae_decoder-20", "vae_decoder-23"])
def converted(
    request: pytest.FixtureRequest,
    programs: dict[str, torch.export.ExportedProgram],
    tmp_path_factory: pytest.TempPathFactory,
) -> Converted:
    component, opset = request.param.split("-")
    root = tmp_path_factory.mktemp(request.param)
    source, target, feed = root / "source.onnx", root / "target.onnx", feed_of(component)
    export(programs[component], component, int(opset), source)
    maxima = activation_maxima(source, [feed], threads=1)
    return Converted(component, source, target, feed, maxima, to_mixed_precision(source, target, maxima))


def write(path: Path, body: str, opset: int = 20) -> Path:
    """A graph in ONNX's text form."""
    onnx.save(parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {body}'), path)
    return path


def convert(source: Path, maxima: Mapping[str, float], **options: Any) -> tuple[onnx.ModelProto, MixedReport]:
    target = source.with_name("target.onnx")
    report = to_mixed_precision(source, target, maxima, **options)
    onnx.checker.check_model(str(target), full_check=True)
    return onnx.load(target), report


def run(model: Path | bytes, feed: Mapping[str, Any], names: list[str] | None = None) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(names, dict(feed)))


def halves(feed: Feed) -> Feed:
    return {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in feed.items()}


def distance(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


def inferred(model: onnx.ModelProto) -> dict[str, int]:
    """Types by ONNX's own inference, without the ones the file states."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def write_rounded_graph(mixed: Path) -> Path:
    path = mixed.with_name("rounded.onnx")
    write_rounded(mixed, path)
    return path


def test_close_to_fp32(converted: Converted) -> None:
    (expected,) = run(converted.source, converted.feed)
    (found,) = run(converted.target, halves(converted.feed))
    assert found.dtype == np.float16
    assert 1e-5 < distance(found, expected) < 3e-3  # not less: the weights are rounded


def test_close_to_fp32_with_every_fp16_value_rounded(converted: Converted) -> None:
    (expected,) = run(converted.source, converted.feed)
    (found,) = run(write_rounded_graph(converted.target), halves(converted.feed))
    assert 1e-5 < distance(found, expected) < 3e-3


def test_onnxruntime_drops_the_rounding_between_fp16_nodes(tmp_path: Path) -> None:
    """Why the rounded graph is needed: in fp16, 1.3 + 2048 - 2048 is 2 and 300 * 300 / 300 infinite."""
    body = """g (float[2] x) => (float[2] y, float[2] z) <float k = {2048}>
        { a = Add(x, k) y = Sub(a, k) b = Mul(x, x) z = Div(b, x) }"""
    source, feed = write(tmp_path / "s.onnx", body), {"x": np.array([1.3, 300], np.float32)}
    convert(source, dict.fromkeys("xyzab", 1.0))
    target = tmp_path / "target.onnx"
    plain, rounded = (run(m, halves(feed)) for m in (target, write_rounded_graph(target)))
    assert [plain[0][0], plain[1][1]] == [np.float16(1.3), 300]
    assert [rounded[0][0], rounded[1][1]] == [2, np.inf]


def test_valid_with_the_stated_types(converted: Converted) -> None:
    onnx.checker.check_model(str(converted.target), full_check=True)
    model = onnx.load(converted.target)
    types = inferred(model)
    stated = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    assert len(stated) > 100
    assert stated == {name: types[name] for name in stated}


def test_normalisations_run_in_fp32_and_products_in_fp16(converted: Converted) -> None:
    model = onnx.load(converted.target)
    types, seen = inferred(model), set()
    for node in model.graph.node:
        wanted = FLOAT if node.op_type in NORMALISATIONS | {"Softmax", "Sin", "Cos"} else HALF
        if node.op_type in NORMALISATIONS | PRODUCTS | {"Softmax", "Sin", "Cos"}:
            seen.add(node.op_type)
            assert {types[name] for name in (*node.input, *node.output)} == {wanted}, node.name
    opset = model.opset_import[0].version
    assert seen >= ({"InstanceNormalization", "Softmax"} if opset == 20 else {"GroupNormalization", "Attention"})
    assert seen >= {"Conv", "MatMul"}


def test_angles_of_the_timestep_are_never_fp16(converted: Converted) -> None:
    if converted.component != "unet":
        pytest.skip("no timestep")
    model = onnx.load(converted.target)
    types, makers = inferred(model), {name: node for node in model.graph.node for name in node.output}
    path = [next(node for node in model.graph.node if node.op_type == "Sin").input[0]]
    while path[-1] in makers:
        path.append(makers[path[-1]].input[0])
    assert path[-1] == "timestep"
    assert {types[name] for name in path} == {FLOAT, onnx.TensorProto.INT64}


def test_names_and_interface_stay(converted: Converted) -> None:
    source, target = onnx.load(converted.source), onnx.load(converted.target)
    assert [v.name for v in target.graph.input] == [v.name for v in source.graph.input]
    assert [v.name for v in target.graph.output] == [v.name for v in source.graph.output] == ["result"]
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*target.graph.input, *target.graph.output)}
    assert kinds.pop("timestep", onnx.TensorProto.INT64) == onnx.TensorProto.INT64
    assert set(kinds.values()) == {HALF}
    assert {n.name for n in source.graph.node} <= {n.name for n in target.graph.node}
    assert {t.name for t in source.graph.initializer} <= {t.name for t in target.graph.initializer}
    assert {o for n in source.graph.node for o in n.output} <= {o for n in target.graph.node for o in n.output}
    assert target.graph.name == source.graph.name
    assert target.graph.input[0].type.tensor_type.shape == source.graph.input[0].type.tensor_type.shape


def test_casts_are_needed_shared_and_never_chained(converted: Converted) -> None:
    model = onnx.load(converted.target)
    types = inferred(model)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    edges = [(node.input[0], types[node.output[0]]) for node in casts]
    assert len(edges) == len(set(edges))
    assert all(types[name] != kind for name, kind in edges)
    assert not {node.output[0] for node in casts} & {node.input[0] for node in casts}
    read = {name for node in model.graph.node for name in node.input} | {"result"}
    assert all(node.output[0] in read for node in casts)
    before = sum(node.op_type == "Cast" for node in onnx.load(converted.source).graph.node)
    assert converted.report.casts == len(casts) - before > 0


def test_report(converted: Converted) -> None:
    model = onnx.load(converted.target)
    types = inferred(model)
    wide = {n.name for n in model.graph.node if n.op_type != "Cast" and FLOAT in {types.get(o) for o in n.output}}
    narrow = {n.name for n in model.graph.node if n.op_type != "Cast" and HALF in {types.get(o) for o in n.output}}
    source = onnx.load(converted.source)
    named = {n.name for n in source.graph.node if n.op_type != "Cast"}
    assert set(converted.report.fp32_nodes) & named == wide
    assert converted.report.fp16_nodes == len(narrow)
    origins = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast" and n.output[0] != "result"}
    half = {origins.get(name, name) for name, kind in types.items() if kind == HALF}
    maxima = {name: converted.maxima[name] for name in half if name in converted.maxima}
    assert converted.report.largest_fp16_activation == max(maxima.values()) > 0
    assert maxima[converted.report.largest_fp16_tensor] == max(maxima.values())


def test_large_activation_moves_its_neighbours_alone(converted: Converted) -> None:
    nodes = onnx.load(converted.source).graph.node
    value = [node.output[0] for node in nodes if node.op_type == "Conv"][2]
    target = converted.target.with_name("moved.onnx")
    report = to_mixed_precision(converted.source, target, {**converted.maxima, value: 23_456.0})
    around = {n.name for n in nodes if value in (*n.input, *n.output) and n.op_type not in ("Shape", "Cast")}
    moved = {name for name in report.fp32_nodes if name not in converted.report.fp32_nodes}
    assert moved == around - set(converted.report.fp32_nodes) != set()
    assert {report.fp32_nodes[name] for name in moved} == {"activation 23,456 above the limit"}
    model = onnx.load(target)
    assert inferred(model)[value] == FLOAT
    readers = {n.name for n in model.graph.node if value in n.input}
    assert readers == {n.name for n in nodes if value in n.input}  # no cast between fp32 neighbours
    loose = to_mixed_precision(converted.source, target, {**converted.maxima, value: 23_456.0}, limit=23_456.0)
    assert loose.fp32_nodes == converted.report.fp32_nodes


def test_maxima_of_every_value(converted: Converted) -> None:
    model = onnx.load(converted.source)
    kinds = inferred(model)
    made = [o for n in model.graph.node for o in n.output if kinds.get(o) == FLOAT]
    outputs = {v.name for v in model.graph.output}
    model.graph.output.extend(onnx.helper.make_tensor_value_info(o, FLOAT, None) for o in made if o not in outputs)
    found = run(model.SerializeToString(), converted.feed, made)
    floats = {name: array for name, array in converted.feed.items() if array.dtype == np.float32}
    expected = {
        name: float(np.abs(array).max()) for name, array in (floats | dict(zip(made, found, strict=True))).items()
    }
    assert converted.maxima == pytest.approx(expected, rel=1e-5)


SMALL = "g (float[N, M] x) => (float[N, M] y) { a = Neg(x) b = Sqrt(x) c = Add(a, b) y = Identity(c) }"


def test_maxima_over_several_inputs(tmp_path: Path) -> None:
    source = write(tmp_path / "s.onnx", SMALL)
    feeds = [{"x": np.array(rows, np.float32)} for rows in ([[4, 9]], [[16, 1]], [[1]])]
    expected = {"x": 16.0, "a": 16.0, "b": 4.0, "c": 12.0, "y": 12.0}
    assert activation_maxima(source, iter(feeds), threads=1) == expected
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("row", [[1, np.nan, 3], [np.nan, 1, 3], [1, 2, np.nan], [1, 2, -np.inf]])
def test_what_is_not_finite_counts_as_infinite(tmp_path: Path, row: list[float]) -> None:
    source = write(tmp_path / "s.onnx", "g (float[N] x) => (float[N] y) { y = Neg(x) }")
    feeds = [{"x": np.array(values, np.float32)} for values in ([1, 2], row, [3])]
    assert activation_maxima(source, feeds, threads=1) == {"x": np.inf, "y": np.inf}


def test_nothing_counts_as_zero(tmp_path: Path) -> None:
    source = write(tmp_path / "s.onnx", SMALL)
    assert set(activation_maxima(source, [{"x": np.zeros((0, 3), np.float32)}], threads=1).values()) == {0.0}
    with pytest.raises(ValueError, match="at least one"):
        activation_maxima(source, [], threads=1)


def test_weight_beyond_fp16_keeps_its_node(tmp_path: Path) -> None:
    body = "g (float[2] x) => (float[2] y) <float[2] w = {%s, 2}> { a = Neg(x) b = Mul(a, w) y = Neg(b) }"
    maxima = dict.fromkeys("xaby", 1.0)
    _, report = convert(write(tmp_path / "s.onnx", body % "-100000"), maxima)
    assert list(report.fp32_nodes.values()) == ["weight w reaches 100,000"]
    model, report = convert(write(tmp_path / "s.onnx", body % "-65504"), maxima)
    assert report == MixedReport(3, {}, 0, 1.0, "x")
    assert {t.data_type for t in model.graph.initializer} == {HALF}


def test_weight_of_both_kinds_of_nodes_is_kept_in_both_types(tmp_path: Path) -> None:
    body = """g (float[2, 2] x) => (float[2, 2] y) <float[2] w = {1.0001, 2}>
        { a = Mul(x, w) y = LayerNormalization (a, w, w) }"""
    model, _ = convert(write(tmp_path / "s.onnx", body), dict.fromkeys("xay", 1.0))
    kept = {t.name: (t.data_type, float(onnx.numpy_helper.to_array(t)[0])) for t in model.graph.initializer}
    assert kept == {"w": (HALF, 1.0), "w.fp32": (FLOAT, float(np.float32(1.0001)))}


def test_fp32_nodes_stay_fp32_between_them(tmp_path: Path) -> None:
    body = "g (float[2, 2] x) => (float[2, 2] y) { a = Softmax(x) b = Exp(a) c = Log(b) y = Softmax(c) }"
    model, report = convert(write(tmp_path / "s.onnx", body), dict.fromkeys("xabcy", 1.0))
    assert [n.op_type for n in model.graph.node] == ["Cast", "Softmax", "Exp", "Log", "Softmax", "Cast"]
    assert (report.casts, report.fp16_nodes) == (2, 0)


def test_looking_at_a_value_casts_nothing(tmp_path: Path) -> None:
    body = "g (float[2, 2] x) => (int64[2] n, bool[2, 2] m) { a = Softmax(x) n = Shape(a) m = IsNaN(a) }"
    model, _ = convert(write(tmp_path / "s.onnx", body), dict.fromkeys("xa", 1.0))
    assert [n.op_type for n in model.graph.node] == ["Cast", "Softmax", "Shape", "IsNaN"]


def test_source_casts_go_straight_to_each_type(tmp_path: Path) -> None:
    body = """g (int64[2] x) => (float[2] y, float[2] z, int64[2] n) { a = Cast <to = 1> (x)
        y = Exp(a) z = Neg(a) b = Exp(y) n = Cast <to = 7> (b) }"""
    model, report = convert(write(tmp_path / "s.onnx", body), dict.fromkeys("ayzb", 1.0))
    casts = [(n.input[0], n.attribute[0].i) for n in model.graph.node if n.op_type == "Cast"]
    assert sorted(casts) == [("b", 7), ("x", FLOAT), ("x", HALF), ("y.fp32", HALF)]
    assert report.casts == 2


def test_source_cast_that_nothing_reads_any_more_goes(tmp_path: Path) -> None:
    body = "g (int64[2] x) => (float[2] y) { a = Cast <to = 1> (x) y = Exp(a) }"
    model, _ = convert(write(tmp_path / "s.onnx", body), dict.fromkeys("ay", 1.0))
    assert [(n.op_type, list(n.input)) for n in model.graph.node] == [
        ("Cast", ["x"]),
        ("Exp", ["a.fp32"]),
        ("Cast", ["y.fp32"]),
    ]


def test_values_inside_may_be_beyond_fp16(tmp_path: Path) -> None:
    model, report = convert(write(tmp_path / "s.onnx", SMALL), {**dict.fromkeys("xacy", 1.0), "b": 7e4})
    assert [inferred(model)[name] for name in "xaby"] == [HALF, HALF, FLOAT, HALF]
    assert report.fp32_nodes == {"b": "transcendental", "c": "activation 70,000 above the limit"}


def test_types_that_do_not_vary_stay(converted: Converted, tmp_path: Path) -> None:
    model = onnx.load(converted.target)
    scales = [n.input[2] for n in model.graph.node if n.op_type == "Resize"]
    assert {inferred(model)[name] for name in scales} == {FLOAT}
    body = """g (float[2] x, float s) => (float[N] y, float[2] z) <float one = {1}, int64[1] two = {2}>
        { r = Range(one, s, one) y = Neg(r) k = ConstantOfShape(two) c = Clip(x, one) z = Add(c, k) }"""
    small, _ = convert(write(tmp_path / "s.onnx", body), dict.fromkeys("xsyzrkc", 1.0))
    kinds = inferred(small)
    assert [kinds[name] for name in "rkyzc"] == [FLOAT, FLOAT, HALF, HALF, HALF]


def test_external_data(converted: Converted, tmp_path: Path) -> None:
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    ir.save(ir.load(converted.source), source, external_data="weights.bin")
    maxima = activation_maxima(source, [converted.feed], threads=1)
    assert maxima == converted.maxima
    before = {path.name for path in tmp_path.iterdir()}
    report = to_mixed_precision(source, target, maxima, external_bytes=1000)
    assert {path.name for path in tmp_path.iterdir()} - before == {"target.onnx", "target.onnx.data"}
    assert report == converted.report
    size = (tmp_path / "weights.bin").stat().st_size
    assert 0.45 * size < target.with_name("target.onnx.data").stat().st_size < 0.6 * size
    onnx.checker.check_model(str(target), full_check=True)
    (found,), (expected,) = (run(path, halves(converted.feed)) for path in (target, converted.target))
    assert np.array_equal(found, expected)


def test_external_source_becomes_one_file_below_the_threshold(tmp_path: Path) -> None:
    """The norm's scale stays fp32 and the product's weight does not: neither refers to the source's file."""
    body = """g (float[2, 256] x) => (float[2, 4] y) <float[256] s, float[256, 4] w>
        { a = LayerNormalization (x, s) y = MatMul(a, w) }"""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {body}')
    weights = {"s": np.ones(256, np.float32), "w": np.ones((256, 4), np.float32)}
    del model.graph.initializer[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    ir.save(ir.from_proto(model), source, external_data="weights.bin")
    assert (tmp_path / "weights.bin").stat().st_size == 256 * 5 * 4
    to_mixed_precision(source, target, dict.fromkeys("xay", 1.0))
    (tmp_path / "weights.bin").unlink()
    kept = {tensor.name: tensor.data_type for tensor in onnx.load(target).graph.initializer}
    assert kept == {"s": FLOAT, "w": HALF}


BRANCHES = """g (bool p) => (float y) { y = If (p) <
    then_branch = t () => (float c) { c = Constant <value = float {1}> () },
    else_branch = e () => (float d) { d = Constant <value = float {2}> () }> }"""


@pytest.mark.parametrize(
    ("body", "maxima", "said"),
    [
        (SMALL, {"x": 1.0}, "a: no maximum"),
        (SMALL, {**dict.fromkeys("xabc", 1.0), "y": 7e4}, "y: reaches 70,000"),
        (SMALL.replace("Sqrt", "Sqroot"), dict.fromkeys("xabcy", 1.0), "unknown operator"),
        (BRANCHES, {"y": 1.0}, "control flow"),
    ],
)
def test_refusals(tmp_path: Path, body: str, maxima: dict[str, float], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        to_mixed_precision(write(tmp_path / "s.onnx", body), tmp_path / "target.onnx", maxima)
    assert not (tmp_path / "target.onnx").exists()


@pytest.fixture(scope="module")
def trt() -> Iterator[Any]:
    yield pytest.importorskip("tensorrt_rtx_bindings")


def test_tensorrt_parses_it_with_these_types(converted: Converted, trt: Any) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network()
    reader = trt.OnnxParser(network, logger)
    assert reader.parse_from_file(str(converted.target)), [reader.get_error(i).desc() for i in range(reader.num_errors)]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    kinds = {(layer.type, layer.get_input(0).dtype) for layer in layers if layer.num_inputs}
    assert [t for kind, t in kinds if kind == trt.LayerType.NORMALIZATION] == [trt.float32]
    assert [t for kind, t in kinds if kind == trt.LayerType.CONVOLUTION] == [trt.float16]
