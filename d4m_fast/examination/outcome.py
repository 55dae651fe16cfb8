"""Everything that an evaluation says: rows and scores, where images lie in a teacher's features, and provenance."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from typing import Any

from d4m_fast import __version__
from d4m_fast.engine.runtime import hardware
from d4m_fast.errors import DataError, ModelError, NonFiniteError
from d4m_fast.evaluation.images import ImageSet, images_per_class
from d4m_fast.evaluation.results import Subject, to_json
from d4m_fast.evaluation.tasks import Exam, Result
from d4m_fast.evaluation.teacher_check import TeacherCheck
from d4m_fast.examination.examination import Examination
from d4m_fast.report.feature_map import feature_map, mapped_images
from d4m_fast.runs.identity import options_of
from d4m_fast.storage.files import bytes_on_disk

MAPPED_ARMS = {"real": "random", "prototype": "decoded", "distilled": "distilled"}  # kinds of the map of features
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")
log = logging.getLogger(__name__)


def outcome_of(
    examination: Examination, exam: Exam, results: Sequence[Result], checks: Sequence[TeacherCheck]
) -> dict[str, Any]:
    """Return everything that an evaluation says, ready for `json.dumps`."""
    folders = {class_info.id: class_info.folder for class_info in examination.test.classes}
    sources = (*examination.distilled, examination.train, examination.test)
    subject = Subject(
        runs=tuple(map(str, examination.paths)),
        images_per_class=images_per_class(examination.distilled[0]),
        classes=tuple(folders[class_id] for class_id in examination.classes),
        protocol=examination.protocol.to_json(),
        seeds=examination.config.seeds,
        data=tuple(source.fingerprint for source in sources),
    )
    path = examination.paths[0]
    # Of the arms that are files of their own; a run has other files beside its images.
    files = {**examination.folders, "distilled": path / "images" if options_of(path) else path}
    return to_json(
        subject,
        results,
        image_bytes={arm: bytes_on_disk(folder) for arm, folder in files.items()},
        checks=checks,
        feature_map=_feature_map(examination, exam),
        provenance=provenance_of(examination),
        # After the map, which is a stage, too.
        seconds={**examination.timed.seconds, "total": sum(examination.timed.seconds.values())},
    )


def _feature_map(examination: Examination, exam: Exam) -> dict[str, Any] | None:
    """Return where images of the first generation lie in the first teacher's features."""
    sets = dict[str, ImageSet]()
    for kind, arm in MAPPED_ARMS.items():
        name = examination.set_name(arm, 0, 0)
        if name in exam.sets:
            sets[kind] = mapped_images(exam.sets[name], examination.classes)
    if not examination.teachers:
        return None
    try:
        with examination.timed("feature map"):
            return None if examination.features is None else feature_map(examination.features, sets)
    except (DataError, ModelError, NonFiniteError) as error:  # a picture is no reason to lose hours of training
        log.warning("no map of the teacher's features: %s", error)
        return None


def provenance_of(examination: Examination) -> dict[str, Any]:
    """Return where the numbers come from: versions, machine, teachers, and how each distilled set was made."""
    config = examination.config
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "versions": {"d4m-fast": __version__, **versions},
        "machine": hardware(examination.execution.device),
        "autocast": config.autocast,
        "workers": examination.workers,
        "processes_per_student": examination.execution.ranks.size,
        "width": config.width,
        "top_k": config.top_k,
        "coreset": config.coreset if "coreset" in examination.arms else None,
        "teachers": {name: teacher.sha256 for name, teacher in examination.teachers.items()},
        "labels": {arm: stored.digest for arm, stored in examination.labels.items()},
        "runs": {str(path): options_of(path) for path in examination.paths},
    }
