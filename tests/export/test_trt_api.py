"""Every TensorRT name, member and argument this package uses, looked up in the bindings of both libraries."""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from driving import HANGS

from d4m_fast.engine import trt_api

BINDINGS = Path(__file__).with_name("bindings.py")
RTX_ONLY = {"RtxBuilderConfig": "IBuilderConfig"}
PROTOCOLS = {
    name: cls
    for name, cls in vars(trt_api).items()
    if isinstance(cls, type) and getattr(cls, "_is_protocol", False) and cls.__module__ == trt_api.__name__
}
PACKAGES = ["tensorrt_bindings", "tensorrt_rtx_bindings"]


@pytest.fixture(scope="module", params=PACKAGES)
def known(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What one library's bindings have."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed: pip install 'd4m-fast[rtx,dev]'")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the stub libraries")
    names = {*PROTOCOLS, *trt_api.ENUMS, *trt_api.CALLBACKS, "ComputeCapability"} - set(RTX_ONLY)
    ran = subprocess.run(
        [sys.executable, BINDINGS, request.param, *names], capture_output=True, text=True, check=False, timeout=HANGS
    )
    assert ran.returncode == 0, ran.stderr
    return {"package": request.param, **json.loads(ran.stdout)}


def problems(known: dict[str, Any], name: str, protocol: type) -> list[str]:
    members = known["classes"][RTX_ONLY.get(name, name)]
    wanted = {m: v for m, v in vars(protocol).items() if not m.startswith("_") and callable(v)}
    fields = {*protocol.__annotations__, *(m for m, v in vars(protocol).items() if isinstance(v, property))}
    found = [f"{name}.{m}" for m in {*wanted, *fields} if m not in members]
    for member in wanted.keys() & members.keys():
        arguments = list(inspect.signature(wanted[member]).parameters)[1:]
        if not any(overload[: len(arguments)] == arguments for overload in members[member]):
            found.append(f"{name}.{member}({', '.join(arguments)}), there: {members[member]}")
    return found


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_members_and_arguments(known: dict[str, Any], name: str) -> None:
    if name in RTX_ONLY and known["package"] != "tensorrt_rtx_bindings":
        pytest.skip("TensorRT for RTX alone")
    assert problems(known, name, PROTOCOLS[name]) == []


@pytest.mark.parametrize("name", [*trt_api.ENUMS, *trt_api.CALLBACKS])
def test_enumerations_and_callbacks(known: dict[str, Any], name: str) -> None:
    assert {*trt_api.ENUMS.get(name, ()), *trt_api.CALLBACKS.get(name, ())} <= known["classes"][name].keys()


def test_targets(known: dict[str, Any]) -> None:
    if known["package"] == "tensorrt_rtx_bindings":
        assert {"SM80", "SM86", "SM89", "SM120"} <= known["classes"]["ComputeCapability"].keys()
    else:
        assert known["version"].startswith("11.")
        assert known["classes"]["ComputeCapability"] == {}


def test_a_name_that_is_not_there_is_found(known: dict[str, Any]) -> None:
    class Builder:
        platform_has_fast_fp16: bool

        def create_network(self, options: int) -> None: ...

    found = problems(known, "Builder", Builder)
    assert "Builder.platform_has_fast_fp16" in found
    assert any(problem.startswith("Builder.create_network(options)") for problem in found)


def test_there_is_something_to_look_up() -> None:
    assert {"Builder", "IBuilderConfig", "OnnxParser", "ICudaEngine", "IExecutionContext"} <= PROTOCOLS.keys()


def test_members_of_enumerations_are_listed() -> None:
    api = trt_api.Api(type("module", (), {"__version__": "0"}), "tensorrt")
    with pytest.raises(KeyError, match="not in ENUMS"):
        api.member("BuilderFlag", "FP16")
