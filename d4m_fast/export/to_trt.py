"""ONNX to a TensorRT engine, strongly typed: on the GPU it is for, or ahead of time by TensorRT for RTX."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from d4m_fast.config.choices import FloatType
from d4m_fast.engine.signature import SAMPLES, SIGNATURES, Component
from d4m_fast.engine.trt_api import Api, Builder, IBuilderConfig, INetworkDefinition, RtxBuilderConfig
from d4m_fast.errors import ModelError, PreflightError
from d4m_fast.measure.memory import peak_of_process
from d4m_fast.storage import files

# Kinds of layers that compute products. An attention stands among the layers as its two ends (IAttentionBoundaryLayer).
PRODUCTS = ("CONVOLUTION", "MATRIX_MULTIPLY", "ATTENTION_INPUT", "ATTENTION_OUTPUT")
WORKSPACE_BYTES = 8 << 30
"""More made builds of Stable Diffusion's UNet run out of memory, and no faster (NVIDIA/TensorRT #4360)."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Range:
    """Rows that one optimisation profile takes; it is tuned for `opt`."""

    least: int
    opt: int
    most: int


def ranges(most: int, static: int | None) -> tuple[Range, ...]:
    """Return the profiles for 1 to `most` rows, or for `static` rows alone.

    One row, up to eight, and the rest apart: a profile is as fast as its kernels for `opt` are for what it is given
    (onnxruntime PR #17788: 1.13 times slower away from it).
    """
    if static is not None:
        return (Range(static, static, static),)
    ends = sorted({min(end, most) for end in (1, 8, most)})
    return tuple(Range(before + 1, end, end) for before, end in pairwise((0, *ends)))


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Facts of a built engine.

    Attributes:
        layers: how many of each kind and type the parsed network has, "CONVOLUTION HALF".
        attentions: fused ones the parsed network asks for.
        peak_bytes: of this process, up to the end of the build.
    """

    seconds: float
    bytes: int
    peak_bytes: int
    layers: dict[str, int]
    attentions: int
    profiles: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of a build; `targets` are compute capabilities, for TensorRT for RTX, none for the GPU that is here."""

    precision: FloatType
    targets: tuple[str, ...] = ()
    level: int = 3
    workspace_bytes: int = WORKSPACE_BYTES
    timing_cache: Path | None = None


def capabilities(api: Api, targets: Sequence[str]) -> list[Any]:
    """Return the library's names of "sm80", ...

    Raises:
        PreflightError: it does not build for one of them.
    """
    names = []
    for target in targets:
        capability = api.capability(target)
        if capability is None:
            buildable = sorted(name.lower() for name in dir(api.module.ComputeCapability) if name.startswith("SM"))
            raise PreflightError(
                f"--target {target}: {api.flavour} {api.version} builds for {', '.join(buildable)} only; for another"
                " GPU export on that GPU, without --target"
            )
        names.append(capability)
    return names


def build_engine(
    api: Api,
    onnx: Path,
    target: Path,
    component: Component,
    sizes: Mapping[str, int],
    profiles: Sequence[Range],
    options: BuildOptions,
    *,
    attentions: int,
    say: Say,
) -> EngineReport:
    """Write the engine of one exported network, and `<target>.log` beside it.

    Args:
        sizes: lengths of the axes (`Model.sizes`).
        attentions: `Attention` nodes of the ONNX file; the parsed network must have as many fused attentions.
        say: told the phases of the build.

    Raises:
        ModelError: it cannot be parsed or built, or the parsed network is not what was asked for.
        PreflightError: the disk refuses, or the library does not build for a target.
    """
    start = time.monotonic()
    with files.refusing(target), target.with_name(f"{target.name}.log").open("w", encoding="utf-8") as log:
        errors: list[str] = []

        def write(severity: str, message: str) -> None:
            log.write(f"{severity} {message}\n")
            if severity.endswith("ERROR"):
                errors.append(message)

        logger = api.logger(write)
        builder = api.builder(logger)
        network = _parse(api, builder, logger, onnx)
        layers = check_network(api, network, component, options.precision, attentions, onnx)
        config = _builder_config(api, builder, options, say)
        for rows in profiles:
            _add_profile(builder, config, network, component, sizes, rows)
        built = builder.build_serialized_network(network, config)
        if built is None:
            # An attention without a fused kernel ends here: a native `Attention` is not taken apart unless allowed.
            reason = errors[0].splitlines()[0][:300] if errors else "no reason given"
            raise ModelError(f"{onnx}: {api.flavour} cannot build it ({reason}); all in {target.name}.log")
        # Both results are buffers to Python (IHostMemory), so that nothing is copied.
        if options.timing_cache is not None:
            timing_cache = config.get_timing_cache().serialize()
            files.write_bytes(options.timing_cache, memoryview(cast(Any, timing_cache)))
        files.write_bytes(target, memoryview(cast(Any, built)))
        size = built.nbytes
    fused = layers["ATTENTION_OUTPUT HALF"] + layers["ATTENTION_OUTPUT FLOAT"]
    layer_counts, seconds = dict(sorted(layers.items())), time.monotonic() - start
    return EngineReport(seconds, size, peak_of_process(), layer_counts, fused, tuple(profiles))


