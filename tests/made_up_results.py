"""Made-up results of evaluations: the numbers were drawn, nothing was trained. For tests only, never for a page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

NAMES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
ARMS = {  # points above random at 10 images per class, made up
    "random": 0.0,
    "distilled": 1.6,
    "medoid": 1.9,
    "random-vae": -0.6,
    "medoid-vae": 1.1,
    "decoded": -2.4,
    "coreset": 2.3,
}
REGIMES = {"hard": (70.0, 1.6), "fixed": (77.0, 0.4), "online": (80.0, -1.5)}  # accuracy of random; added to distilled
STUDENTS = {"convnet3": (0.0, 1.0), "resnet18": (2.5, 1.3), "vit_tiny_patch16_224": (-9.0, -0.5)}
SEEDS = 3
EPOCHS = 60
STUDENT_T = 4.3027  # 97.5 % quantile with SEEDS - 1 degrees of freedom


def example_results(
    images_per_class: int = 10, students: tuple[str, ...] = ("convnet3",), names: tuple[str, ...] = NAMES
) -> dict[str, Any]:
    """Results in the form of `evaluate --json`: three regimes, seven arms, a row for each student.

    Distilled wins under hard labels, loses under online ones, and coreset is above it: a report has to say all three.
    """
    rng = np.random.default_rng(images_per_class)
    rows, curves = list[dict[str, Any]](), list[dict[str, Any]]()
    for student in students:
        for regime in REGIMES:
            _train(rows, curves, rng, student, regime, images_per_class, names)
    return {
        "format": 1,
        "subject": {
            "run": f"runs/made-up-ipc{images_per_class}",
            "images_per_class": images_per_class,
            "classes": list(names),
            "protocol": {
                "name": "small[epochs=60]",
                "format": 1,
                "resolution": 32,
                "epochs": EPOCHS,
                "batch_size": [[1, 50]],
                "bn_batch": None,
                "lr": {"": 0.002},
                "betas": [0.9, 0.999],
            },
            "seeds": SEEDS,
            "data": ["3fd1e2" * 10, "97b0aa" * 10, "c01c22" * 10],
        },
        "rows": rows,
        "curves": curves,
        "scores": [_score(regime) for regime in REGIMES],
        "teacher_check": _teacher_check(rng, names),
        "teacher_checks": [],
        "feature_map": {"method": "PCA of 64 made-up features", "points": _points(rng, len(names))},
        "provenance": {
            "version": "made up",
            "libraries": {"torch": "0.0", "torchvision": "0.0"},
            "machine": {"device": "none, these numbers were drawn", "threads": 0},
            "seeds": {"generation": [0], "draw": [0, 1, 2], "student": [0, 1, 2]},
            "teacher": None,
        },
        "seconds": {"load": 1.4, "check teacher": 3.0, "labels": 12.5, "students": 481.2, "test": 22.1, "total": 524.9},
    }


def _train(
    rows: list[dict[str, Any]],
    curves: list[dict[str, Any]],
    rng: np.random.Generator,
    student: str,
    regime: str,
    images_per_class: int,
    names: tuple[str, ...],
) -> None:
    level, extra = REGIMES[regime]
    shift, factor = STUDENTS[student]
    level += shift + 6 * math.log10(images_per_class / 10)
    baseline = level + rng.normal(0, 0.4, SEEDS)
    teacher = None if regime == "hard" else "bundled"
    for arm, gain in ARMS.items():
        mean = level + factor * gain + (extra if arm in ("distilled", "decoded") else 0)
        accuracy = baseline if arm == "random" else mean + rng.normal(0, 0.3, SEEDS)
        per_class = np.clip(accuracy.mean() + np.linspace(12, -12, len(names)) + rng.normal(0, 2, len(names)), 0, 100)
        key = {"arm": arm, "regime": regime, "student": student, "teacher": teacher}
        row: dict[str, Any] = {
            **key,
            "protocol": "small[epochs=60]",
            "images_per_class": images_per_class,
            "accuracy": [round(float(a), 2) for a in accuracy],
            "mean": round(float(accuracy.mean()), 3),
            "std": round(float(accuracy.std(ddof=1)), 3),
            "best_epoch_mean": round(float(accuracy.mean()) + 0.4, 3),
            "difference_to_random": None if arm == "random" else _interval(accuracy - baseline),
            "label_bytes": {"hard": 8, "fixed": 4200, "online": 0}[regime] * images_per_class * len(names),
            "image_bytes": 1700 * images_per_class * len(names),
            "per_class": [round(float(p), 1) for p in per_class],
            "confusion": _confusion(per_class, rng) if arm == "distilled" else None,
        }
        rows.append(row)
        for seed, final in enumerate(row["accuracy"]):
            curves.append({**key, "seed": seed, **_curve(rng, final)})


def _interval(differences: np.ndarray) -> dict[str, float]:
    margin = STUDENT_T * differences.std(ddof=1) / math.sqrt(SEEDS)
    mean = differences.mean()
    return {"mean": float(mean), "low": float(mean - margin), "high": float(mean + margin)}


def _curve(rng: np.random.Generator, final: float) -> dict[str, Any]:
    epochs = np.arange(EPOCHS)
    losses = 2.3 * np.exp(-epochs / 15) + 0.1 + rng.random(EPOCHS) * 0.05
    accuracies = final - (final - 10) * np.exp(-epochs / 8) + rng.normal(0, 0.5, EPOCHS)
    accuracies[-1] = final
    tested = [epoch for epoch in range(EPOCHS) if epoch % 5 == 0 or epoch == EPOCHS - 1]
    pairs = [[epoch, round(float(accuracies[epoch]), 2)] for epoch in tested]
    return {"losses": [round(float(loss), 4) for loss in losses], "accuracies": pairs}


def _confusion(per_class: np.ndarray, rng: np.random.Generator, images: int = 1000) -> list[list[int]]:
    rows = []
    for class_id, percent in enumerate(per_class):
        weights = rng.dirichlet(np.full(len(per_class) - 1, 0.3)) * (1 - percent / 100)
        rows.append(rng.multinomial(images, np.insert(weights, class_id, percent / 100)).tolist())
    return rows


def _score(regime: str) -> dict[str, Any]:
    hlr, ior = {"hard": (0.19, 0.032), "fixed": (0.19, 0.02), "online": (0.19, 0.001)}[regime]
    alpha = 0.5 * ior - 0.5 * hlr
    lrs = (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))
    bias = "the learning rate is not searched: IOR is that of one recipe for both arms"
    return {"regime": regime, "student": "convnet3", "hlr": hlr, "ior": ior, "lrs": lrs, "bias": bias}


def _teacher_check(rng: np.random.Generator, names: tuple[str, ...]) -> dict[str, Any]:
    per_class = np.clip(93 + rng.normal(0, 4, len(names)), 0, 100)
    return {
        "teacher": "bundled",
        "accuracy": round(float(per_class.mean()), 2),
        "per_class": [round(float(p), 1) for p in per_class],
        "permuted": [f"folder 3 {names[3]!r} is predicted as 4"],
    }


def _points(rng: np.random.Generator, classes: int) -> list[list[Any]]:
    points = list[list[Any]]()
    for class_id in range(classes):
        angle = 2 * math.pi * class_id / classes
        centre = np.array([8 * math.cos(angle), 5 * math.sin(angle)])
        for kind, count, spread in (("real", 60, 1.2), ("prototype", 4, 0.7), ("distilled", 4, 0.9)):
            for x, y in centre + rng.normal(0, spread, (count, 2)):
                points.append([round(float(x), 3), round(float(y), 3), kind, class_id])
    return points
