"""Peak memory of a stretch of work."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Literal

import torch

from d4m_fast.allocator import release_freed_memory

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KILOBYTES = 1024  # Linux gives resident sizes in these
PeakOf = Literal["process", "process since its start", "PyTorch's allocator on the GPU"]


class PeakMemory:
    """The largest memory in use since `reset`, in bytes.

    On GPUs what PyTorch's allocator has handed out, which leaves out what other libraries take for themselves. On
    CPUs the resident size of the process; where the system does not let its mark be reset, since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.of: PeakOf = "PyTorch's allocator on the GPU" if device.type != "cpu" else _resettable()

    def reset(self) -> None:
        """Start anew, from what is in use now."""
        if self._device.type != "cpu":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self.of == "process":
            release_freed_memory()  # or it would count as in use
            RESET.write_text("5")  # sets VmHWM to the resident size, see proc(5)

    def bytes(self) -> int:
        if self._device.type != "cpu":
            return torch.cuda.max_memory_allocated(self._device)
        return _high_water() if self.of == "process" else peak_of_process()


def peak_of_process() -> int:
    """Return the largest resident size of this process since its start, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTES


def _resettable() -> PeakOf:
    """Return whether the kernel lets this process set its high-water mark back."""
    try:
        RESET.write_text("5")
        _high_water()
    except (OSError, StopIteration):
        return "process since its start"
    return "process"


def _high_water() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * KILOBYTES
