"""Tables of what was aimed for beside what the benches reached; what is missed stands in bold."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from bench_tables import read_rows
from page_tables import markdown

HEAD = ("", "aim", "reached")
WIDE = 4096  # values of a latent from which on points count as wide


def throughput(folder: Path) -> str:
    """Return the aims of docs/throughput.md."""
    linear = read_rows(folder / "linear.jsonl")
    shares = [row["of_convolution"] for row in read_rows(folder / "unet_kernels.jsonl")]
    encoded = [row["ratio"] for row in read_rows(folder / "encoding.jsonl") if "ONNX" in row["row"]]
    (*_, whole) = read_rows(folder / "end_to_end.jsonl")
    planned = linear[-2]["share_of_time"]["plan and manifest"]
    resumed = linear[-1]["seconds_to_first_image"]
    return markdown(
        HEAD,
        [
            _at_least("`reference` over diffusers in batches, engines at their best batches", 1.5, [_batched(folder)]),
            _at_least("the same on a UNet of 35 million parameters", 1.2, [_batched(folder, "medium-model")]),
            _at_least("`reference` over the official loop, whole runs", 10, [_official(folder, "reference")]),
            _at_least("`reference` over the official loop, the engine alone", 10, [_one_by_one(folder)]),
            _at_least("the same on the UNet of 35 million", 1.8, [_one_by_one(folder, "medium-model")]),
            _at_least("`unipc`, a whole run, over the official loop", 35, [_official(folder, "unipc")]),
            _at_least("`dpmpp`, a whole run, over the official loop", 35, [_official(folder, "dpmpp")]),
            _at_least("encoding at 32 and at 256 pixels over diffusers' VAE behind a DataLoader", 1.3, encoded),
            _at_most("a whole run over its networks' calls alone", 1.15, "", [whole["median_ratio"]]),
            _at_least("the UNet's share of a convolution's peak, bundled model", 0.6, shares[:1]),
            _at_least("the UNet's share of a convolution's peak, 35 million", 0.75, shares[1:]),
            _at_most("plan and manifest, share of a run of 50,000 images", 1, " %", [100 * planned]),
            _at_most("first image of that run when it is resumed", 5, " s", [resumed]),
        ],
    )


def kmeans(folder: Path) -> str:
    """Return the aims of docs/kmeans.md, shapes and values of k from the fewest on."""
    rows = [row for row in read_rows(folder / "kmeans.jsonl") if row["table"] != "peak"]

    def speedups(table: str, wide: bool, *ks: int) -> list[float]:
        asked = (table, "ours, Lloyd")
        return [
            row["speedup"]
            for row in rows
            if (row["table"], row["row"]) == asked and (row["d"] >= WIDE) == wide and row["k"] in ks
        ]

    less = [
        100 * (1 - row["inertia_ratio"])
        for row in rows
        if (row["table"], row["row"]) == ("whole", "ours, Hartigan") and row["d"] >= WIDE
    ]
    return markdown(
        HEAD,
        [
            _at_least("wide points, own seeding, k = 50", 2, speedups("whole", True, 50)),
            _at_least("wide points, own seeding, k = 200", 4, speedups("whole", True, 200)),
            _at_least("narrow points, own seeding, k = 10, 50, 200", 0.9, speedups("whole", False, 10, 50, 200)),
            _at_least("wide points, same centres, k = 50", 1, speedups("lloyd", True, 50)),
            _at_least("wide points, same centres, k = 200", 1.4, speedups("lloyd", True, 200)),
            _at_least("Hartigan's inertia on wide points, % below the library's, k = 10, 50, 200", 1, less),
        ],
    )


def evaluate(folder: Path) -> str:
    """Return the aims of training students."""
    rows = {row["case"]: row for row in read_rows(folder / "evaluate.jsonl")}
    measured = [row for row in rows.values() if "ratio" in row]
    outside = [100 * max(row["outside_student"], row["outside_student_and_teacher"]) for row in measured]
    lines = [_at_least(f"{row['title']}, over the official data path", row["aim"], [row["ratio"]]) for row in measured]
    return markdown(
        HEAD,
        [
            *lines,
            _at_most("time outside student and teacher", 10, " %", outside),
            _at_least("images/s of ResNet-18 on an H100, calculated", 8000, [rows["H100"]["images_per_second"]]),
        ],
    )


def _batched(folder: Path, model: str = "bundled") -> float:
    """Return our best rate on ONNX Runtime over diffusers' best."""
    rates: dict[tuple[str, int], list[float]] = {}
    for row in read_rows(folder / "engines.jsonl"):
        if row["model"] == model:
            rates.setdefault((row["row"][:3], row["batch"]), []).append(row["images_per_second"])
    ours, peer = (max(statistics.median(v) for (row, _), v in rates.items() if row == name) for name in ("(d)", "(b)"))
    return ours / peer


def _one_by_one(folder: Path, model: str = "bundled") -> float:
    """Return the ratio to one image per call at the batch at which ONNX Runtime is the fastest."""
    found: dict[int, list[tuple[float, float]]] = {}
    for row in read_rows(folder / "engines.jsonl"):
        if row["model"] == model and row["row"].startswith("(d)"):
            found.setdefault(row["batch"], []).append((row["images_per_second"], row["ratio"]))
    medians = (tuple(map(statistics.median, zip(*rounds, strict=True))) for rounds in found.values())
    return float(max(medians)[1])


def _official(folder: Path, preset: str) -> float:
    rounds = read_rows(folder / "official.jsonl")
    return float(statistics.median(row[f"distill, onnx, {preset}"] / row["official loop"] for row in rounds))


def _at_least(name: str, aim: float, reached: Iterable[float]) -> list[str]:
    return [name, f"at least {aim:g}", ", ".join(_shown(value, value >= aim) for value in reached)]


def _at_most(name: str, aim: float, unit: str, reached: Iterable[float]) -> list[str]:
    return [name, f"at most {aim:g}{unit}", ", ".join(_shown(value, value <= aim) + unit for value in reached)]


def _shown(value: float, met: bool) -> str:
    text = f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return text if met else f"**{text}**"
