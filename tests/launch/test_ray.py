"""Actors of Ray on one run: the bytes of one process, also where an actor or a node is lost on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import ROOT, command, environment, products, write_photos

from d4m_fast.runs.verify import verify
from d4m_fast.storage.lease_files import holders

pytestmark = pytest.mark.slow
LISTEN = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}  # IPv4, IPv6, mapped
ray = pytest.importorskip("ray")

NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1)]
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes.pop()) if line.strip() == "remove" else nodes.append(cluster.add_node(num_cpus=1))
    print("done", flush=True)
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def long_options(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[object, ...]:
    """Enough groups for something to be lost among them."""
    data = write_photos(tmp_path_factory.mktemp("data") / "photos", [f"class {i:02d}" for i in range(16)], 8)
    options = ("--data", data, "--model", tiny_model, "--ipc", 4, "--steps", 50, "--threads", 1, "--batch-size", 1)
    return (*options, "--lease-seconds", 3, "--quiet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, long_options: tuple[object, ...]) -> Path:
    # A process of its own, as actors are: switches of OpenBLAS in the surroundings may be in force in this one.
    root = tmp_path_factory.mktemp("whole")
    out, err = start(long_options, root).communicate(timeout=600)
    assert verify(root / "run").whole, (out, err)
    return root / "run"


@pytest.fixture
def cluster() -> Iterator[subprocess.Popen[str]]:
    """Two nodes on this machine; a line on stdin removes the second."""
    variables = {**environment(), "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [sys.executable, "-c", NODES], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def start(options: tuple[object, ...], root: Path, *flags: object, **variables: str) -> subprocess.Popen[str]:
    places = ("--out", root / "run", "--artifacts", root / "art")
    return subprocess.Popen(
        command("distill", *options, *places, *flags),
        env={**environment(), **variables},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def at_work(run: Path, driver: subprocess.Popen[str]) -> int:
    """The process of an actor that works on a group."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert driver.poll() is None, driver.communicate()
        for lease in holders(run / "groups").values():
            if lease is not None and lease.phase == "working":
                return lease.holder.pid
        time.sleep(0.01)
    raise AssertionError("nobody began")


def finishes(driver: subprocess.Popen[str], run: Path, whole: Path) -> None:
    out, err = driver.communicate(timeout=600)
    assert driver.returncode == 0, (out, err)
    assert products(run) == products(whole)
    assert verify(run, deep=True).whole


def listeners(pids: set[int]) -> set[str]:
    """Addresses that processes listen on, as the kernel writes them: little-endian hexadecimal."""
    inodes = set[str]()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    found = set[str]()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in inodes:
                found.add(fields[1].rpartition(":")[0])
    return found


def descendants(pid: int) -> set[int]:
    parents = dict[int, int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def test_an_actor_that_is_killed(tmp_path: Path, long_options: tuple[object, ...], whole: Path) -> None:
    driver = start(long_options, tmp_path, "--ray", "local", "--workers", 2)
    actor = at_work(tmp_path / "run", driver)
    addresses = listeners(descendants(driver.pid))
    assert addresses
    assert addresses <= LOOPBACK
    os.kill(actor, signal.SIGKILL)
    finishes(driver, tmp_path / "run", whole)


def test_a_node_that_is_removed_and_one_that_comes(
    tmp_path: Path, long_options: tuple[object, ...], whole: Path, cluster: subprocess.Popen[str]
) -> None:
    assert cluster.stdin is not None and cluster.stdout is not None
    address = cluster.stdout.readline().strip()
    driver = start(long_options, tmp_path, "--ray", address, RAY_AUTH_MODE="disabled")
    at_work(tmp_path / "run", driver)
    for change in ("remove", "add"):
        cluster.stdin.write(f"{change}\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline() == "done\n"
    finishes(driver, tmp_path / "run", whole)


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, long_options: tuple[object, ...]) -> None:
    driver = start(long_options, tmp_path, "--ray", "127.0.0.1:1", RAY_AUTH_MODE="disabled")
    _, err = driver.communicate(timeout=600)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (driver.returncode, len(errors)) == (6, 1), err
    assert "--ray 127.0.0.1:1: " in errors[0]
