"""Build the arms: image sets of one budget, labelled by the test set's class ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from d4m_fast.arms.coreset import CORESETS
from d4m_fast.arms.features import Features
from d4m_fast.arms.names import ARMS, Need
from d4m_fast.arms.vae import Names, Vae, open_vae
from d4m_fast.config.choices import Coreset
from d4m_fast.errors import DataError, UsageError
from d4m_fast.evaluation.images import (
    ImageSet,
    ids_by_folder,
    images_per_class,
    load_images,
    match_classes,
    of_classes,
    random_subset,
)
from d4m_fast.runs.identity import is_run
from d4m_fast.runs.prototypes import ClassPrototypes, RunPrototypes, read_prototypes
from d4m_fast.sources.dataset import open_source, subset, with_classes, with_items
from d4m_fast.sources.records import ClassInfo, Item, Source, by_class


@dataclass(frozen=True)
class ArmBuilder:
    """Builder of the arms of one distilled set.

    Arms are of the distilled set's classes and have as many images of each, but for `whole`. All are read at `size`
    by `evaluation.images.load_images`; what comes from a VAE first has the size that the run writes.

    Attributes:
        run: the distilled set's directory.
        distilled: its images, or those of some of its classes.
        train: real images.
        test_ids: the test set's id of each class id of `distilled`, as `match_classes` has them.
        size: side of the images.
        device: where the VAE runs.
        features: the teacher's (`features.features_of`), of images (N, 3, size, size) uint8; for `coreset`.
        folders: arms of the user's own, NAME=DIR, by name.
        shorter_side: see `load_images`.
    """

    run: Path
    distilled: Source
    train: Source
    test_ids: Mapping[int, int]
    size: int
    device: torch.device
    features: Features | None = None
    coreset: Coreset = "herding"
    folders: Mapping[str, Path] = field(default_factory=dict)
    shorter_side: int | None = None

    def require(self, names: Iterable[str]) -> None:
        """Refuse arms that cannot be built, before hours are spent on the others.

        Raises:
            UsageError: there is no such arm; it needs a run's records, and this is another method's folder; or it
                needs a teacher, and there is none.
            DataError: a medoid is not among the real images any more, a class has too few of them, or a folder has
                another budget or other classes.
            DamageError: a run's record is not what was written.
            ModelError: the run's model is not there any more.
        """
        names = tuple(names)
        self._require_needs(names)
        for name in names:
            if name in self.folders:
                self._open_folder(name)
            elif name in ("medoid", "medoid-vae"):
                self._medoids()
            elif name in ("random", "random-vae", "coreset"):
                self._require_enough(name)
        if _needing("model", names):
            _ = self._vae  # opened, which refuses a model that is gone or is another one now

    def build(self, name: str, draw: int = 0) -> ImageSet:
        """Return the images of an arm, in the order of the test set's classes.

        Args:
            name: one of `names.ARMS`, or of the user's own folders.
            draw: the number of the draw, of arms that are drawn anew for every seed; equal draws are equal images.

        Raises:
            errors of `require`, and:
            DataError: an image is damaged, or a class has too few real images.
        """
        self._require_needs((name,))
        match name:
            case "distilled":
                return self._all_of(self.distilled)
            case "random":
                return self._read(self._random(draw))
            case "random-vae":
                return self._through_vae(self._random(draw))
            case "medoid":
                return self._read(self._medoids())
            case "medoid-vae":
                return self._through_vae(self._medoids())
            case "decoded":
                return self._decoded()
            case "coreset":
                self._require_enough(name)
                return self._coreset()
            case "whole":
                return self._read(self._by_label(of_classes(self.train, self._labels)))
            case _:
                return self._all_of(self._open_folder(name))

    @cached_property
    def budget(self) -> int:
        """Images per class of every arm but `whole`."""
        return images_per_class(self.distilled)

    @cached_property
    def _labels(self) -> dict[int, int]:
        """The test set's id of each class id of the real images, in the order of the test set's ids."""
        train_ids = match_classes(self.distilled, self.train)
        by_label = sorted(self.test_ids.items(), key=lambda pair: pair[1])
        return {train_ids[class_id]: label for class_id, label in by_label}

    @cached_property
    def _records(self) -> RunPrototypes:
        return read_prototypes(self.run)

    @cached_property
    def _vae(self) -> Vae:
        return open_vae(self._records, self.device)

    @cached_property
    def _classes(self) -> dict[int, ClassInfo]:
        """The real images' classes that the distilled set has, by id, in the order of the test set's ids."""
        by_id = {class_info.id: class_info for class_info in self.train.classes}
        return {class_id: by_id[class_id] for class_id in self._labels}

    def _require_needs(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in ARMS and name not in self.folders:
                raise UsageError(f"no arm {name!r}; there are {', '.join((*ARMS, *self.folders))}")
        of_runs = _needing("records", names)
        if of_runs and not is_run(self.run):
            raise UsageError(
                f"{self.run}: no run of d4m-fast, whose records these arms are made from: {', '.join(of_runs)}; leave"
                " them out"
            )
        of_teachers = _needing("teacher", names)
        if of_teachers and self.features is None:
            raise UsageError(f"{', '.join(of_teachers)}: chosen by a teacher's features; give --teacher")

    def _require_enough(self, name: str) -> None:
        counts = Counter(item.class_id for item in self.train.items)
        for class_info in self._classes.values():
            if counts[class_info.id] < self.budget:
                raise DataError(
                    f"class {class_info.folder!r} has {counts[class_info.id]} real images, {self.budget} are needed for"
                    f" the arm {name}; leave it out of --arms, or the class out by --classes"
                )

    def _read(self, items: Sequence[Item]) -> ImageSet:
        return load_images(self.train, self.size, items, self._labels, shorter_side=self.shorter_side)

    def _all_of(self, source: Source) -> ImageSet:
        """Return all images of a distilled set or a user's folder, whose classes are those of the distilled set."""
        ids = ids_by_folder(self.distilled)
        labels = {class_info.id: self.test_ids[ids[class_info.folder]] for class_info in source.classes}
        items = sorted(source.items, key=lambda item: labels[item.class_id])
        return load_images(source, self.size, items, labels, shorter_side=self.shorter_side)

    def _open_folder(self, name: str) -> Source:
        source = open_source(str(self.folders[name]), prompts_needed=False)
        ids, class_ids = ids_by_folder(source), set[int]()
        for class_info in self.distilled.classes:
            if class_info.folder not in ids:
                raise DataError(f"--arm {name}={self.folders[name]}: no class {class_info.folder!r}, which the run has")
            class_ids.add(ids[class_info.folder])
        arm = with_classes(source, class_ids)
        budget = images_per_class(arm)
        if budget != self.budget:
            raise DataError(
                f"--arm {name}={self.folders[name]}: {budget} images per class, the run has {self.budget}; arms are"
                " compared at one budget"
            )
        return arm

    def _random(self, draw: int) -> list[Item]:
        return self._by_label(random_subset(self.train, self.budget, draw, self._labels))

    def _by_label(self, items: Sequence[Item]) -> list[Item]:
        return sorted(items, key=lambda item: self._labels[item.class_id])

    def _prototypes(self, class_info: ClassInfo) -> ClassPrototypes:
        prototypes = self._records.by_folder.get(class_info.folder)
        count = 0 if prototypes is None else len(prototypes.nearest)
        if prototypes is None or count != self.budget:
            raise DataError(
                f"{self.run}: {count} prototypes of class {class_info.folder!r} and {self.budget} images; d4m-fast"
                " verify says what was changed"
            )
        return prototypes

    def _medoids(self) -> list[Item]:
        """Return the real image nearest to each prototype; one may be nearest to two."""
        members = by_class(of_classes(self.train, self._labels))
        medoids = []
        for class_id, class_info in self._classes.items():
            by_origin = {item.origin: item for item in members[class_id]}
            for origin in self._prototypes(class_info).nearest:
                if origin not in by_origin:
                    raise DataError(
                        f"{origin}: nearest to a prototype of class {class_info.folder!r}, and not among the real"
                        " images; give --train-data what the run was made from"
                    )
                medoids.append(by_origin[origin])
        self._require_same_data()
        return medoids

    def _require_same_data(self) -> None:
        """Refuse real images that have the names of those that the run was made from, and are others."""
        classes = self._records.options["classes"]
        source = self.train if classes is None else subset(self.train, classes)
        if source.fingerprint != self._records.identity["source_sha256"]:
            raise DataError(
                "the real images are not those that the run was made from, or have changed since; give --train-data"
                " those, or leave out the arms medoid and medoid-vae"
            )

    def _through_vae(self, items: Sequence[Item]) -> ImageSet:
        names = [(self._classes[item.class_id], item.rank) for item in items]
        latents = self._vae.encode(with_items(self.train, items))
        return self._of_latents(latents, names, [item.origin for item in items])

    def _decoded(self) -> ImageSet:
        names, centroids, origins = list[tuple[ClassInfo, int]](), list[np.ndarray](), list[str]()
        for class_info in self._classes.values():
            prototypes = self._prototypes(class_info)
            centroids.append(prototypes.centroids())
            for index in range(len(prototypes.nearest)):
                names.append((class_info, index))
                origins.append(f"prototypes/{prototypes.file.name}/{index}")
        return self._of_latents(torch.from_numpy(np.concatenate(centroids)), names, origins)

    def _of_latents(self, latents: torch.Tensor, names: Names, origins: Sequence[str]) -> ImageSet:
        batches = []
        for images in self._vae.decode(latents, names):
            batches.append(load_images(_Decoded.of(images), self.size, shorter_side=self.shorter_side).images)
        labels = torch.tensor([self._labels[class_info.id] for class_info, _ in names])
        return ImageSet(torch.cat(batches), labels, tuple(origins))

    def _coreset(self) -> ImageSet:
        assert self.features is not None  # `_require_needs`
        members = by_class(of_classes(self.train, self._labels))
        images, labels, origins = list[torch.Tensor](), list[torch.Tensor](), list[str]()
        # Class by class: all real images of one are in memory at a time.
        for class_id in self._classes:
            candidates = self._read(members[class_id])
            features = self.features(candidates.images)
            if self.coreset == "herding":  # of features of length 1, as in iCaRL (Rebuffi et al., 2017)
                features = torch.nn.functional.normalize(features)
            rows = CORESETS[self.coreset](features, self.budget).cpu()
            images.append(candidates.images[rows])
            labels.append(candidates.labels[rows])
            origins += [candidates.origins[row] for row in rows.tolist()]
        return ImageSet(torch.cat(images), torch.cat(labels), tuple(origins))


def _needing(need: Need, names: Iterable[str]) -> list[str]:
    """Return those of the arms that need something; the user's own folders need nothing."""
    return [name for name in names if name in ARMS and need in ARMS[name].needs]


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Decoded images as a source, so that they come to their size as files of them would."""

    items: Sequence[Item]
    images: np.ndarray
    classes: Sequence[ClassInfo] = ()
    fingerprint: str = ""
    kind: str = "decoded images"
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, images: np.ndarray) -> _Decoded:
        return cls([Item(0, row, "") for row in range(len(images))], images)

    def read(self, item: Item) -> Image.Image:
        return Image.fromarray(self.images[item.rank])
