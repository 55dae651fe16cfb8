"""Accuracies to rows: means, paired differences with their intervals, and the field's robustness scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from d4m_fast.config.choices import Regime
from d4m_fast.evaluation.tasks import Result

RANDOM, DISTILLED, WHOLE = "random", "distilled", "whole"
# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom, as in any table of it.
_T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
LRS_WEIGHT = 0.5  # of IOR beside HLR, as DD-Ranking has it (Li et al., 2025)


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of paired differences in points, and its 95 % interval; None where one pair tells nothing of the spread."""

    mean: float
    low: float | None
    high: float | None

    @property
    def is_off_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class Row:
    """The students of one arm under one recipe.

    Attributes:
        results: in the order of generation and seed.
        difference_to_random: paired by generation and seed; None without a random arm.
    """

    arm: str
    regime: Regime
    student: str
    teacher: str | None
    results: tuple[Result, ...]
    difference_to_random: Difference | None

    @property
    def accuracies(self) -> list[float]:
        return [result.accuracy for result in self.results]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for a single student."""
        return statistics.stdev(self.accuracies) if len(self.results) > 1 else None

    @property
    def best_epoch_mean(self) -> float:
        return statistics.fmean(result.best for result in self.results)

    @property
    def per_class(self) -> list[float]:
        """Mean accuracy of each class, in percent."""
        by_seed = [result.per_class for result in self.results]
        return list(map(statistics.fmean, zip(*by_seed, strict=True)))


def rows_of(results: Iterable[Result]) -> list[Row]:
    """Return one row per arm, regime, student and teacher, in the order in which these are first met by seed."""
    groups = dict[tuple[str, Regime, str, str | None], list[Result]]()
    for result in sorted(results, key=lambda result: (result.task.generation, result.task.seed)):
        task = result.task
        groups.setdefault((task.arm, task.regime, task.student, task.teacher), []).append(result)
    rows = []
    for (arm, regime, student, teacher), members in groups.items():
        random = groups.get((RANDOM, regime, student, teacher))
        difference = None if random is None or arm == RANDOM else paired_difference(members, random)
        rows.append(Row(arm, regime, student, teacher, tuple(members), difference))
    return rows


def paired_difference(results: Sequence[Result], baseline: Sequence[Result]) -> Difference | None:
    """Return the mean difference of results with equal generation and seed; None where there are no such pairs."""
    baselines = {(result.task.generation, result.task.seed): result.accuracy for result in baseline}
    differences = list[float]()
    for result in results:
        accuracy = baselines.get((result.task.generation, result.task.seed))
        if accuracy is not None:
            differences.append(result.accuracy - accuracy)
    return interval(differences) if differences else None


def interval(values: Sequence[float]) -> Difference:
    """Return the mean of values and its 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Difference(mean, None, None)
    half = t_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Difference(mean, mean - half, mean + half)


def t_975(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t; beyond the table by Cornish and Fisher's expansion."""
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    # Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.5, in the normal distribution's 97.5 % quantile.
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


BIAS = (
    "fractions, not percent, with one learning rate for all arms and the last epoch; DD-Ranking's own code takes"
    " percent, the best epoch on the test set, and for random the best of five rates, so that its IOR is lower"
)


def scores_of(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return DD-Ranking's hard-label recovery, improvement over random, and label-robust score per regime and student.

    HLR = acc(whole, hard) - acc(distilled, hard); IOR = acc(distilled) - acc(random); LRS = (e^a - e^-1) / (e - e^-1)
    with a = w IOR - (1 - w) HLR (Li et al., 2025, arXiv 2505.13300), accuracies as fractions.
    """
    means = {(row.arm, row.regime, row.student, row.teacher): row.mean / 100 for row in rows}
    scores = []
    for (arm, regime, student, teacher), accuracy in means.items():
        if arm != DISTILLED:
            continue
        whole = means.get((WHOLE, "hard", student, None))
        distilled = means.get((DISTILLED, "hard", student, None))
        hlr = None if whole is None or distilled is None else whole - distilled
        random = means.get((RANDOM, regime, student, teacher))
        ior = None if random is None else accuracy - random
        scores.append(
            {
                "regime": regime,
                "student": student,
                "teacher": teacher,
                "hlr": hlr,
                "ior": ior,
                "lrs": None if hlr is None or ior is None else label_robust_score(hlr, ior),
                "bias": BIAS,
            }
        )
    return scores


def label_robust_score(hlr: float, ior: float) -> float:
    """Return DD-Ranking's LRS of two fractions, 0 to 1."""
    exponent = LRS_WEIGHT * ior - (1 - LRS_WEIGHT) * hlr
    return (math.exp(exponent) - math.exp(-1)) / (math.e - math.exp(-1))
