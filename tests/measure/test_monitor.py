"""Samples of NVIDIA's management library, on a stand-in whose every name the real one has."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from driving import refused, run_cli

from d4m_fast.errors import PreflightError
from d4m_fast.measure import monitor
from d4m_fast.measure.monitor import NVML, CpuMonitor, GpuMonitor, require_nvml

GPU = torch.device("cuda:0")


class Broken(Exception):
    pass


def stand_in(watts: list[int]) -> SimpleNamespace:
    """A GPU whose power readings, in milliwatts, are these in turn."""
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=80),
        nvmlDeviceGetClockInfo=lambda _, kind: {1: 1980, 2: 2619}[kind],
        nvmlDeviceGetPowerUsage=lambda _: watts.pop(0) if len(watts) > 1 else watts[0],
        nvmlDeviceGetTemperature=lambda _, kind: {0: 55}[kind],
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=10**9),
        nvmlDeviceGetCurrentClocksEventReasons=lambda _: 4,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        NVMLError=Broken,
    )


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = stand_in([300_000, 500_000, 400_000])
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    return fake


def test_the_real_library_has_every_name() -> None:
    pynvml: Any = pytest.importorskip("pynvml")
    assert set(vars(stand_in([0]))) == set(NVML)
    assert [name for name in NVML if not hasattr(pynvml, name)] == []
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU) == (1, 2, 0)


def test_a_gpu_is_sampled(nvml: SimpleNamespace) -> None:
    with GpuMonitor(GPU, period=0.001) as found:
        while len(found._samples) < 3:
            time.sleep(0.001)
    summary = found.summary()
    assert summary["busy_share"] == pytest.approx(0.8)
    assert (summary["watts"]["min"], summary["watts"]["max"]) == (300, 500)
    assert summary["sm_mhz"]["mean"] == 1980
    assert summary["memory_mhz"]["mean"] == 2619
    assert (summary["clock_event_reasons"], summary["samples"] >= 3) == (4, True)


def test_the_card_is_found_by_its_uuid(nvml: SimpleNamespace) -> None:
    """Its index is another one under CUDA_VISIBLE_DEVICES."""
    assert GpuMonitor(GPU)._handle == "GPU-1234"


def test_no_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr("d4m_fast.certification.request.resolve_device", lambda _: GPU)
    refused(run_cli("certify"), 6, "pip install 'd4m-fast[gpu]'")


def test_no_driver_is_one_line(nvml: SimpleNamespace) -> None:
    def fail() -> None:
        raise Broken("Driver Not Loaded")

    nvml.nvmlInit = fail
    with pytest.raises(PreflightError, match="Driver Not Loaded"):
        require_nvml()


def test_a_cpu_is_busy_or_not() -> None:
    with CpuMonitor(1) as idle:
        time.sleep(0.1)
    with CpuMonitor(1) as busy:
        used = time.process_time()
        while time.process_time() < used + 0.1:
            pass
    assert idle.summary()["busy_share"] < busy.summary()["busy_share"] <= 1
    assert monitor.driver_version(torch.device("cpu")) is None
