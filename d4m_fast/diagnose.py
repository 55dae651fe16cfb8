"""Report of what is installed here, and which engines can run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from d4m_fast import __version__
from d4m_fast.engine.ort import require_ort
from d4m_fast.engine.runtime import resolve_device
from d4m_fast.engine.trt_api import load_trt
from d4m_fast.errors import PreflightError

LIBRARIES = (
    *("torch", "torchvision", "diffusers", "transformers", "safetensors", "numpy", "pillow", "click", "rich"),
    *("onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "tensorrt-cu13", "tensorrt-rtx-cu13-libs"),
    *("cupy-cuda13x", "ray", "pyarrow", "webdataset", "datasets"),
)


def diagnose() -> dict[str, Any]:
    """Return versions, None for what is not installed; devices; and for each engine whether it runs, and why not."""
    device = resolve_device("auto")
    return {
        "d4m-fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "devices": ["cpu", *_gpus()],
        "device": str(device),
        "engines": {"torch": _ready(f"on {device}"), "onnx": _onnx(device), "tensorrt": _tensorrt()},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _ready(reason: str) -> dict[str, Any]:
    return {"available": True, "reason": reason}


def _onnx(device: torch.device) -> dict[str, Any]:
    try:
        require_ort(device)
    except PreflightError as error:
        return {"available": False, "reason": str(error)}
    return _ready(f"on {device}, for models that d4m-fast export has certified")


def _tensorrt() -> dict[str, Any]:
    if not _gpus():
        return {"available": False, "reason": "PyTorch sees no GPU here; engines can be built with export --target"}
    try:
        api = load_trt("tensorrt")
    except PreflightError as error:
        return {"available": False, "reason": str(error)}
    return _ready(f"TensorRT {api.version}, for models that d4m-fast export has certified on this GPU")
