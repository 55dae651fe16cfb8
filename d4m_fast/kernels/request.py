"""Requests to k-means: problems, each with its k and its id, and options that say how to solve them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from d4m_fast.errors import UsageError

Method = Literal["auto", "direct", "gram", "minibatch"]


@dataclass(frozen=True, slots=True)
class Options:
    """Options of `kmeans` that hold for all problems of a call.

    Raises:
        UsageError: no such method, or no passes.
    """

    method: Method = "auto"
    seed: int = 0
    max_iter: int = 300
    refine: bool = True

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UsageError(f"no k-means method '{self.method}'; use {', '.join(get_args(Method))}")
        if self.max_iter < 1:
            raise UsageError(f"k-means needs max_iter of at least 1, not {self.max_iter}")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A problem as the caller passed it, not yet checked.

    Attributes:
        start: initial centres (k, D), or None.
    """

    points: Any
    k: int
    id: int
    start: Any = None


def requests(
    problems: Sequence[Any],
    k: int | Sequence[int],
    ids: Sequence[int] | None,
    init: Sequence[Any] | None,
) -> list[Request]:
    """Return a request per problem.

    Raises:
        UsageError: there are more or fewer ks, ids or initial centres than problems.
    """
    count = len(problems)
    columns: dict[str, Sequence[Any]] = {
        "k": k if isinstance(k, Sequence) else [k] * count,
        "ids": range(count) if ids is None else ids,
        "init": [None] * count if init is None else init,
    }
    for name, values in columns.items():
        if len(values) != count:
            raise UsageError(f"k-means got {count} problems but {len(values)} {name}")
    # `operator.index` takes NumPy's integers, and refuses a float that int() would cut.
    rows = zip(problems, *columns.values(), strict=True)
    return [Request(points, operator.index(k), int(key), start) for points, k, key, start in rows]


def require_fit(problem_requests: Sequence[Request], options: Options) -> None:
    """Refuse requests that the options leave no use for.

    Raises:
        UsageError: initial centres beside "minibatch".
    """
    if options.method == "minibatch" and any(request.start is not None for request in problem_requests):
        raise UsageError("k-means method 'minibatch' runs once, from its own centres")
