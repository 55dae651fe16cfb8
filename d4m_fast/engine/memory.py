"""Memory of the device: how much is free, which errors mean that it ran out, and copies that do not stop the device."""

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
    """Return whether a library failed because it got no memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or EXHAUSTED.search(str(error)) is not None


@contextlib.contextmanager
def fitting(stage: str) -> Iterator[None]:
    """Turn a want of memory inside a stage's call of a network into our own error, whichever library raised it.

    Raises:
        OutOfMemoryError: the call did not fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_exhaustion(error):
            raise
        lines = str(error).strip().splitlines()
        raise OutOfMemoryError(stage, lines[0] if lines else type(error).__name__) from error


def release(device: torch.device) -> None:
    """Give back what the allocator keeps for reuse, so that smaller batches find room."""
    if device.type != "cpu":
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int:
    """Return the free bytes of the device; for the CPU the machine's, or what its control group still allows."""
    if device.type != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_free_of_machine(), _free_of_group(_CGROUP))


def _free_of_machine() -> int:
    if not _MEMINFO.is_file():  # not Linux: all memory there is, as no better figure is at hand
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return 1024 * int(fields["MemAvailable"].split()[0])


def _free_of_group(group: Path) -> int:
    """Return a container's limit less its anonymous memory, as page cache can be given back; 2^62 without a limit."""
    limit = group / "memory.max"
    value = limit.read_text().strip() if limit.is_file() else "max"
    if value == "max":
        return 2**62
    used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return max(int(value) - int(used["anon"]), 0)


def host_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor on the host that can be copied to the device without stopping it: page-locked for GPUs."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type != "cpu")


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of `host_empty` to the device, in the order of its current stream."""
    return x.to(device, non_blocking=True)


def to_host(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin a copy to the host, and return a function that waits for it, in any thread, and returns it."""
    if x.device.type == "cpu":
        return lambda: x
    copy = x.to("cpu", non_blocking=True)  # page-locked by PyTorch
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(x.device))

    def wait() -> torch.Tensor:
        copied.synchronize()
        return copy

    return wait
