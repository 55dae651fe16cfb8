"""Opening of an evaluation: everything that it needs is opened and checked before anything is trained."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from d4m_fast.arms.classes import part_of, require_alike
from d4m_fast.arms.names import parse_arms, parse_folders
from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.errors import UsageError
from d4m_fast.evaluation.images import images_per_class, is_same_set, match_classes
from d4m_fast.evaluation.overrides import overridden, parse_override
from d4m_fast.evaluation.parallel import has_batch_norm, require_own_devices, shared_bn_batch
from d4m_fast.evaluation.protocols import PROTOCOLS, Protocol
from d4m_fast.evaluation.stored import parse_labels, require_labels
from d4m_fast.evaluation.students import build_student
from d4m_fast.evaluation.teachers import Teacher, open_teacher
from d4m_fast.examination.examination import Examination
from d4m_fast.runs.identity import artifacts_of, options_of, require_finished, source_of
from d4m_fast.sources.dataset import open_source
from d4m_fast.sources.entries import INDEXES
from d4m_fast.sources.records import Source

# One of each family: plain convolutions, residual, inverted bottlenecks, a transformer.
MATRIX = ("convnet3", "resnet18", "mobilenet_v3_small", "timm/vit_tiny_patch16_224")


def open_examination(paths: Sequence[Path], config: EvaluateConfig, work: Path) -> Examination:
    """Open everything that an evaluation needs, and refuse what cannot be done, before anything is trained.

    Args:
        paths: run directories or directories of class folders, one for each seed of the generation.
        work: directory of results, checkpoints and stored labels.

    Raises:
        D4MError: the first thing that is wrong.
    """
    distilled, train, test = _open_sets(paths, config)
    protocol = _protocol(config)
    arms, folders = parse_arms(config.arms), parse_folders(config.arm)
    regimes = config.regime if config.regime else (protocol.regime,)
    labels = parse_labels(config.labels, [class_info.folder for class_info in test.classes])
    require_labels(labels, (*arms, *folders), folders, regimes, len(paths), protocol)
    test_ids = match_classes(distilled[0], test, "test")
    unlabelled_regimes = {"hard", "fixed"} if labels else {"hard"}  # which ask no teacher
    teachers = dict[str, Teacher]()
    if "coreset" in arms or not unlabelled_regimes.issuperset(regimes):
        for name in config.teacher if config.teacher else (protocol.teacher,):
            teachers[name] = open_teacher(name, test.classes, resolution=protocol.resolution)
    students = config.student if config.student else MATRIX if config.matrix else (protocol.student,)
    examination = Examination(
        config=config,
        protocol=protocol,
        paths=tuple(paths),
        distilled=tuple(distilled),
        train=train,
        test=test,
        test_ids=test_ids,
        regimes=tuple(dict.fromkeys(regimes)),
        students=tuple(dict.fromkeys(students)),
        teachers=teachers,
        arms=(*arms, *folders),
        folders=folders,
        work=work,
        labels=labels,
    )
    build = partial(build_student, classes=examination.outputs, image_size=protocol.resolution, width=config.width)
    networks = [build(student) for student in examination.students]
    if config.data_parallel:
        require_own_devices(examination.execution.device)
        if any(map(has_batch_norm, networks)):
            examination = replace(examination, protocol=_protocol(config, _bn_batch(examination)))
    examination.require_arms()
    return examination


def _protocol(config: EvaluateConfig, bn_batch: int | None = None) -> Protocol:
    overrides = dict(map(parse_override, config.override))
    if bn_batch is not None:
        overrides["bn_batch"] = str(bn_batch)
    if config.epochs is not None:
        overrides["epochs"] = str(config.epochs)
    return overridden(PROTOCOLS[config.protocol], overrides)


def _bn_batch(examination: Examination) -> int | None:
    """Return the images that batch normalisation sees in each process; None where it is as the recipe says."""
    protocol, budget = examination.protocol, images_per_class(examination.distilled[0])
    sizes = {min(protocol.batch_for(budget), budget * len(examination.classes))}
    if "whole" in examination.arms:
        items, classes = examination.train.items, examination.train.classes
        sizes.add(min(protocol.batch_for(len(items) // len(classes)), len(items)))
    return shared_bn_batch(protocol, sizes, examination.execution.ranks.size)


def _open_sets(paths: Sequence[Path], config: EvaluateConfig) -> tuple[list[Source], Source, Source]:
    """Return the distilled sets, of the classes evaluated, the real images and the test images."""
    for path in paths:
        require_finished(path)
    distilled = [open_source(str(path), prompts_needed=False) for path in paths]
    origin = source_of(paths[0]) if config.train_data is None or config.test_data is None else None
    artifacts = artifacts_of(paths[0])
    open_real = partial(open_source, prompts_needed=False, indexes=None if artifacts is None else artifacts / INDEXES)
    train = open_real(_data_name("--train-data", config.train_data, origin))
    test = open_real(_data_name("--test-data", config.test_data, origin), split="test")
    if is_same_set(test, train):
        raise UsageError("--test-data is needed: what the run was made from has no test images of its own")
    if config.classes is not None:
        distilled = [part_of(source, test, config.classes) for source in distilled]
    require_alike(distilled)
    return distilled, train, test


def _data_name(flag: str, value: str | None, origin: str | None) -> str:
    """Return an option's value, or what the run was made from where it has none.

    Raises:
        UsageError: neither is known, as of a directory of another method's images.
    """
    name = origin if value is None else value
    if name is None:
        raise UsageError(f"{flag} is needed: this directory does not say what it was made from")
    return name


def work_folder(path: Path, artifacts: Path) -> Path:
    """Return where the evaluation of a set is kept: in the run itself, or of other images in the cache."""
    if options_of(path):
        return path / "evaluation"
    # Not of the text of the path: not every path is one.
    return artifacts / "evaluation" / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
