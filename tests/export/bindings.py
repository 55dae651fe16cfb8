"""Print what TensorRT's bindings know of the names in `trt_api`; the real ones load beside stub libraries.

python bindings.py tensorrt_bindings|tensorrt_rtx_bindings
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ENTRY_POINTS = {
    "libnvinfer.so.11": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
    "libnvonnxparser.so.11": (
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}


def preload_stubs(folder: Path) -> None:
    """Libraries of the names that the bindings ask for, with entry points that do nothing."""
    for library, names in ENTRY_POINTS.items():
        source = folder / f"{library}.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
        path = folder / library
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", path, source], check=True)
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def described(module: Any, name: str) -> dict[str, Any]:
    """Members of a class, with the arguments of each of their overloads."""
    cls = getattr(module, name, None)
    if cls is None:
        return {}
    return {member: overloads(getattr(cls, member)) for member in dir(cls) if not member.startswith("__")}


def overloads(member: Any) -> list[list[str]]:
    """Argument names, self left out, that pybind11 writes at the head of each signature."""
    lines = [line for line in (getattr(member, "__doc__", None) or "").splitlines() if "(self:" in line]
    found = (re.search(r"\(self: [\w.]+(.*)\) ->", line) for line in lines)
    return [re.findall(r", (\w+):", match.group(1)) for match in found if match is not None]


def main(package: str, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if package == "tensorrt_bindings":
            preload_stubs(Path(folder))
        module = importlib.import_module(package)
    found = {name: described(module, name) for name in names}
    json.dump({"version": module.__version__, "classes": found}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
