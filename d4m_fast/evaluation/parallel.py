"""Processes of a launcher that train one student together: shares of the work, sums over all, and one end for all."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from d4m_fast.errors import EXIT_SIGINT, D4MError, PreflightError, UsageError
from d4m_fast.evaluation.protocols import Protocol

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# PyTorch's own for gloo. A process that dies is noticed at once; this is for one that stalls, and a process that is
# still reading its images while the others are ready must not be taken for that.
TIMEOUT = timedelta(minutes=30)
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")  # variables by which torch.distributed's processes find each other
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Number of processes that train a student together, and which of them this is; alone, it communicates nothing."""

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> range:
        """Return this process's contiguous share of so many things; the first processes have one more of a remainder.

        The first process has a share of anything; the last ones may have an empty one.
        """
        quotient, remainder = divmod(count, self.size)
        start = self.rank * quotient + min(self.rank, remainder)
        return range(start, start + quotient + (self.rank < remainder))

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors, all on one device, by their sums over the processes, in one exchange.

        Raises:
            PreflightError: another process has ended, or does not answer.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _answered():
            dist.all_reduce(flat)
        pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
        # One call for all; each copy has the layout of its own tensor, which may be channels_last.
        torch._foreach_copy_(list(tensors), [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)])

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first process makes, in all of them.

        Raises:
            D4MError: what `make` raised, in all of them.
            PreflightError: another process has ended, or does not answer.
        """
        if self.size == 1:
            return make()
        answer: list[Any] = [_value_or_error(make) if self.rank == 0 else None]
        with _answered():
            dist.broadcast_object_list(answer)
        if isinstance(answer[0], D4MError):
            raise answer[0]
        return cast(T, answer[0])

    def require_equal(self, student: nn.Module, epoch: int) -> None:
        """Refuse weights that are no longer those of the first process: everything after would be of neither.

        Raises:
            PreflightError: they differ, in all processes.
        """
        if self.size == 1:
            return
        with torch.no_grad():
            weights = torch.cat([parameter.flatten() for parameter in student.parameters()])
            total = float(weights.double().sum())
        sums = torch.zeros(self.size, dtype=torch.float64)
        sums[self.rank] = total
        self.add_up([sums])
        bits = sums.view(torch.int64)  # NaN is not equal to itself, and is no difference between processes
        if not bool((bits == bits[0]).all()):
            raise PreflightError(
                f"--data-parallel: the processes' weights differ after epoch {epoch + 1}; give all of them the same"
                " kind of GPU and versions of PyTorch, or leave the option out"
            )


def _value_or_error(make: Callable[[], T]) -> T | D4MError:
    try:
        return make()
    except D4MError as error:
        return error


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Put in words that another process does not answer; which of its errors says so depends on the backend."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise PreflightError(
            f"--data-parallel: another process has ended or does not answer ({reason}); the same command goes on from"
            " the last checkpoint"
        ) from error


def require_launcher(place: tuple[int, int] | None) -> Ranks:
    """Return the processes of the launcher.

    Args:
        place: this process's rank and their number; None where there is one.

    Raises:
        UsageError: there is one process, or the processes cannot find each other.
    """
    if place is None:
        raise UsageError(
            "--data-parallel: there is one process, and several share a student; start them with"
            " torchrun --nproc-per-node N -m d4m_fast evaluate ..."
        )
    missing = [name for name in ADDRESS if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"--data-parallel: {' and '.join(missing)} not set, by which the processes find each other; set them to a"
            " host and a free port of the first process, or start with torchrun"
        )
    return Ranks(*place)


def require_own_devices(device: torch.device) -> None:
    """Refuse processes that would compute on the same GPU, and devices without a backend of torch.distributed.

    Raises:
        UsageError: says which.
    """
    try:
        dist.get_default_backend_for_device(device)
    except ValueError as error:
        raise UsageError(
            f"--data-parallel: torch.distributed has no backend for {device.type}; leave it out"
        ) from error
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cpu" or processes == 1:
        return
    if device.index is not None:
        raise UsageError(
            f"--data-parallel: --device {device} is one GPU for {processes} processes; leave its number out"
        )
    gpus = torch.accelerator.device_count()
    if processes > gpus:
        raise UsageError(f"--data-parallel: {processes} processes for {gpus} GPUs; start one per GPU")


@contextlib.contextmanager
def joined(ranks: Ranks, timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Join the other processes; an error of one ends all, and the first that knows of it says so.

    Raises:
        PreflightError: the others do not come.
        SystemExit: another process has said already how all end.
    """
    if ranks.size == 1:
        yield
        return
    store = _meet(ranks, timeout)
    try:
        yield
    except SystemExit:  # by a signal
        raise
    except BaseException as error:
        if _is_said(store):
            raise SystemExit(_code_of(error)) from error
        raise
    # Not after an error: NCCL would wait for processes that are no more.
    dist.destroy_process_group()


