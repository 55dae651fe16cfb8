"""Tables of the benches that print none themselves, from the JSON that they left in bench/."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from page_tables import markdown

Row = dict[str, Any]

KERNELS = {
    "Conv": ("Conv",),
    "MatMul, Gemm": ("MatMul", "Gemm"),
    "MultiHeadAttention": ("MultiHeadAttention",),
    "Add, Mul": ("Add", "Mul"),
    "Gelu, QuickGelu (SiLU)": ("Gelu", "QuickGelu"),
    "InstanceNormalization, LayerNormalization": ("InstanceNormalization", "LayerNormalization"),
    "changes of layout": ("Split", "ReorderInput", "ReorderOutput", "DepthToSpace", "Concat", "GatherND"),
}
NETWORKS = {"bundled": "bundled model", "medium-model": "UNet of 35 million"}
COMPONENTS = {
    "text_encoder": "text encoder",
    "unet": "UNet",
    "vae_decoder": "VAE decoder",
    "vae_encoder": "VAE encoder",
}
ENGINES = {"torch": "PyTorch", "onnx": "ONNX Runtime", "host": ""}
PROFILED_BATCHES = (1, 32)
STEPS = ("export", "compare", "half", "build")


def read_rows(file: Path) -> list[Row]:
    """Return the lines of a bench."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def real_size(folder: Path) -> str:
    """Return what exporting networks of Stable Diffusion 1.5's sizes takes and gives."""
    rows = {(row["component"], row["step"]): row for row in read_rows(folder / "real_size.jsonl")}
    lines = []
    for component, name in COMPONENTS.items():
        export, compare, half, build = (rows[component, step] for step in STEPS)
        peak = max(rows[component, step]["peak_bytes"] for step in STEPS)
        fused = f", {build['attentions']} fused attentions" if build["attentions"] else ""
        lines.append(
            [
                name,
                f"{export['bytes'] / 1e9:.2f} GB, {export['seconds']:.0f} s",
                f"{compare['relative_l2']:.1e}",
                f"{half['bytes'] / 1e9:.2f} GB",
                f"{build['bytes'] / 1e9:.2f} GB{fused}",
                f"{build['build_seconds']:.0f} s",
                f"{peak / 1e9:.1f} GB",
            ]
        )
    targets = " and ".join(target.upper() for target in rows["unet", "build"]["targets"])
    head = ("", "fp32 ONNX", "relative L2 from PyTorch", "fp16 ONNX", f"engine for {targets}", "build", "peak memory")
    return markdown(head, lines)


def kernels(folder: Path) -> str:
    """Return where a UNet call goes, kernel by kernel, for each network that was profiled."""
    networks = read_rows(folder / "unet_kernels.jsonl")
    head = ["kernel"]
    for network in networks:
        head += [f"{NETWORKS[network['model']]}, {network['rows']} rows: ms", "of the call", "GFLOP/s"]
    named = {kernel for group in KERNELS.values() for kernel in group}
    others = tuple({kernel for network in networks for kernel in network["kernels"]} - named)
    groups = {**KERNELS, "all others": others}
    lines = [[name, *(cell for n in networks for cell in _kernel_cells(n, group))] for name, group in groups.items()]
    whole = [cell for n in networks for cell in (str(n["ms"]), "", str(n["gflops"]))]
    peaks = [cell for n in networks for cell in ("", "", "{matrix_product}, {convolution}".format(**n["peak"]))]
    best = "PyTorch's best matrix product and convolution on that core"
    return markdown(head, [*lines, ["**the call**", *whole], [best, *peaks]])


def _kernel_cells(network: Row, group: Sequence[str]) -> list[str]:
    rows = [row for kernel, row in network["kernels"].items() if kernel in group]
    spent = sum(row["ms"] for row in rows)
    work = sum(row["ms"] * row["gflops"] for row in rows)
    return [f"{spent:.1f}", f"{100 * spent / network['ms']:.0f} %", f"{work / spent:.0f}" if work else ""]


def encoding(folder: Path) -> str:
    """Return images encoded per second, and times the peer's."""
    rows = read_rows(folder / "encoding.jsonl")
    lines = []
    for row in rows:
        speed = f"{row['images_per_second']:,.4g}", f"{row['ratio']:.2f}"
        lines.append([str(row["pixels"]), f"{row['images']:,}", row["row"], *speed])
    return markdown(("pixels", "images", "", "images/s", "times diffusers'"), lines)


