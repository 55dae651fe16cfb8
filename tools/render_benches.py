"""Tables of the benches in README.md and docs/, between `<!-- bench:NAME begin -->` and `<!-- bench:NAME end -->`.

python tools/render_benches.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
sys.path[:0] = [str(ROOT), str(BENCH), str(ROOT / "tools")]

import bench_aims  # noqa: E402
import bench_tables  # noqa: E402
import engines  # noqa: E402
import kmeans_roofline  # noqa: E402
import official  # noqa: E402
import page_tables  # noqa: E402
import plot_kmeans  # noqa: E402
import presets  # noqa: E402

from d4m_fast.kernels.roofline import H100  # noqa: E402

KIND = "bench"
IMAGENET = {"classes": 1000, "n": 1300, "d": 16_384}  # in the latents of 512 pixel images


def roofline(_: Path) -> str:
    """Return the least time of k-means on a GPU, which is calculated here and now."""
    ks = (10, 50, 100, 200)
    columns = [kmeans_roofline.rows(k=k, machine=H100, **IMAGENET) for k in ks]
    lines = [[name, *(f"{column[name]:,.1f}" for column in columns)] for name in columns[0]]
    return page_tables.markdown(("ms for 1,000 classes", *(f"k = {k}" for k in ks)), lines)


def presets_table(name: str) -> Callable[[Path], str]:
    return lambda folder: presets.tables(folder / "presets.jsonl")[name]


def kmeans_table(name: str) -> Callable[[Path], str]:
    return lambda folder: plot_kmeans.markdown(plot_kmeans.read(folder / "kmeans.jsonl", name))


def engines_table(model: str) -> Callable[[Path], str]:
    return lambda folder: engines.table(folder / "engines.jsonl", model)


def arms_table(ipc: int) -> Callable[[Path], str]:
    return lambda folder: bench_tables.arms(folder / "accuracy.jsonl", ipc)


TABLES: Mapping[str, Callable[[Path], str]] = {
    "accuracy": bench_tables.accuracy,
    "arms-ipc1": arms_table(1),
    "arms-ipc10": arms_table(10),
    "cifar": bench_tables.cifar,
    "clustering": bench_tables.clustering,
    "draft": bench_tables.draft,
    "encoding": bench_tables.encoding,
    "end_to_end": bench_tables.end_to_end,
    "engines-bundled": engines_table("bundled"),
    "engines-medium": engines_table("medium-model"),
    "evaluate-aims": bench_aims.evaluate,
    "evaluate-cost": bench_tables.evaluate_cost,
    "evaluate-gpu": bench_tables.evaluate_gpu,
    "evaluate-speed": bench_tables.evaluate_speed,
    "kmeans-aims": bench_aims.kmeans,
    "kmeans-lloyd": kmeans_table("lloyd"),
    "kmeans-whole": kmeans_table("whole"),
    "linear": bench_tables.linear,
    "listing": bench_tables.listing,
    "official": lambda folder: official.table(folder / "official.jsonl"),
    "presets-distance": presets_table("distance"),
    "presets-ipc10": presets_table("ipc10"),
    "presets-ipc50": presets_table("ipc50"),
    "presets-speed": presets_table("speed"),
    "profile": bench_tables.stages,
    "reading": bench_tables.reading,
    "real_size": bench_tables.real_size,
    "roofline": roofline,
    "start": bench_tables.start,
    "throughput-aims": bench_aims.throughput,
    "unet_kernels": bench_tables.kernels,
}


def render(text: str, folder: Path = BENCH) -> str:
    """Return a page with every table made anew from the files in a folder; errors are those of `page_tables.render`."""
    return page_tables.render(text, KIND, {name: partial(table, folder) for name, table in TABLES.items()})


def pages() -> list[Path]:
    """Return the pages that have tables of benches."""
    every = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    return [page for page in every if f"<!-- {KIND}:" in page.read_text(encoding="utf-8")]


if __name__ == "__main__":
    for page in pages():
        page_tables.rewrite(page, render)