def _code_of(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_SIGINT
    return error.exit_code if isinstance(error, D4MError) else D4MError.exit_code


def _meet(ranks: Ranks, timeout: timedelta) -> Store:
    """Start torch.distributed, and return the store that all processes share."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    with _answered():
        store: Store
        store, *_ = next(rendezvous("env://", ranks.rank, ranks.size, timeout=timeout))
        store.set_timeout(timeout)
        # The store of torchrun may outlive the processes that it starts again.
        store = PrefixStore(f"d4m-fast/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            _backend(),
            store=store,
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=timeout,
        )
    return store


def _backend() -> str:
    """Return gloo for tensors on the CPU, and beside it what the GPU's library is, if there is a GPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "gloo"
    return f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator)}"


def _is_said(store: Store) -> bool:
    """Whether another process has said already why all end; from now on, this one has."""
    try:
        return store.add("ended", 1) > 1
    except RuntimeError:  # the process that holds the store has died: better two lines than none
        return False


def shared_protocol(protocol: Protocol, batch_size: int, processes: int) -> Protocol:
    """Return a recipe whose batches have parts for all processes.

    Where the recipe has no `bn_batch`, and its micro-batches do not come out even, this is one part per process and
    micro-batch, as PyTorch's DataParallel cuts them.
    """
    micro = batch_size if protocol.micro_batch is None else min(protocol.micro_batch, batch_size)
    if protocol.bn_batch is not None or math.ceil(batch_size / micro) % processes == 0:
        return protocol
    return replace(protocol, bn_batch=math.ceil(micro / processes))


def shared_bn_batch(protocol: Protocol, batch_sizes: Collection[int], processes: int) -> int | None:
    """Return the `bn_batch` that sharing batches of these sizes comes to; None where it is as the recipe says.

    Raises:
        UsageError: it is not one number for all of them, or a single image.
    """
    shared = {shared_protocol(protocol, size, processes).bn_batch for size in batch_sizes} - {protocol.bn_batch}
    if len(shared) > 1 or 1 in shared:
        sizes = ", ".join(map(str, sorted(batch_sizes)))
        raise UsageError(
            f"--data-parallel: {processes} processes share batches of {sizes} images, and batch normalisation needs one"
            " share of at least 2 for all arms; say which by --override bn_batch=N"
        )
    return next(iter(shared), None)


def has_batch_norm(student: nn.Module) -> bool:
    """Whether what a student makes of an image in training depends on the images beside it."""
    return any(isinstance(module, _BatchNorm) for module in student.modules())


def norms_of(student: nn.Module) -> list[_BatchNorm]:
    """Return the layers of batch normalisation that keep running statistics."""
    norms = (module for module in student.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if norm.running_mean is not None]


def running_statistics(norms: Sequence[_BatchNorm]) -> list[torch.Tensor]:
    """Return the running means and variances."""
    return [cast(torch.Tensor, value) for norm in norms for value in (norm.running_mean, norm.running_var)]


# A running statistic is moved by part after part: r <- (1 - m) r + m s. It is linear in where it began and in the
# statistics s, so that the processes' sum is that of one process if the first begins with r, the others with zero, and
# each does (1 - m) r for the parts that are another's.
def begin_statistics(norms: Sequence[_BatchNorm], ranks: Ranks) -> None:
    """Make the running statistics this process's summand of those that one process would have."""
    if ranks.rank > 0 and norms:
        torch._foreach_zero_(running_statistics(norms))


def pass_part(norms: Sequence[_BatchNorm]) -> None:
    """Do to the running statistics what a part of a batch does to them that another process computes."""
    decays = list[float]()
    for norm in norms:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        factor = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        decays += [1 - factor, 1 - factor]
    if any(decay != 1 for decay in decays):
        torch._foreach_mul_(running_statistics(norms), decays)
