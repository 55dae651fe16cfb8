"""Trial of a teacher on real test images, before hours are spent on its labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from d4m_fast.errors import ModelError
from d4m_fast.evaluation.convnet import IMAGENET_MEAN, IMAGENET_STD
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.teachers import Teacher, outputs_of
from d4m_fast.evaluation.views import to_pixels
from d4m_fast.wording import some

# Of the way from chance to certainty (Cohen's kappa where classes are equally frequent). The weakest classifiers that
# torchvision publishes are 56 % of it, a permuted one nothing: 25 % is far from both, for 2 classes (62.5 % right) and
# for 1,000 (25.1 %).
LEAST_SKILL = 0.25
# A real mistake of most of a class's images, and of most of its counterpart's, is possible with few of them.
ENOUGH_IMAGES = 10
TEST_BATCH = 100  # images at a time, so that their activations stay small
TRIED_IMAGES = 500  # of the test set, where the cause of a failure is looked for

Show = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Swap:
    """A class whose images the teacher takes for another class, whose own it takes for yet another.

    Attributes:
        output, name: what the teacher calls the class by its number, and the name of its folder.
        predicted, predicted_name: of the class that its images are taken for.
        images: of the class among the test images, or of the other one where that has fewer.
    """

    output: int
    name: str
    predicted: int
    predicted_name: str
    images: int

    def __str__(self) -> str:
        return f"folder {self.output} {self.name!r} is predicted as {self.predicted} {self.predicted_name!r}"


@dataclass(frozen=True, slots=True)
class TeacherCheck:
    """Skill of a teacher on real test images.

    Attributes:
        teacher: its name.
        outputs: classes that it tells apart, of which the test images may have only some.
        images: how many there were.
        accuracy: percent.
        per_class: percent, by the name of the class, in the order of the class ids.
        permuted: classes in each other's places.
        most_predicted: the largest part of the images that one class takes, percent, and the class's number.
    """

    teacher: str
    outputs: int
    images: int
    accuracy: float
    per_class: Mapping[str, float]
    permuted: tuple[Swap, ...]
    most_predicted: tuple[float, int]

    @property
    def least_accuracy(self) -> float:
        """Percent below which a teacher is refused."""
        return 100 * (LEAST_SKILL + (1 - LEAST_SKILL) / self.outputs)

    def to_json(self) -> dict[str, Any]:
        """Return what reports show."""
        return {
            "teacher": self.teacher,
            "accuracy": self.accuracy,
            "per_class": list(self.per_class.values()),
            "permuted": [str(swap) for swap in self.permuted],
            "images": self.images,
        }


def check_teacher(teacher: Teacher, test: ImageSet, class_names: Sequence[str]) -> TeacherCheck:
    """Measure a teacher on real test images, and look for classes in each other's places.

    The prediction is the largest logit of all classes that the teacher knows, not only of those tested.

    Args:
        test: labelled by class ids, on the teacher's device.
        class_names: folder of each class id.

    Raises:
        ModelError: logits that are not finite.
    """
    predicted = _predict(teacher, test.images, lambda pixels: pixels)
    outputs = outputs_of(teacher.network, teacher.image_size)
    columns = range(outputs) if teacher.columns is None else teacher.columns
    truth = [columns[label] for label in test.labels.tolist()]
    names = {columns[class_id]: name for class_id, name in enumerate(class_names)}
    confusion = defaultdict[int, Counter[int]](Counter)
    for true_class, prediction in zip(truth, predicted, strict=True):
        confusion[true_class][prediction] += 1
    right = sum(row[true_class] for true_class, row in confusion.items())
    per_class = {}
    for output, name in names.items():
        if output in confusion:
            per_class[name] = 100 * confusion[output][output] / confusion[output].total()
    ((most, count),) = Counter(predicted).most_common(1)
    return TeacherCheck(
        teacher=teacher.name,
        outputs=outputs,
        images=len(test),
        accuracy=100 * right / len(test),
        per_class=per_class,
        permuted=tuple(_swaps(confusion, names)),
        most_predicted=(100 * count / len(test), most),
    )


def _predict(teacher: Teacher, images: torch.Tensor, show: Show) -> list[int]:
    """Return the class that each uint8 image (N, 3, S, S) is taken for, as its pixels in [0, 1] are shown."""
    label, predicted = teacher.all_logits(), list[int]()
    for start in range(0, len(images), TEST_BATCH):
        pixels = to_pixels(images[start : start + TEST_BATCH])
        predicted += label(show(pixels)).argmax(1).tolist()
    return predicted


def _swaps(confusion: Mapping[int, Counter[int]], names: Mapping[int, str]) -> list[Swap]:
    """Return the classes in each other's places, by their most frequent predictions.

    Class c is in the place of p if more than half of its images are taken for p, more than half of p's own for yet
    another class, and no third class's for p: a teacher that takes everything for one class permutes nothing.
    """
    majority = dict[int, int]()
    for output, row in confusion.items():
        ((prediction, count),) = row.most_common(1)
        if 2 * count > row.total():
            majority[output] = prediction
    claims = Counter(majority.values())
    swaps = []
    for output, prediction in sorted(majority.items()):
        is_elsewhere = majority.get(prediction, prediction) != prediction
        if prediction != output and is_elsewhere and claims[prediction] == 1:
            images = min(confusion[output].total(), confusion[prediction].total())
            swaps.append(Swap(output, names[output], prediction, names[prediction], images))
    return swaps


def require_sound(check: TeacherCheck, teacher: Teacher, test: ImageSet) -> None:
    """Refuse a teacher that is far below what any real one reaches, or has classes in each other's places.

    Args:
        test: the images of the check, which are tried in other ways to find the cause.

    Raises:
        ModelError: says the accuracy and the likely cause.
    """
    certain = [swap for swap in check.permuted if swap.images >= ENOUGH_IMAGES]
    is_weak = check.accuracy < check.least_accuracy
    if not certain and not is_weak:
        return
    # A few single images that are taken for each other's classes are no order of classes.
    is_permuted = bool(certain) or 10 * len(check.permuted) > len(check.per_class)
    cause = _order(check) if is_permuted else _preparation(check, teacher, test)
    least = f", {check.least_accuracy:.1f} % is the least" if is_weak else ""
    raise ModelError(
        f"teacher {check.teacher}: {check.accuracy:.1f} % of {check.images} real test images right{least}: {cause}"
    )


def _order(check: TeacherCheck) -> str:
    """Say which classes are in each other's places, and in what order they seem to be."""
    swaps = check.permuted
    text_order = sorted(range(check.outputs), key=str)
    places = {number: place for place, number in enumerate(text_order)}
    as_text = [swap.predicted in (text_order[swap.output], places[swap.output]) for swap in swaps]
    if len(swaps) > 2 and all(as_text):
        advice = "numbered folders were sorted as text (0, 1, 10, ...): name them 000, 001, 010, or teach it anew"
    else:
        advice = "give the teacher the classes in the order of the folders, or teach it anew"
    return f"its classes are permuted: {some(map(str, swaps))}; {advice}"


