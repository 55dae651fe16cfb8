"""What is asked of k-means: problems, each with its k and its id, and how to solve them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from d4m_fast.errors import UsageError

Method = Literal["auto", "direct", "gram", "minibatch"]
OFFICIAL = "k-means method 'minibatch' runs once, from its own centres and without weights"


@dataclass(frozen=True, slots=True)
class Options:
    """How all problems of a call are solved, as `kmeans` has it.

    Raises:
        UsageError: no such method, a count below 1, or several seedings of "minibatch".
    """

    method: Method = "auto"
    seed: int = 0
    n_init: int = 1
    max_iter: int = 300
    refine: bool = True

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UsageError(f"no k-means method '{self.method}'; use {', '.join(get_args(Method))}")
        if self.n_init < 1 or self.max_iter < 1:
            raise UsageError(f"k-means needs n_init and max_iter of at least 1, not {self.n_init} and {self.max_iter}")
        if self.method == "minibatch" and self.n_init > 1:
            raise UsageError(OFFICIAL)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One problem as it was given; nothing is checked yet.

    Attributes:
        start: initial centres (k, D), or None.
        weights: (n,), or None where all points weigh 1.
    """

    points: Any
    k: int
    id: int
    start: Any = None
    weights: Any = None


def requests(
    problems: Sequence[Any],
    k: int | Sequence[int],
    ids: Sequence[int] | None,
    init: Sequence[Any] | None,
    weights: Sequence[Any] | None,
) -> list[Request]:
    """One per problem.

    Raises:
        UsageError: other numbers of something than of problems.
    """
    count = len(problems)
    columns: dict[str, Sequence[Any]] = {
        "k": k if isinstance(k, Sequence) else [k] * count,
        "ids": range(count) if ids is None else ids,
        "init": [None] * count if init is None else init,
        "weights": [None] * count if weights is None else weights,
    }
    for name, values in columns.items():
        if len(values) != count:
            raise UsageError(f"k-means got {count} problems but {len(values)} {name}")
    rows = zip(problems, *columns.values(), strict=True)
    return [Request(x, operator.index(k), int(key), start, weight) for x, k, key, start, weight in rows]


def require_fit(asked: Sequence[Request], options: Options) -> None:
    """Refuse what the options leave no use for.

    Raises:
        UsageError: initial centres beside several seedings, or they or weights beside "minibatch".
    """
    started = any(request.start is not None for request in asked)
    if started and options.n_init > 1:
        raise UsageError("k-means from given centres runs once: leave n_init at 1")
    if options.method == "minibatch" and (started or any(request.weights is not None for request in asked)):
        raise UsageError(OFFICIAL)
