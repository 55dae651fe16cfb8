"""A teacher's accuracy on real images, and classes that are in each other's places."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from fakes import make_source
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import accuracy_score, confusion_matrix

from d4m_fast.errors import ModelError
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.images import ImageSet, load_images
from d4m_fast.evaluation.teacher_check import check_teacher, require_sound
from d4m_fast.evaluation.teachers import BUNDLED, Teacher, load_teacher, teacher_folder
from d4m_fast.sources.dataset import open_source

NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


@pytest.fixture(scope="module")
def test_set() -> ImageSet:
    """The first 600 of Fashion-MNIST's test images."""
    source = open_source("bundled", split="test", prompts_needed=False)
    return load_images(source, 32, source.items[:600])


def bundled(order: Sequence[int] = range(10)) -> Teacher:
    """The bundled teacher, output i being that of class order[i]."""
    teacher = load_teacher(teacher_folder(BUNDLED))
    network = teacher.network
    assert isinstance(network, ConvNet)
    with torch.no_grad():
        network.head.weight.copy_(network.head.weight[list(order)].clone())
        network.head.bias.copy_(network.head.bias[list(order)].clone())
    return dataclasses.replace(teacher, name="planted")


def predictions(teacher: Teacher, test: ImageSet) -> np.ndarray:
    with torch.inference_mode():
        predicted: np.ndarray = teacher.network(test.images.float() / 255).argmax(1).numpy()
    return predicted


def test_accuracies_are_scikit_learns(test_set: ImageSet) -> None:
    teacher = bundled()
    check = check_teacher(teacher, test_set, NAMES)
    truth, predicted = test_set.labels.numpy(), predictions(teacher, test_set)
    assert check.accuracy == pytest.approx(100 * accuracy_score(truth, predicted))
    by_class = 100 * np.diag(confusion_matrix(truth, predicted, normalize="true"))
    assert list(check.per_class) == list(NAMES)
    assert list(check.per_class.values()) == pytest.approx(by_class)
    assert check.permuted == ()
    require_sound(check, teacher, test_set)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 9, 5, 6, 7, 8, 4), (3, 7, 5, 9, 2, 8, 1, 0, 4, 6)], ids=["swap", "any"])
def test_a_planted_permutation_is_the_assignment_of_the_confusion(test_set: ImageSet, order: tuple[int, ...]) -> None:
    teacher = bundled(order)
    check = check_teacher(teacher, test_set, NAMES)
    confusion = confusion_matrix(test_set.labels.numpy(), predictions(teacher, test_set))
    _, assigned = linear_sum_assignment(-confusion)
    moved = {(c, int(p)) for c, p in enumerate(assigned) if c != p}
    assert {(swap.output, swap.predicted) for swap in check.permuted} == moved
    with pytest.raises(ModelError) as refused:
        require_sound(check, teacher, test_set)
    first = min(moved)
    assert f"folder {first[0]} {NAMES[first[0]]!r} is predicted as {first[1]} {NAMES[first[1]]!r}" in str(refused.value)
    assert "\n" not in str(refused.value)