def _preparation(check: TeacherCheck, teacher: Teacher, test: ImageSet) -> str:
    """Say what is likely wrong with the images as the teacher gets them, by trying them in other ways."""
    side = test.images.shape[-1]
    if side != teacher.image_size:
        return f"it takes images of {teacher.image_size} pixels a side, these have {side}"
    rows = torch.unique(torch.linspace(0, len(test) - 1, min(len(test), TRIED_IMAGES)).long())  # of all classes
    labels = test.labels[rows].tolist()
    truth = labels if teacher.columns is None else [teacher.columns[label] for label in labels]
    scores = {}
    for name, show in _PREPARATIONS.items():
        scores[name] = _score(teacher, test.images[rows], show, truth)
    best = max(scores, key=lambda name: scores[name])
    if scores[best] >= check.least_accuracy and scores[best] > check.accuracy + 10:
        return f"with {best} it has {scores[best]:.1f} %; correct mean and std in its config"
    share, output = check.most_predicted
    if share > 50:
        return f"it takes {share:.0f} % of them for class {output}: normalisation missing, or not trained"
    return "not trained on these classes, another order of classes, or images prepared in another way"


def _score(teacher: Teacher, images: torch.Tensor, show: Show, truth: Sequence[int]) -> float:
    try:
        predicted = _predict(teacher, images, show)
    except ModelError:  # not finite, of values that it was never meant for
        return 0.0
    right = sum(prediction == true_class for prediction, true_class in zip(predicted, truth, strict=True))
    return 100 * right / len(truth)


def _normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - pixels.new_tensor(IMAGENET_MEAN).view(3, 1, 1)) / pixels.new_tensor(IMAGENET_STD).view(3, 1, 1)


def _denormalised(pixels: torch.Tensor) -> torch.Tensor:
    return pixels * pixels.new_tensor(IMAGENET_STD).view(3, 1, 1) + pixels.new_tensor(IMAGENET_MEAN).view(3, 1, 1)


_PREPARATIONS: Mapping[str, Show] = MappingProxyType(
    {
        "normalisation by ImageNet's mean and deviation": _normalised,
        "normalisation by 0.5": lambda pixels: 2 * pixels - 1,
        "no normalisation": _denormalised,
        "values of 0 to 255": lambda pixels: 255 * pixels,
        "blue, green and red in this order": lambda pixels: pixels.flip(1),
    }
)