def reading(folder: Path) -> str:
    """Return images decoded and resized per second of a core, from each container by each reader."""
    lines = []
    for row in read_rows(folder / "reading.jsonl"):
        if "draft" not in row:
            lines.append([row["container"], row["reader"], f"{row['images_per_cpu_second']:,.0f}"])
    return markdown(("container", "reader", "images per second of a core"), lines)


def draft(folder: Path) -> str:
    """Return what scaled decoding of JPEG would save and change."""
    lines = []
    for row in read_rows(folder / "reading.jsonl"):
        if "draft" in row:
            share = f"{row['images_scaled']} of {row['images']}"
            change = f"{row['mean_change']:.2f}", str(row["largest_change"])
            lines.append([str(row["side"]), share, f"{row['times_as_fast']:.2f}", *change])
    return markdown(("side", "images it scales", "times as fast", "mean change of 255", "largest"), lines)


def listing(folder: Path) -> str:
    """Return the cost of opening a set, by container."""
    lines = []
    for row in read_rows(folder / "listing.jsonl"):
        by_index = f"{row['cpu_seconds_by_index']:.2f}" if "cpu_seconds_by_index" in row else ""
        size = f"{row['bytes_of_images'] / 1e9:.2f} GB"
        figures = f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", by_index, f"{row['mib']:,} MiB"
        lines.append([f"{row['images']:,}", size, row["container"], *figures])
    return markdown(("images", "of", "container", "seconds", "CPU seconds", "by its index", "memory"), lines)


def end_to_end(folder: Path) -> str:
    """Return a whole run's time over that of its networks' calls."""
    *rounds, summary = read_rows(folder / "end_to_end.jsonl")
    ratios = [row["ratio"] for row in rounds]
    figures = (summary["median_ratio"], min(ratios), max(ratios))
    head = ("images", "rounds", "a run's time over its calls', median", "least", "most")
    return markdown(head, [[str(rounds[0]["images"]), str(len(rounds)), *(f"{ratio:.2f}" for ratio in figures)]])


def linear(folder: Path) -> str:
    """Return the cost of an image in runs of more and more of them."""
    lines = []
    for row in read_rows(folder / "linear.jsonl"):
        resumed = row["made"] < row["images"]
        shares = [f"{100 * share:.2f} %" for share in row["share_of_time"].values()]
        cost = ["", "", ""] if resumed else [f"{row['ms_per_image']:.2f}", *shares]
        name = f"{row['images']:,}" + (f", resumed before its last {row['made']}" if resumed else "")
        lines.append([name, *cost, f"{row['seconds_to_first_image']:.1f} s", f"{row['peak_mb']} MB"])
    head = ("images", "ms per image", "plan and manifest", "commit records", "first image after", "peak memory")
    return markdown(head, lines)


def start(folder: Path) -> str:
    """Return how long it takes until something happens."""
    (row,) = read_rows(folder / "start.jsonl")
    names = {
        "help_seconds": "`d4m-fast --help`, whole",
        "import_seconds": "imports of a run",
        "first_encoded_batch_seconds": "from their end to the first encoded batch",
    }
    return markdown(("", "seconds"), [[name, f"{row[key]:.1f}"] for key, name in names.items()])


def stages(folder: Path) -> str:
    """Return every stage's speed, from a profile."""
    profile = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    lines = []
    for stage, records in profile["stages"].items():
        batches = {record["batch"] for record in records}
        shown = batches & {*PROFILED_BATCHES} or batches
        lines += [_stage_line(stage, record) for record in records if record["batch"] in shown]
    return markdown(("stage", "engine", "batch", "images/s", "p50, ms", "GFLOP/s", "of the peak"), lines)


def _stage_line(stage: str, record: Row) -> list[str]:
    rate, computed = record["images_per_second"], record.get("gflops") is not None
    work = [f"{record['gflops']:.0f}", f"{100 * record['share_of_peak']:.0f} %"] if computed else ["", ""]
    speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
    median = 1e3 * record["latency_seconds"]["p50"]
    name = "whole run" if stage == "distill" else stage
    return [name, ENGINES[record["engine"]], str(record["batch"]), speed, f"{median:,.2f}", *work]


def clustering(folder: Path) -> str:
    """Return accuracies of students on sets that differ in their prototypes."""
    rows = read_rows(folder / "clustering.jsonl")
    columns = list(dict.fromkeys((row["ipc"], row["labels"]) for row in rows))
    cells = {(row["prototypes"], row["ipc"], row["labels"]): f"{row['mean']:.1f} ± {row['std']:.1f}" for row in rows}
    names = list(dict.fromkeys(row["prototypes"] for row in rows))
    head = ("prototypes", *(f"{ipc} per class, {labels} labels" for ipc, labels in columns))
    return markdown(head, [[name, *(cells[name, *column] for column in columns)] for name in names])


