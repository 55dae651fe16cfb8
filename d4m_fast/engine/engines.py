"""The table of the engines that can compute the networks, as `--engine` names them.

A new engine is a file beside `ort.py` and `trt.py`, an entry of `ENGINES`, and its name in `ExportedEngine` of
`config/choices.py`; `export/` says how the files that it opens are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from d4m_fast.config.choices import EngineName
from d4m_fast.engine.artifacts import Artifact
from d4m_fast.engine.ort import describe_ort, ort_opener, require_ort
from d4m_fast.engine.runtime import OpenRuntime
from d4m_fast.engine.trt import describe_trt, require_gpu, trt_opener
from d4m_fast.engine.trt_api import load_trt

Opener = Callable[[Artifact, Mapping[str, int], torch.device], OpenRuntime]


def _accept(*_: object) -> None:
    """Accept any device, and any library."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """All that is told apart between engines where one is chosen, opened or reported.

    Every engine computes in fp32 and, on GPUs, in fp16 (`runtime.resolve_precision`).

    Attributes:
        label: name of the library for people.
        library: name of the library that usually runs it, as certificates have it.
        describe: says for what it is ready on a device; raises PreflightError where it is not.
        require_device: refuses, with PreflightError, a device that it does not run on.
        require_library: refuses, with PreflightError, where a library (by its name in a certificate) does not run here.
        opener: opens the networks of an exported set, on axes of given lengths; None runs the model directory itself.
        built_per_gpu: whether its files are built for certain GPUs, and run on those only.
    """

    label: str
    library: str
    describe: Callable[[torch.device], str]
    require_device: Callable[[torch.device], None] = _accept
    require_library: Callable[[torch.device, Any], object] = _accept
    opener: Opener | None = None
    built_per_gpu: bool = False

    @property
    def exported(self) -> bool:
        """Whether it runs what `d4m-fast export` writes."""
        return self.opener is not None


ENGINES: Mapping[EngineName, EngineSpec] = MappingProxyType(
    {
        "torch": EngineSpec("PyTorch", "torch", lambda device: f"on {device}"),
        "onnx": EngineSpec(
            label="ONNX Runtime",
            library="onnxruntime",
            describe=describe_ort,
            require_library=lambda device, _: require_ort(device),
            opener=ort_opener,
        ),
        "tensorrt": EngineSpec(
            label="TensorRT",
            library="tensorrt",
            describe=describe_trt,
            require_device=require_gpu,
            require_library=lambda _, library: load_trt(library),
            opener=trt_opener,
            built_per_gpu=True,
        ),
    }
)
