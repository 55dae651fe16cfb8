"""What each generation preset costs and gives; every figure of docs/presets.md.

    python bench/presets.py accuracy --ipc 10 --data DIR        one student per arm, generation seed and kind of label
    python bench/presets.py distance                            images of each preset beside those of `reference`
    python bench/presets.py speed                               images per second, the presets taking turns
    python bench/presets.py rows > bench/presets.jsonl          what the others left below --out
    python bench/presets.py table                               that file as tables

An arm is a preset's name, "random" (real images), or "SCHEDULER STEPS LOW:HIGH", a candidate. Students of protocol
`small` are trained on the distilled images and tested twice: on real training images that are in no bundled subset
("held out", by which presets are chosen), and on the test set (which is reported). DIR has Fashion-MNIST's IDX files.
Each cell is a file, and what is there is not made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import click
import torch

from d4m_fast.allocator import keep_freed_memory
from d4m_fast.arms.features import features_of
from d4m_fast.cli import cli as d4m_fast
from d4m_fast.config.choices import PresetName, Regime, Scheduler
from d4m_fast.config.distill import NEGATIVE_PROMPT
from d4m_fast.config.generation import PRESETS, Preset
from d4m_fast.engine.denoise import denoise
from d4m_fast.engine.generate import PromptTable
from d4m_fast.engine.model import open_model
from d4m_fast.engine.networks import open_networks
from d4m_fast.engine.schedule import Schedule, open_schedule
from d4m_fast.errors import DataError
from d4m_fast.evaluation.images import ImageSet, load_images, random_subset
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.tasks import Exam, Task, accuracy_of, confusion_of, fitted_student, one_thread
from d4m_fast.evaluation.teachers import open_teacher
from d4m_fast.evaluation.views import to_pixels
from d4m_fast.sources.dataset import BUNDLED, open_source
from d4m_fast.sources.records import ClassInfo
from d4m_fast.storage import files
from d4m_fast.storage.state import Schema, require_state, write_state

COLUMNS = tuple(itertools.product(("soft", "hard"), ("held_out", "test")))
REGIMES: dict[str, tuple[Regime, str | None]] = {"soft": ("online", BUNDLED), "hard": ("hard", None)}
SIDE, BUNDLED_PER_CLASS, HELD_OUT_PER_CLASS = 32, 500, 1000
ROW = Schema("row of the presets' bench", 1, "remove {file} and run again")
RANDOM = "random"
ARMS = (*PRESETS, RANDOM)
CANDIDATES = (  # compared with `reference` before the presets were fixed
    *("dpmpp 20 0:1", "dpmpp 10 0:1", "dpmpp 8 0:1", "dpmpp 6 0:1", "dpmpp 5 0:1"),
    *("unipc 10 0:1", "unipc 8 0:1", "unipc 6 0:1", "unipc 5 0:1", "unipc 4 0:1"),
    *("dpmpp 10 0.2:0.6", "dpmpp 10 0.3:0.7", "dpmpp 10 0:0.5", "dpmpp 10 0.45:0.7", "dpmpp 8 0.2:0.6"),
    *("unipc 10 0.3:0.7", "unipc 8 0.3:0.7", "unipc 6 0.3:0.7"),
    *("unipc 10 0.25:1", "unipc 10 0.15:0.65", "unipc 8 0.2:1", "unipc 6 0.2:1", "unipc 8 0:0.65"),
)


def settings(arm: str) -> str:
    """A preset as the candidate it is, so that both share what was measured; others as they are."""
    if arm not in PRESETS:
        return arm
    preset = PRESETS[cast(PresetName, arm)]
    return f"{preset.scheduler} {preset.steps} {preset.guidance_interval}"


def flags(arm: str) -> list[str]:
    """How `d4m-fast distill` is asked for an arm."""
    scheduler, steps, interval = settings(arm).split()
    return ["--scheduler", scheduler, "--steps", steps, "--guidance-interval", interval]


def distilled(out: Path, arm: str, ipc: int, seed: int) -> Path:
    """The run of an arm; made if it is not there."""
    run = out / f"ipc{ipc}" / slug(arm) / f"run-{seed}"
    if (run / "summary.json").is_file():
        return run
    fixed = ["--engine", "torch", "--threads", "1", "--batch-size", "50", "--artifacts", str(out / "artifacts")]
    asked = ["distill", "--ipc", str(ipc), "--seed", str(seed), "--out", str(run), *fixed, *flags(arm), "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        d4m_fast.main(asked, standalone_mode=False)
    return run


def held_out(data: str) -> ImageSet:
    """Training images that follow the bundled ones of each class in file order.

    Raises:
        DataError: the bundled images are not the first of each class.
    """
    whole, bundled = open_source(data), open_source(BUNDLED)
    first = [item for item in whole.items if item.rank < BUNDLED_PER_CLASS]
    if not torch.equal(load_images(whole, SIDE, first).images, load_images(bundled, SIDE).images):
        raise DataError(f"{data}: the bundled images are not the first {BUNDLED_PER_CLASS} of each class")
    after = range(BUNDLED_PER_CLASS, BUNDLED_PER_CLASS + HELD_OUT_PER_CLASS)
    return load_images(whole, SIDE, [item for item in whole.items if item.rank in after])


class Students:
    """Trains students and tests them on both sets."""

    def __init__(self, data: str, width: int) -> None:
        test = open_source(BUNDLED, split="test")
        teachers = {BUNDLED: open_teacher(BUNDLED, test.classes)}
        classes = tuple(info.id for info in test.classes)
        images = load_images(test, SIDE)
        self._exam = Exam(PROTOCOLS["small"], width, len(classes), classes, images, {}, teachers, Path())
        self._held_out = dataclasses.replace(self._exam, test=held_out(data))

    def __call__(self, train: ImageSet, kind: str, seed: int) -> dict[str, float]:
        regime, teacher = REGIMES[kind]
        task = Task("", "", regime, "convnet3", teacher, seed)
        with one_thread(torch.device("cpu")), tempfile.TemporaryDirectory() as folder:
            exam = dataclasses.replace(self._exam, sets={"": train})
            student, _, _ = fitted_student(exam, task, Path(folder) / "checkpoint.pt")
            exams = {"held_out": self._held_out, "test": self._exam}
            return {name: accuracy_of(confusion_of(student, exam)) for name, exam in exams.items()}


def images_of(out: Path, arm: str, ipc: int, seed: int) -> ImageSet:
    if arm == RANDOM:
        source = open_source(BUNDLED)
        return load_images(source, SIDE, random_subset(source, ipc, seed))
    return load_images(open_source(str(distilled(out, arm, ipc, seed))), SIDE)


def slug(arm: str) -> str:
    return settings(arm).replace(" ", "_")


def write(file: Path, row: dict[str, Any]) -> None:
    files.make_directory(file.parent)
    write_state(file, ROW, row)
    click.echo(json.dumps(row))


def cell(out: Path, arm: str, ipc: int, seed: int, kind: str) -> Path:
    return out / f"ipc{ipc}" / slug(arm) / f"{kind}-{seed}.json"


def measure(out: Path, students: Students, arm: str, ipc: int, seed: int, kind: str) -> None:
    file = cell(out, arm, ipc, seed, kind)
    if not file.exists():
        found = students(images_of(out, arm, ipc, seed), kind, seed)
        write(file, {"arm": settings(arm), "ipc": ipc, "seed": seed, "labels": kind, **found})


@click.group(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default="runs/presets", show_default=True)
@click.pass_context
def main(context: click.Context, out: Path) -> None:
    context.obj = out


@main.command("accuracy")
@click.option("--data", default="/usr/share/datasets/fashion-mnist", show_default=True, help="The whole training set.")
@click.option("--arm", "arms", multiple=True, help="Again for each.  [default: the presets and random]")
@click.option("--screen", is_flag=True, help="The candidates instead.")
@click.option("--ipc", default=10, show_default=True)
@click.option("--width", default=32, show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True, help="Of generation, and of the student.")
@click.option("--labels", default="soft,hard", show_default=True)
@click.pass_obj
def accuracy_command(
    out: Path, data: str, arms: Sequence[str], screen: bool, ipc: int, width: int, seeds: str, labels: str
) -> None:
    students = Students(data, width)
    for seed in map(int, seeds.split(",")):
        for arm in arms or (CANDIDATES if screen else ARMS):
            for kind in labels.split(","):
                measure(out, students, arm, ipc, seed, kind)


@main.command()
@click.option("--ipc", default=10, show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--arm", "arms", multiple=True, help="Again for each.  [default: the presets and the candidates]")
@click.pass_obj
@torch.inference_mode()
def distance(out: Path, ipc: int, seeds: str, arms: Sequence[str]) -> None:
    """Each preset's images beside those of `reference` from the same prototypes and noise.

    PSNR in dB, mean over images. `features`: mean squared distance of the bundled teacher's penultimate features (the
    input of its last layer), as a part of that between two different `reference` images of one class.
    """
    teacher = features_of(open_teacher(BUNDLED, open_source(BUNDLED).classes).network, torch.device("cpu"))

    def load(arm: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sets = [images_of(out, arm, ipc, int(seed)) for seed in seeds.split(",")]
        images = torch.cat([s.images for s in sets])
        return to_pixels(images), teacher(images), torch.cat([s.labels for s in sets])

    pixels, features, labels = load("reference")
    within = torch.stack([2 * features[labels == c].var(0).sum() for c in range(int(labels.max()) + 1)]).mean()
    for arm in arms or (*(name for name in PRESETS if name != "reference"), *CANDIDATES):
        its_pixels, its_features, _ = load(arm)
        errors = (its_pixels - pixels).square().flatten(1).mean(1)
        apart = (its_features - features).square().sum(1).mean() / within
        found = {"psnr": -10 * errors.log10().mean().item(), "features": apart.item(), "images": len(pixels)}
        write(out / "distance" / f"{slug(arm)}.json", {**cost(arm), **found})


@main.command()
@click.option("--batch", default=50, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.pass_obj
@torch.inference_mode()
def speed(out: Path, batch: int, rounds: int) -> None:
    """Noise to pixels on PyTorch, prompts embedded beforehand; the presets take turns, the first round warms up."""
    keep_freed_memory()
    model = open_model(BUNDLED)
    networks = open_networks(model.path, torch.device("cpu"), torch.float32)
    latents = torch.randn(batch, *model.latent_shape(model.resolution))
    states = PromptTable(networks, NEGATIVE_PROMPT)([ClassInfo(0, "shirt", "shirt")] * batch, Preset.guidance)

    def seconds(schedule: Schedule) -> float:
        start = time.perf_counter()
        noised = schedule.signal * latents + schedule.noise * torch.randn_like(latents)
        networks.vae_decoder(denoise(noised, states, networks.unet, schedule, Preset.guidance))
        return time.perf_counter() - start

    schedules = {name: schedule_of(name) for name in PRESETS}
    taken = [{name: seconds(schedule) for name, schedule in schedules.items()} for _ in range(1 + rounds)][1:]
    for name in PRESETS:
        rate = batch / statistics.median(turn[name] for turn in taken)
        ratio = statistics.median(turn["reference"] / turn[name] for turn in taken)
        write(out / "speed" / f"{slug(name)}.json", {**cost(name), "images_per_second": rate, "ratio": ratio})


def schedule_of(arm: str) -> Schedule:
    scheduler, steps, interval = settings(arm).split()
    low, high = map(float, interval.split(":"))
    path, sampler = open_model(BUNDLED).path, cast(Scheduler, scheduler)
    return open_schedule(path, int(steps), Preset.strength, scheduler=sampler, interval=(low, high))


def cost(arm: str) -> dict[str, Any]:
    schedule = schedule_of(arm)
    calls = len(schedule.steps)
    return {"arm": settings(arm), "calls": calls, "samples": calls + schedule.guided_calls(Preset.guidance)}


@main.command()
@click.pass_obj
def rows(out: Path) -> None:
    """All that was measured, a line of JSON each."""
    for file in sorted([*out.glob("speed/*.json"), *out.glob("distance/*.json"), *out.glob("ipc*/*/*.json")]):
        click.echo(json.dumps({"table": file.relative_to(out).parts[0], **require_state(file, ROW)}))


@main.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path), default="bench/presets.jsonl")
def table(file: Path) -> None:
    """The lines of `rows` as Markdown; accuracies are percent, mean and standard deviation over the seeds."""
    click.echo("\n\n".join(tables(file).values()))


def tables(file: Path) -> dict[str, str]:
    """Return the tables of a file by name: `speed`, `distance`, and accuracies as `ipc10` and the like."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row.pop("table"), []).append(row)
    ranked = {name: sorted(found.pop(name, []), key=lambda row: -row["samples"]) for name in ("speed", "distance")}
    cost_head = ("setting", "UNet calls", "UNet samples")
    heads = [f"{kind}, {on.replace('_', ' ')}" for kind, on in COLUMNS]
    heads += [f"{kind}, less `reference`" for kind in ("soft", "hard")]
    return {
        "speed": markdown((*cost_head, "images/s", "times `reference`"), map(_values, ranked["speed"])),
        "distance": markdown((*cost_head, "PSNR, dB", "feature distance", "images"), map(_values, ranked["distance"])),
        **{name: markdown(("setting", *heads, "seeds"), accuracies(found[name])) for name in sorted(found)},
    }