def accuracy(folder: Path) -> str:
    """Return accuracies of students on distilled and on random real images, and the difference of their means."""
    rows = [row for row in read_rows(folder / "presets.jsonl") if "seed" in row]
    lines = []
    for ipc, labels in ((ipc, labels) for ipc in sorted({row["ipc"] for row in rows}) for labels in ("soft", "hard")):
        arms = [
            [row["test"] for row in rows if (row["arm"], row["ipc"], row["labels"]) == (arm, ipc, labels)]
            for arm in ("model 50 0:1", "random")
        ]
        distilled, real = map(statistics.fmean, arms)
        shown = [f"{statistics.fmean(arm):.1f} ± {statistics.stdev(arm):.1f}" for arm in arms]
        lines.append([str(ipc), labels, *shown, f"{distilled - real:+.1f}"])
    return markdown(("images per class", "labels", "distilled", "random real", "difference"), lines)


def arms(file: Path, ipc: int) -> str:
    """Return accuracies of students on every arm of a size, a label regime a column."""
    rows = [row for row in read_rows(file) if row["images_per_class"] == ipc]
    cells = {(row["arm"], row["regime"]): _accuracy(row) for row in rows}
    regimes = list(dict.fromkeys(row["regime"] for row in rows))
    names = list(dict.fromkeys(row["arm"] for row in rows))
    return markdown(("images", *regimes), [[name, *(cells[name, regime] for regime in regimes)] for name in names])


def _accuracy(row: Row) -> str:
    """Return mean and deviation, and the paired difference with its interval; bold where that leaves zero out.

    Of one student there is but its accuracy.
    """
    if row["std"] is None:
        return f"{row['mean']:.1f}"
    accuracy, difference = f"{row['mean']:.1f} ± {row['std']:.1f}", row["difference_to_random"]
    if difference is None:
        return accuracy
    text = f"{difference['mean']:+.1f} ({difference['low']:+.1f} to {difference['high']:+.1f})"
    is_off_zero = difference["low"] > 0 or difference["high"] < 0
    return f"{accuracy}<br>{f'**{text}**' if is_off_zero else text}"


def cifar(folder: Path) -> str:
    """Return accuracies on CIFAR-10, an arm a line, a label regime a column."""
    return arms(folder / "cifar.jsonl", 10)


def evaluate_speed(folder: Path) -> str:
    """Return how fast students are trained, beside the official data path."""
    lines = []
    for row in read_rows(folder / "evaluate.jsonl"):
        if "ratio" in row:
            rates = [f"{row[side + '_per_second']:,.1f}" for side in ("ours", "official")]
            spread = f"{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})"
            shares = [row["official_feed_share"], row["outside_student"], row["outside_student_and_teacher"]]
            percent = [f"{100 * share:.1f} %" for share in shares]
            lines.append([row["title"], *rates, spread, f"{row['feed_ratio']:.1f}", *percent])
    head = (
        "",
        "images/s",
        "official path's",
        "times that",
        "batches alone, times the official's",
        "their share of an official epoch",
        "outside the student, stored labels",
        "outside student and teacher, online",
    )
    return markdown(head, lines)


def evaluate_gpu(folder: Path) -> str:
    """Return what an H100 could do at most, calculated."""
    lines = []
    for row in read_rows(folder / "evaluate.jsonl"):
        if "ms_per_step" in row:
            parts = row["ms_per_step"]
            spent = [f"{parts[name]:.2f}" for name in ("memory", "products", "launches")]
            counts = f"{row['gflops_per_image']:.1f}", f"{row['mb_per_image']:.0f}"
            lines.append([str(row["batch"]), *counts, *spent, row["limit"], f"{row['images_per_second']:,}"])
    head = ("batch", "GFLOP per image", "MB per image", "ms: memory", "products", "launches", "limit", "images/s")
    return markdown(head, lines)


def evaluate_cost(folder: Path) -> str:
    """Return accuracy, seconds and operations per student, as cifar10-airbench lists its recipes."""
    lines = []
    for row in read_rows(folder / "evaluate.jsonl"):
        if "pflops" in row:
            figures = f"{row['accuracy']:.1f} %", f"{row['seconds']:.0f}", f"{row['pflops']:.2g}"
            lines.append([row["arm"], row["regime"], row["student"], str(row["images_per_class"]), *figures])
    return markdown(("images", "labels", "student", "per class", "accuracy", "seconds", "PFLOPs"), lines)
