"""Options of how many processes work on a run, and how they find each other; they change no byte of it."""

from __future__ import annotations

from dataclasses import dataclass

from d4m_fast.config.fields import Group, check_bounds, setting


@dataclass(frozen=True)
class LaunchConfig:
    """Options of `d4m-fast distill` beside `DistillConfig`: they are no part of a run's identity.

    Attributes:
        workers: processes; 1 is this one. Each has a GPU of its own where there are several, or its part of the cores.
        ray: "local", "auto", an address, or None for processes of this machine.
        shard: "I/N", "auto", or None for all.
        lease_seconds: of `storage.leases.Timing`.
    """

    workers: int = setting(
        1, group=Group.MACHINE, help="Processes: one per GPU, or parts of the cores.", minimum=1, maximum=1024
    )
    shard: str | None = setting(
        None,
        group=Group.MACHINE,
        help="I/N: make only the I-th of N parts, for d4m-fast merge; auto: as SLURM, torchrun or MPI number this"
        " process.",
        default_text="all",
    )
    ray: str | None = setting(
        None,
        group=Group.MACHINE,
        help="local, auto or a cluster's address: processes are actors of Ray, one per GPU, or per --threads cores;"
        " --workers above 1: at most so many.",
        default_text="no Ray",
    )
    lease_seconds: float = setting(
        60.0,
        group=Group.MACHINE,
        help="Without a sign of life for so long, a process's work is taken over by others.",
        minimum=0.1,
        maximum=86400,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
