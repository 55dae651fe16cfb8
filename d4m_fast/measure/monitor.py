"""Monitors of a device: how busy it is, at which clocks and at what power, while something runs on it."""

from __future__ import annotations

import importlib
import statistics
import threading
import time
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from d4m_fast.errors import PreflightError

PERIOD = 0.2  # seconds; NVML averages utilisation over a sixth of a second to a second itself
NVML = (
    *("nvmlInit", "nvmlSystemGetDriverVersion", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetUtilizationRates"),
    *("nvmlDeviceGetClockInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature", "nvmlDeviceGetMemoryInfo"),
    *("nvmlDeviceGetCurrentClocksEventReasons", "NVML_CLOCK_SM", "NVML_CLOCK_MEM", "NVML_TEMPERATURE_GPU", "NVMLError"),
)
"""Every name of NVIDIA's management library that is used here."""


class Monitor(Protocol):
    """A context manager that measures from entering to leaving."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def summary(self) -> dict[str, Any]:
        """Return `busy_share` in [0, 1], and whatever else the device tells."""
        ...


def open_monitor(device: torch.device, threads: int) -> Monitor:
    return CpuMonitor(threads) if device.type == "cpu" else GpuMonitor(device)


def require_nvml() -> Any:
    """Return NVIDIA's management library.

    Raises:
        PreflightError: not installed, or no driver.
    """
    try:
        pynvml = importlib.import_module("pynvml")  # it has no types
    except ImportError as error:
        raise PreflightError("certify on a GPU needs its clocks and power: pip install 'd4m-fast[gpu]'") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise PreflightError(
            f"NVIDIA's management library does not start ({error}); is the driver installed?"
        ) from error
    return pynvml


def driver_version(device: torch.device) -> str | None:
    """Return the version of NVIDIA's driver; None on a CPU."""
    return None if device.type == "cpu" else str(require_nvml().nvmlSystemGetDriverVersion())


class CpuMonitor:
    """Monitor of a CPU: this process's processor time, over that of `threads` cores."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._wall = self._used = 0.0

    def __enter__(self) -> Self:
        self._wall, self._used = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._wall, self._used = time.perf_counter() - self._wall, time.process_time() - self._used

    def summary(self) -> dict[str, Any]:
        return {"busy_share": min(1.0, self._used / (self._wall * self._threads))}


class GpuMonitor:
    """Monitor of a GPU: samples of NVML, by a thread of its own.

    `busy_share` is NVML's utilisation: the part of the time in which at least one kernel ran.
    """

    def __init__(self, device: torch.device, period: float = PERIOD) -> None:
        self._nvml, self._period = require_nvml(), period
        # By UUID: NVML counts all GPUs, PyTorch only those of CUDA_VISIBLE_DEVICES.
        self._handle = self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        self._samples: list[dict[str, float]] = []
        self._reasons = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:  # the first sample at once, so that the shortest stretch has one
            self._samples.append(self._read())
            if self._stop.wait(self._period):
                return

    def _read(self) -> dict[str, float]:
        nvml, handle = self._nvml, self._handle
        self._reasons |= nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        return {
            "utilisation": nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "memory_bytes": nvml.nvmlDeviceGetMemoryInfo(handle).used,
        }

    def summary(self) -> dict[str, Any]:
        """Return lowest, mean and highest of each; `clock_event_reasons` are NVML's bits, any time set."""
        ranges = {}
        for name in self._samples[0]:
            values = [sample[name] for sample in self._samples]
            ranges[name] = {"min": min(values), "mean": statistics.mean(values), "max": max(values)}
        busy = ranges.pop("utilisation")["mean"]
        return {"busy_share": busy, "samples": len(self._samples), "clock_event_reasons": self._reasons, **ranges}
