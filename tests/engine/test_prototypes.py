"""The clustering stage: groups of classes, means and medoids, a class that cannot be clustered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from d4m_fast.config.distill import DistillConfig
from d4m_fast.engine import prototypes
from d4m_fast.engine.prototypes import cluster
from d4m_fast.errors import DataError
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.stream import Stream
from d4m_fast.flow.workers import Workers
from d4m_fast.kernels.kmeans import BadProblems, kmeans
from d4m_fast.runs.latents import EncodedBatch, Failure, LatentStore
from d4m_fast.runs.ranges import OwnRanges
from d4m_fast.runs.records import Prototypes
from d4m_fast.sources.records import ClassInfo, Item, Source

IPC, SHAPE = 3, (2, 4, 4)
COUNTS = {4: 20, 0: 12, 7: 30, 2: 9}
DAMAGED = Item(4, 5, "4/5.png")
CLASSES = [ClassInfo(class_id, f"folder {class_id}", "") for class_id in COUNTS]
ITEMS = [Item(class_id, rank, f"{class_id}/{rank}.png") for class_id, count in COUNTS.items() for rank in range(count)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def latents(item: Item) -> np.ndarray:
    draws = np.random.default_rng([item.class_id, item.rank])
    return (draws.standard_normal(SHAPE) + 3 * draws.integers(0, 4)).astype(np.float16).astype(np.float32)


def store(path: Path, of: Callable[[Item], np.ndarray] = latents) -> LatentStore:
    good = [item for item in ITEMS if item != DAMAGED]
    batch = EncodedBatch(good, np.stack([of(item) for item in good]), [Failure(DAMAGED, "damaged")])
    found = LatentStore(path, {"batch": len(ITEMS)}, ITEMS, SHAPE)
    with Workers(Stopwatch()) as workers:
        list(found.spans(ours := OwnRanges([0])))
        list(found.fill(Stream(1, [batch]), workers, ours))
    found.finish()
    return found


def run(latents: LatentStore, **options: Any) -> list[Prototypes]:
    return list(stream(latents, **options))


def stream(latents: LatentStore, **options: Any) -> Stream[Prototypes]:
    source = cast(Source, SimpleNamespace(items=ITEMS))
    return cluster(CLASSES, latents, source, DistillConfig(ipc=IPC, **options))


def test_groups_and_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = store(tmp_path)
    expected = run(saved)
    assert [p.info.id for p in expected] == list(COUNTS)
    for size, threads in ((1, 1), (2 * 64 * 30, 3)):
        monkeypatch.setattr(prototypes, "GROUP_BYTES", size)
        for one, other in zip(run(saved, threads=threads), expected, strict=True):
            np.testing.assert_array_equal(one.centroids, other.centroids)
            assert one.nearest == other.nearest


def test_every_group_is_full_but_none_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototypes, "GROUP_BYTES", 2 * 32 * 32)
    groups = [[info.id for info in group] for group in prototypes._groups(CLASSES, store(tmp_path))]
    assert groups == [[4, 0], [7], [2]]


def test_means_are_those_of_the_images_nearest_to_them(tmp_path: Path) -> None:
    for p in run(store(tmp_path)):
        good = [item for item in ITEMS if item.class_id == p.info.id and item != DAMAGED]
        rows = np.stack([latents(item) for item in good])
        distances = np.square(rows[:, None].astype(float) - p.centroids).sum(axis=(2, 3, 4))
        labels = distances.argmin(axis=1)
        np.testing.assert_allclose(p.centroids, [rows[labels == c].mean(axis=0) for c in range(IPC)], rtol=1e-5)
        np.testing.assert_array_equal(p.sizes, np.bincount(labels))
        assert p.nearest == tuple(good[i].origin for i in distances.argmin(axis=0))
        inertia = np.bincount(labels, weights=distances.min(axis=1))
        np.testing.assert_allclose(p.inertia_share, inertia / inertia.sum(), rtol=1e-5)


def test_medoids_are_the_latents_of_the_nearest_images(tmp_path: Path) -> None:
    saved = store(tmp_path)
    by_origin = {item.origin: latents(item) for item in ITEMS}
    for p, mean in zip(run(saved, prototype="medoid"), run(saved), strict=True):
        assert p.nearest == mean.nearest
        np.testing.assert_array_equal(p.centroids, [by_origin[origin] for origin in p.nearest])


def test_classes_before_a_bad_one_are_not_lost(tmp_path: Path) -> None:
    def bad(item: Item) -> np.ndarray:
        return np.full(SHAPE, np.nan, np.float32) if item.class_id == 7 else latents(item)

    found = list[Prototypes]()
    with pytest.raises(BadProblems, match="class 7: NaN"):
        for p in stream(store(tmp_path, bad)):
            found.append(p)
    good = run(store(tmp_path / "good"))[:2]
    assert [p.info.id for p in found] == [4, 0]
    np.testing.assert_array_equal(found[1].centroids, good[1].centroids)


def test_a_class_with_too_few_usable_images_is_refused_before_anything_is_clustered(tmp_path: Path) -> None:
    source = cast(Source, SimpleNamespace(items=ITEMS))
    with pytest.raises(DataError, match="class folder 4: 19 usable images, fewer than --ipc 20"):
        cluster(CLASSES[:1], store(tmp_path), source, DistillConfig(ipc=20))


def test_a_thread_may_run_it(tmp_path: Path) -> None:
    saved, found = store(tmp_path), list[Prototypes]()
    thread = Thread(target=lambda: found.extend(stream(saved)))
    thread.start()
    thread.join()
    for one, other in zip(found, run(saved), strict=True):
        np.testing.assert_array_equal(one.centroids, other.centroids)


def test_latents_go_where_they_are_clustered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch's tensors on the device of the networks; a GPU's are the business of `kernels.cuda`."""
    seen: list[str] = []

    def watched(points: Sequence[Any], *args: Any, **options: Any) -> Any:
        seen.extend(f"{type(x).__name__} {getattr(x, 'device', '')}" for x in points)
        return kmeans(points, *args, **options)

    monkeypatch.setattr(prototypes, "kmeans", watched)
    found, wanted = run(store(tmp_path / "a"), kmeans_on="gpu", device="cpu"), run(store(tmp_path / "b"))
    assert seen == ["Tensor cpu"] * len(CLASSES) + ["ndarray cpu"] * len(CLASSES)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.centroids, other.centroids)
