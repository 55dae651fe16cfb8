"""`d4m-fast teach`: options, the training, and how well the teacher does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from d4m_fast.config.fields import Group
from d4m_fast.config.teach import TeachConfig
from d4m_fast.console import say_classes, say_result, track
from d4m_fast.options import PATH, command, config_of, option, options_of

if TYPE_CHECKING:
    from d4m_fast.evaluation.teaching import Teaching


@command
@click.argument("data")
@options_of(TeachConfig)
@option("--out", group=Group.EVERYDAY, type=PATH, help="Where the teacher is written.  [default: teachers/ARCH]")
def teach(data: str, out: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train a teacher on real images, for `evaluate --teacher DIR`; report its accuracy on the data's test images.

    DATA is whatever `distill --data` takes. SGD with momentum, one cycle of the learning rate, label smoothing 0.1,
    random shifts and mirroring. A training that was stopped goes on from its last whole epoch, on a CPU with as many
    threads to the same weights.

    \b
    Examples:
      d4m-fast teach bundled --arch convnet-2-8-bn --epochs 1 --no-flip
      d4m-fast teach imagenet/ --arch resnet18 --resolution 64 --epochs 90 --out teachers/r18-64
    """
    from d4m_fast.evaluation.teaching import saved_result
    from d4m_fast.storage.files import make_directory, sweep
    from d4m_fast.storage.locks import locked

    config = config_of(TeachConfig, options)
    folder = make_directory(Path("teachers") / config.arch.replace("/", "-") if out is None else out)
    with locked(folder):
        sweep(folder)
        for _ in track("epochs", _teaching(data, config, folder, quiet), quiet):
            pass
        result = saved_result(folder)
    say_result({"teacher": str(folder), **result}, as_json, lambda: _lines(folder, result))


def _teaching(data: str, config: TeachConfig, folder: Path, quiet: bool) -> Teaching:
    """Open the images, and return the training."""
    from d4m_fast.engine.runtime import resolve_device
    from d4m_fast.evaluation.images import is_same_set, load_images, match_classes
    from d4m_fast.evaluation.teaching import Teaching, open_record
    from d4m_fast.job import default_artifacts
    from d4m_fast.sources.dataset import open_source
    from d4m_fast.sources.entries import INDEXES

    options = {name: value for name, value in asdict(config).items() if name != "device"}
    indexes = default_artifacts() / INDEXES
    train = open_source(data, prompts_needed=False, indexes=indexes)
    test = open_source(data, split="test", prompts_needed=False, indexes=indexes)
    record = open_record(folder, options, train.fingerprint)  # refuses other directories before images are read
    if not quiet:
        say_classes(train)
    # Sets in arrays and numbered folders have the names of their classes in the prompts.
    numbered = all(class_info.folder.isdecimal() for class_info in train.classes)
    has_test = not is_same_set(test, train)
    return Teaching(
        folder,
        options,
        tuple(class_info.prompt if numbered else class_info.folder for class_info in train.classes),
        load_images(train, config.resolution),
        load_images(test, config.resolution, ids=match_classes(test, train)) if has_test else None,
        train.fingerprint,
        resolve_device(config.device),
        0 if record is None else record["epoch"],
    )


def _lines(folder: Path, result: dict[str, Any]) -> list[str]:
    lines = [f"{folder}: {result['arch']} of {result['images']:,} images, {result['seconds']:.0f} seconds"]
    if result["accuracy"] is None:
        return [*lines, "accuracy unknown: the data has no test images of its own"]
    worst = min(result["per_class"], key=result["per_class"].get)
    accuracy = f"{result['accuracy']:.1f} % of {result['test_images']:,} test images right"
    return [*lines, f"{accuracy}; {worst} least, {result['per_class'][worst]:.1f} %"]
