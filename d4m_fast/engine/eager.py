"""The PyTorch runtime: diffusers' and transformers' modules, the UNet with our forward pass where that is proven."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from d4m_fast.allocator import keep_freed_memory
from d4m_fast.engine.libraries import one_line
from d4m_fast.engine.modules import load_module
from d4m_fast.engine.runtime import Runtime, Tensors, place
from d4m_fast.engine.signature import SIGNATURES, Component
from d4m_fast.engine.unet import UnetModule, require_equal
from d4m_fast.errors import PreflightError


class CompiledRuntime:
    """A network put through torch.compile as a whole, once for each shape."""

    def __init__(self, runtime: EagerRuntime) -> None:
        self._runtime = runtime
        self.device, self.dtype = runtime.device, runtime.dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        try:
            return self._runtime(inputs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            raise PreflightError(
                f"--compile: torch.compile failed ({one_line(error)}); it needs a C++ compiler, and Triton on a GPU;"
                " leave it out"
            ) from error


class EagerRuntime:
    """A network as PyTorch runs it module by module, in inference mode."""

    def __init__(self, module: torch.nn.Module, component: Component, device: torch.device, dtype: torch.dtype) -> None:
        self._module = module
        self._signature = SIGNATURES[component]
        self.device = device
        self.dtype = dtype

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        arguments = place(inputs, self._signature, self.device, self.dtype).values()
        with torch.inference_mode():
            return dict(zip(self._signature.outputs, self._module(*arguments), strict=True))


def open_eager(
    path: Path,
    component: Component,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compiled: bool = False,
    reference: bool = False,
) -> Runtime:
    """Load one network of a checked model directory.

    Args:
        compiled: put it through torch.compile, shape by shape.
        reference: run diffusers' own forward pass, even where ours is proven to equal it.

    Raises:
        ModelError: its weights do not fit its config, or our UNet does not equal diffusers'.
        PreflightError: (when called) torch.compile cannot work here.
    """
    if device.type == "cpu":
        keep_freed_memory()
    module = load_module(path, component, dtype, reference=reference).to(device=device)
    if isinstance(module, UnetModule):
        require_equal(module, str(path / "unet"))
    # Channels last for tensor cores. On CPUs diffusers' own layout is no slower and nearer to its bits, except in
    # the encoder, whose bits nothing is compared with.
    if device.type != "cpu" or component == "vae_encoder":
        module = module.to(memory_format=torch.channels_last)
    runtime = EagerRuntime(module, component, device, dtype)
    if not compiled:
        return runtime
    # As a whole graph, so that what cannot be compiled fails instead of running uncompiled.
    module.compile(dynamic=False, fullgraph=True)
    return CompiledRuntime(runtime)
