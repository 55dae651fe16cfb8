"""`distill --compile`: what it changes, what it refuses; the compilation itself is slow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import Finished, Ran, refused
from PIL import Image

from d4m_fast.config.distill import DistillConfig
from d4m_fast.engine import networks
from d4m_fast.engine.eager import CompiledRuntime, EagerRuntime, open_eager
from d4m_fast.engine.networks import open_networks
from d4m_fast.engine.signature import COMPONENTS
from d4m_fast.errors import PreflightError
from d4m_fast.job import prepare

CPU = torch.device("cpu")


def pixels(run: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(run.glob("images/*/*.png"))]).astype(int)


def test_all_but_the_text_encoder_are_compiled(tiny_model: Path) -> None:
    plain, compiled = (open_networks(tiny_model, CPU, torch.float32, compiled=c) for c in (False, True))
    assert {type(plain.runtime(c)) for c in COMPONENTS} == {EagerRuntime}
    kinds = {c: type(compiled.runtime(c)) for c in COMPONENTS}
    assert kinds.pop("text_encoder") is EagerRuntime
    assert set(kinds.values()) == {CompiledRuntime}


def test_it_is_part_of_what_a_run_is(tiny_model: Path, photos: Path, tmp_path: Path) -> None:
    jobs = [
        prepare(DistillConfig(str(photos), str(tiny_model), ipc=2, compile=c), artifacts=tmp_path)
        for c in (False, True)
    ]
    assert jobs[0].default_run() != jobs[1].default_run()
    assert len({str(job.latents_path(tmp_path, 8, job.threads)) for job in jobs}) == 2
    assert [job.engine_reason for job in jobs] == ["torch", "torch, through torch.compile"]


def test_a_run_keeps_to_it_and_says_so(
    distill: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the compilation left out: what is asked of it, not what it does."""
    asked: list[bool] = []

    def open_plain(*args: object, compiled: bool, reference: bool) -> object:
        asked.append(compiled)
        return open_eager(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(networks, "open_eager", open_plain)
    ran = distill("--compile")
    assert ran.code == 0, ran.err
    assert "engine: torch, through torch.compile" in ran.err
    assert sorted(asked) == [False, True, True, True]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["compile"] is True
    refused(distill(), 4, "compile: true there, false now")


@pytest.mark.parametrize("engine", ["onnx", "tensorrt"])
def test_another_engine_is_refused(distill: Callable[..., Ran], engine: str) -> None:
    refused(distill("--compile", "--engine", engine), 2, "--compile is for --engine torch")


def test_no_compiler_is_one_line(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> object:
        from torch._dynamo.exc import BackendCompilerFailed

        raise BackendCompilerFailed(fail, RuntimeError("no working C++ compiler"), None)

    runtime = CompiledRuntime(EagerRuntime(torch.nn.Identity(), "vae_decoder", CPU, torch.float32))
    monkeypatch.setattr(EagerRuntime, "__call__", fail)
    with pytest.raises(PreflightError, match="needs a C\\+\\+ compiler"):
        runtime({"latents": torch.zeros(1, 4, 8, 8)})


@pytest.mark.slow
def test_compiled_images_are_equal(finished: Finished, distill: Callable[..., Ran], tmp_path: Path) -> None:
    """Minutes on a slow machine: each network is compiled for each shape."""
    ran = distill("--compile")
    assert ran.code == 0, ran.err
    assert np.abs(pixels(tmp_path / "run") - pixels(finished.run)).max() <= 1