def _parse(api: Api, builder: Builder, logger: Any, onnx: Path) -> INetworkDefinition:
    network = builder.create_network(1 << int(api.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")))
    parser = api.parser(network, logger)
    if not parser.parse_from_file(str(onnx)):  # from the file, so that weights beside it are found
        error = parser.get_error(0)
        raise ModelError(f"{onnx}: {api.flavour} cannot read node {error.node_name()} ({error.desc().splitlines()[0]})")
    return network


def check_network(
    api: Api, network: INetworkDefinition, component: Component, precision: FloatType, attentions: int, onnx: Path
) -> Counter[str]:
    """Count the layers of a parsed network by kind and type, and refuse others than asked for.

    Raises:
        ModelError: products in another precision, other tensors than the signature's, or attention not as one layer.
    """
    float_type = "HALF" if precision == "fp16" else "FLOAT"
    layers = Counter[str]()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        layers[f"{layer.type.name} {layer.get_output(0).dtype.name}"] += 1
    products = {kind: count for kind, count in layers.items() if kind.split()[0] in PRODUCTS}
    mistyped = {kind: count for kind, count in products.items() if kind.split()[1] != float_type}
    if mistyped or not products:
        raise ModelError(f"{onnx}: {precision} was asked for, but the network has {mistyped or 'no products'}")
    inputs = map(network.get_input, range(network.num_inputs))
    outputs = map(network.get_output, range(network.num_outputs))
    for tensor in (*inputs, *outputs):
        is_integer = tensor.name in SIGNATURES[component].integers
        expected = api.member("DataType", "INT64" if is_integer else float_type)
        if tensor.dtype != expected:
            raise ModelError(f"{onnx}: {tensor.name} is {tensor.dtype}, {expected} was asked for")
    fused = layers[f"ATTENTION_OUTPUT {float_type}"]
    if fused != attentions:
        raise ModelError(f"{onnx}: {attentions} attentions, of which {fused} were parsed as one layer each")
    return layers


def _builder_config(api: Api, builder: Builder, options: BuildOptions, say: Say) -> IBuilderConfig:
    config = builder.create_builder_config()
    config.clear_flag(api.member("BuilderFlag", "TF32"))  # on by default; fp32 is to mean fp32
    config.set_memory_pool_limit(api.member("MemoryPoolType", "WORKSPACE"), options.workspace_bytes)
    config.builder_optimization_level = options.level
    config.profiling_verbosity = api.member("ProfilingVerbosity", "DETAILED")  # the inspector shows types then
    config.progress_monitor = _monitor(api, say)
    if options.targets:
        rtx = cast(RtxBuilderConfig, config)
        rtx.num_compute_capabilities = len(options.targets)
        for index, capability in enumerate(capabilities(api, options.targets)):
            if not rtx.set_compute_capability(capability, index):
                raise PreflightError(f"--target {options.targets[index]}: {api.flavour} refuses it")
    elif options.timing_cache is not None:  # setting one asks for a GPU
        cached = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(cached), True)
    return config


def _monitor(api: Api, say: Say) -> Any:
    """Return a progress monitor that tells the outer phases: those below the whole build."""
    depth: dict[str, int] = {}

    def start(phase: str, parent: str | None, steps: int) -> None:
        depth[phase] = depth.get(parent, 0) + 1 if parent is not None else 0
        if depth[phase] < 2:
            say(f"{phase}, {steps} steps")

    return api.monitor(start, lambda phase: None)


def _add_profile(
    builder: Builder,
    config: IBuilderConfig,
    network: INetworkDefinition,
    component: Component,
    sizes: Mapping[str, int],
    rows: Range,
) -> None:
    signature = SIGNATURES[component]
    inputs = map(network.get_input, range(network.num_inputs))
    static = all(tensor.shape[0] > 0 for tensor in inputs if tensor.shape)
    # Guidance has two rows per sample, a call without it one; a graph of a fixed batch is called with guidance only.
    least, opt = math.ceil(rows.least / signature.halves), math.ceil(rows.opt / signature.halves)
    samples = Range(least, opt, opt if static else rows.most)
    profile = builder.create_optimization_profile()
    for name, axes in signature.inputs.items():
        if name in signature.batched:
            lengths = samples if SAMPLES in axes else rows
            shape = partial(signature.shape, name, sizes)
            profile.set_shape(name, shape(lengths.least), shape(lengths.opt), shape(lengths.most))
    if config.add_optimization_profile(profile) < 0:
        raise ModelError(f"{network.name}: no profile for {rows.least} to {rows.most} rows can be added")


def check_engine(information: str, precision: FloatType, score_sides: Sequence[int], name: str) -> dict[str, int]:
    """Count the layers of a built engine by the type they write, from the inspector's JSON.

    Args:
        score_sides: numbers of queries, h x w of the attention levels; a tensor with two such axes in fp32 or fp16 is
            a matrix of attention scores, which fused attention never writes.

    Raises:
        ModelError: all that is known runs in another precision than asked for, or attention is not fused.
    """
    outputs: list[dict[str, Any]] = []
    for layer in json.loads(information)["Layers"]:
        if isinstance(layer, dict):
            outputs += layer.get("Outputs", [])
    kinds = Counter(map(_float_type, outputs))
    if kinds["fp16"] + kinds["fp32"] > 0 and not kinds[precision]:
        raise ModelError(f"{name}: {precision} was asked for, but the engine's layers write {dict(kinds)}")
    for output in outputs:
        last_axes = list(output.get("Dimensions", [])[-2:])
        if any(last_axes == [side, side] for side in score_sides):
            raise ModelError(f"{name}: attention is not fused, {output.get('Name')} is {output['Dimensions']}")
    return dict(kinds)


def _float_type(output: Mapping[str, Any]) -> str:
    # The spelling depends on the version of TensorRT.
    name = str(output.get("Format/Datatype", ""))
    if "Half" in name or "FP16" in name:
        return "fp16"
    return "fp32" if "Float" in name or "FP32" in name else "other"