class Grey(torch.nn.Module):
    """Tells flat grey images of `fakes.make_source` apart: class i is near level 10 i."""

    def __init__(self, order: Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        self.levels = torch.nn.Parameter(torch.tensor([(10 * number + 2) / 255 for number in order]))
        self.scale = scale

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return -((pixels.mean((1, 2, 3)).unsqueeze(1) / self.scale - self.levels) ** 2)


def grey(order: Sequence[int], columns: tuple[int, ...] | None = None, scale: float = 1.0) -> Teacher:
    return Teacher("grey", "0", Grey(order, scale), None, 32, columns)


def greys(classes: int, images: int = 3) -> ImageSet:
    return load_images(make_source(list(map(str, range(classes))), [images] * classes), 32)


@pytest.mark.parametrize("inverse", [False, True])
def test_folders_sorted_as_text_are_named_as_the_cause(inverse: bool) -> None:
    names = [str(number) for number in range(20)]
    order = sorted(range(20), key=str)
    if inverse:
        order = [order.index(number) for number in range(20)]
    test, teacher = greys(20), grey(order)
    check = check_teacher(teacher, test, names)
    assert len(check.permuted) == 18  # 0 and 1 stay
    with pytest.raises(ModelError, match=r"folder 2 '2' is predicted as .*sorted as text \(0, 1, 10, \.\.\.\)"):
        require_sound(check, teacher, test)


def test_a_rotation_is_not_taken_for_text() -> None:
    test, teacher = greys(20), grey([*range(1, 20), 0])
    with pytest.raises(ModelError, match="in the order of the folders"):
        require_sound(check_teacher(teacher, test, list(map(str, range(20)))), teacher, test)


def test_predictions_are_of_all_classes_that_the_teacher_knows() -> None:
    """Of 20 classes three are tested, the last two in each other's places, and numbered as the teacher has them."""
    source = make_source(["ant", "crane", "crane bird"], [5, 5, 5])
    test = load_images(source, 32)
    order = list(range(20))
    order[0], order[7], order[3] = 0, 2, 1
    order[1], order[2] = 18, 19
    teacher = grey(order, columns=(0, 7, 3))
    check = check_teacher(teacher, test, ["ant", "crane", "crane bird"])
    assert check.outputs == 20
    assert [str(swap) for swap in check.permuted] == [
        "folder 3 'crane bird' is predicted as 7 'crane'",
        "folder 7 'crane' is predicted as 3 'crane bird'",
    ]
    assert teacher.label(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_a_teacher_of_one_answer_permutes_nothing() -> None:
    teacher = grey([*[25] * 4, 2, *[25] * 5])
    check = check_teacher(teacher, greys(10), list(map(str, range(10))))
    assert (check.accuracy, check.permuted) == (10.0, ())
    with pytest.raises(ModelError, match="it takes 100 % of them for class 4: normalisation missing, or not trained"):
        require_sound(check, teacher, greys(10))


def test_values_in_another_range_are_named_as_the_cause() -> None:
    teacher = grey(range(10), scale=255.0)
    check = check_teacher(teacher, greys(10), list(map(str, range(10))))
    with pytest.raises(ModelError, match=r"with values of 0 to 255 it has 100\.0 %"):
        require_sound(check, teacher, greys(10))


def test_missing_normalisation_is_named_as_the_cause(test_set: ImageSet) -> None:
    teacher = bundled()
    network = teacher.network
    mean, std = network.get_buffer("mean"), network.get_buffer("std")
    # As if it had been trained on pixels that were normalised by 0.5 before they reached it.
    mean.copy_(2 * mean - 1)
    std.mul_(2)
    check = check_teacher(teacher, test_set, NAMES)
    assert check.accuracy < check.least_accuracy
    with pytest.raises(ModelError, match=r"with normalisation by 0\.5 it has 9\d\.\d %"):
        require_sound(check, teacher, test_set)


def test_another_resolution_is_named_as_the_cause() -> None:
    teacher = dataclasses.replace(grey([5] * 10), image_size=64)
    check = check_teacher(teacher, greys(10), list(map(str, range(10))))
    with pytest.raises(ModelError, match="takes images of 64 pixels a side, these have 32"):
        require_sound(check, teacher, greys(10))


def test_the_least_accuracy_is_between_chance_and_any_published_classifier() -> None:
    check = check_teacher(grey(range(2)), greys(2), "ab")
    assert check.least_accuracy == 62.5
    assert dataclasses.replace(check, outputs=1000).least_accuracy == pytest.approx(25.075)


def test_logits_that_are_not_finite(test_set: ImageSet) -> None:
    teacher = bundled()
    with torch.no_grad():
        teacher.network.get_parameter("head.bias")[3] = float("nan")
    with pytest.raises(ModelError, match="teacher planted: its logits are NaN or infinite"):
        check_teacher(teacher, test_set, NAMES)