def _values(row: dict[str, Any]) -> list[Any]:
    return list(row.values())


def accuracies(cells: Sequence[dict[str, Any]]) -> Iterator[list[Any]]:
    """Per arm: accuracies, and on the test set the difference to `reference` of the same seed."""
    by_seed = {(c["arm"], c["labels"], c["seed"]): c for c in cells}

    def values(arm: str, kind: str, on: str) -> dict[int, float]:
        return {seed: c[on] for (a, k, seed), c in by_seed.items() if (a, k) == (arm, kind)}

    def less_reference(arm: str, kind: str) -> list[float]:
        base = values(settings("reference"), kind, "test")
        return [value - base[seed] for seed, value in values(arm, kind, "test").items() if seed in base]

    for arm in dict.fromkeys(c["arm"] for c in cells):
        found = [spread([*values(arm, kind, on).values()]) for kind, on in COLUMNS]
        apart = [spread(less_reference(arm, kind), "+") for kind in ("soft", "hard")]
        counts = [str(len(values(arm, kind, "test"))) for kind in ("soft", "hard")]
        yield [arm, *found, *apart, ", ".join(counts)]


def markdown(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Return a table whose lines begin with an arm, which is named after the preset that it is."""
    shown = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm, *values in lines:
        named = " = ".join([*(name for name in PRESETS if settings(name) == arm), f"`{arm}`"])
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
        shown.append(f"| {' | '.join([named, *cells])} |")
    return "\n".join(shown)


def spread(values: Sequence[float], sign: str = "") -> str:
    if len(values) < 2:
        return f"{values[0]:{sign}.1f}" if values else ""
    return f"{statistics.fmean(values):{sign}.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
