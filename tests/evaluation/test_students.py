from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from fakes import make_source, stripes

from d4m_fast.config.choices import LabelKind
from d4m_fast.config.evaluate import EvaluateConfig
from d4m_fast.config.plan import PlanConfig
from d4m_fast.errors import DataError, ModelError, UsageError
from d4m_fast.evaluation import students
from d4m_fast.evaluation.convnet import ConvNet
from d4m_fast.evaluation.evaluate import Evaluation, evaluate
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.protocols import PROTOCOLS, Protocol
from d4m_fast.evaluation.train import Exam, Task, accuracy, train_student
from d4m_fast.evaluation.workers import run_tasks

QUICK = dataclasses.replace(PROTOCOLS["small"], name="quick", image_size=16, epochs=4, shift=2)


def exam(epochs: int = 4, classes: tuple[int, ...] = (0, 1)) -> Exam:
    teacher = ConvNet(2, width=4, norm="batch", image_size=16).eval().requires_grad_(False)
    return Exam(dataclasses.replace(QUICK, epochs=epochs), 8, 2, classes, stripes(60, 99), teacher)


def test_protocol_small_is_as_published() -> None:
    assert PROTOCOLS["small"] == Protocol("small", 32, 300, 50, 2e-3, 0.01, 4, 4.0)
    with pytest.raises(TypeError):
        PROTOCOLS["small"] = QUICK  # type: ignore[index]


def test_a_student_learns_from_hard_labels_then_teaches() -> None:
    shared = exam(epochs=40)
    assert train_student(shared, Task("a", "hard", 0, stripes(10, 1))) > 90
    teacher = ConvNet(2, width=8, image_size=16)
    _teach(teacher, stripes(40, 5))
    shared = dataclasses.replace(shared, teacher=teacher.eval().requires_grad_(False))
    # The labels given are wrong: whatever is learnt comes from the teacher.
    swapped = ImageSet(stripes(10, 1).images, 1 - stripes(10, 1).labels)
    assert train_student(shared, Task("a", "soft", 0, swapped)) > 90


def _teach(model: ConvNet, data: ImageSet) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(data.images.float() / 255), data.labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_training_leaves_no_trace_and_repeats(kind: LabelKind) -> None:
    shared, task = exam(), Task("a", kind, 3, stripes(30, 1))
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    first = train_student(shared, task)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert train_student(shared, task) == first


def test_workers_do_not_change_results() -> None:
    tasks = [Task(arm, "soft", seed, stripes(13, seed)) for seed in range(2) for arm in ("distilled", "random")]
    shared = exam()
    alone = list(run_tasks(shared, tasks, 1))
    paired = list(run_tasks(shared, tasks, 2))
    assert sorted(alone, key=str) == sorted(paired, key=str)
    assert [(r.arm, r.seed) for r in alone] == [(t.arm, t.seed) for t in tasks]


def test_subset_of_classes_restricts_logits() -> None:
    class Favours(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[9.0, 1.0, 2.0, 0.0]]).expand(len(pixels), 4)

    images = ImageSet(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.tensor([1, 2, 2, 2]))
    assert accuracy(Favours(), Exam(QUICK, 8, 4, (1, 2), images)) == 75.0
    assert accuracy(Favours(), Exam(QUICK, 8, 4, (0, 1, 2, 3), images)) == 0.0


def plan(runs: int = 1, seeds: Sequence[int] = (0, 1), **options: object) -> Evaluation:
    run = make_source(["c", "a"], [2, 2])
    real, test = make_source(["a", "b", "c"], [6, 6, 6], 16), make_source(["a", "b", "c"], [4, 4, 4], 16)
    values: dict[str, object] = {"teacher": ConvNet(3, width=4, image_size=16).eval(), "label_kind": "soft", **options}
    return evaluate([run] * runs, real, test, protocol=QUICK, width=4, seeds=seeds, **values)  # type: ignore[arg-type]


def test_evaluation_is_a_sized_iterable() -> None:
    found = plan()
    assert len(found) == 4
    assert found.exam.classes == (0, 2)
    assert found.exam.outputs == 3
    assert set(found.exam.test.labels.tolist()) == {0, 2}
    assert [(r.arm, r.seed) for r in found] == [("distilled", 0), ("random", 0), ("distilled", 1), ("random", 1)]


def test_arms_have_equal_budgets_and_draws_differ() -> None:
    distilled, random, _, other = (task.train for task in plan().tasks)
    assert distilled.labels.sort().values.tolist() == random.labels.tolist() == [0, 0, 2, 2]
    assert not torch.equal(random.images, other.images)
    assert set((random.images[:, 0, 0, 0] // 10).tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"teacher": None}, UsageError),
        ({"seeds": ()}, UsageError),
        ({"runs": 3}, UsageError),
        ({"teacher": ConvNet(4, width=4, image_size=16)}, ModelError),
        ({"teacher": ConvNet(3, width=4, image_size=32)}, ModelError),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        plan(**options)  # type: ignore[arg-type]


def test_class_missing_from_the_real_images() -> None:
    run, test = make_source(["a", "b"], [1, 1]), make_source(["a", "b"], [1, 1])
    with pytest.raises(DataError, match="'b'"):
        evaluate([run], make_source(["a"], [3]), test, None, protocol=QUICK, label_kind="hard")


@pytest.mark.parametrize("name", students.STUDENTS)
def test_a_student_has_an_output_per_class(name: str) -> None:
    student = students.STUDENTS[name].build(7, 32, 8).eval()
    assert student(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_student_named_is_the_one_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def build(classes: int, image_size: int, width: int) -> torch.nn.Module:
        sizes.append((classes, image_size, width))
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * image_size**2, classes))

    monkeypatch.setattr("d4m_fast.evaluation.train.STUDENTS", {"linear": students.Student(build, is_trained=True)})
    assert len(list(plan(student="linear"))) == 4
    assert sizes == [(3, 16, 4)] * 4


SCRIPT = """
import dataclasses, sys, torch
sys.path.insert(0, {here!r})
from fakes import stripes
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.train import Exam, Task
from d4m_fast.evaluation.workers import run_tasks

if __name__ == "__main__":
    protocol = dataclasses.replace(PROTOCOLS["small"], image_size=16, epochs=30)
    slow = Task("slow", "hard", 0, stripes(2000, 0))
    quick = Task("quick", "hard", 0, stripes(5, 0))
    for result in run_tasks(Exam(protocol, 8, 2, (0, 1), stripes(5, 1)), [quick, slow, slow], 2):
        sys.stdout.write(result.arm + chr(10))
        sys.stdout.flush()
"""


def _group(group: int) -> list[int]:
    stats = [(int(p.name), p / "stat") for p in Path("/proc").iterdir() if p.name.isdigit()]
    fields = {pid: stat.read_text().rpartition(")")[2].split() for pid, stat in stats if stat.exists()}
    return [pid for pid, values in fields.items() if int(values[2]) == group and values[0] != "Z"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_interrupt_ends_the_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "quick\n"
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert errors.count("Traceback") == 1  # the parent's own KeyboardInterrupt, none from the workers
    for _ in range(600):
        if not _group(process.pid):
            break
        time.sleep(0.1)
    assert _group(process.pid) == []


def test_options_offer_the_students_there_are() -> None:
    offered = {config: set(get_args(get_type_hints(config)["student"])) for config in (EvaluateConfig, PlanConfig)}
    assert offered[PlanConfig] == set(students.STUDENTS)
    assert offered[EvaluateConfig] == {name for name, student in students.STUDENTS.items() if student.is_trained}
