"""Memory of the device: how much is free, what failed for want of it, and copies that do not stop the device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from d4m_fast.errors import EXHAUSTED, OutOfMemoryError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def is_exhaustion(error: BaseException) -> bool:
    """Whether a library failed because it got no memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or EXHAUSTED.search(str(error)) is not None


@contextlib.contextmanager
def fitting(stage: str) -> Iterator[None]:
    """A stage's call of a network.

    Raises:
        OutOfMemoryError: it did not fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_exhaustion(error):
            raise
        first = str(error).strip().splitlines()
        raise OutOfMemoryError(stage, first[0] if first else type(error).__name__) from error


def release(device: torch.device) -> None:
    """Give back what the allocator keeps for reuse, so that smaller batches find room."""
    if device.type != "cpu":
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on the device, or on the machine for the CPU, under its control group's limit."""
    if device.type != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_of_machine(), _of_group(_CGROUP))


def _of_machine() -> int:
    if not _MEMINFO.is_file():  # not Linux: what is built in, for want of a better figure
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return 1024 * int(fields["MemAvailable"].split()[0])


def _of_group(group: Path) -> int:
    """A container's limit, less what is not page cache; no limit is a very large one."""
    limit = group / "memory.max"
    value = limit.read_text().strip() if limit.is_file() else "max"
    if value == "max":
        return 2**62
    used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return max(int(value) - int(used["anon"]), 0)


def host_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor on the host that can be copied to the device without stopping it: page-locked for GPUs."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type != "cpu")


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of `host_empty`, where the device computes; the copy is in its stream's order."""
    return x.to(device, non_blocking=True)


def to_host(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin a copy to the host; what is returned waits for it, in any thread, and gives it."""
    if x.device.type == "cpu":
        return lambda: x
    copy = x.to("cpu", non_blocking=True)  # page-locked by PyTorch
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(x.device))

    def wait() -> torch.Tensor:
        done.synchronize()
        return copy

    return wait
