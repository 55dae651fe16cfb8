"""Results to one page of HTML: no script, no address outside of the page, the reader's light or dark."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d4m_fast.errors import UsageError
from d4m_fast.report.charts import cut
from d4m_fast.report.comparison import by_setting, interval_words, is_off_zero, verdict
from d4m_fast.report.numerals import decimal, grouped, signed
from d4m_fast.report.results import check_results
from d4m_fast.report.sections import sections_of

if TYPE_CHECKING:
    from jinja2 import Environment


def render_report(results: Mapping[str, Any] | Sequence[Mapping[str, Any]], run: Path | None = None) -> str:
    """Return a report as HTML that needs nothing but itself.

    Args:
        results: of `evaluate --json`, see `schema.json`; where there are several, the page is about the first, and its
            section on images per class is about all.
        run: the directory of the first, for pictures of its images; without it, or without the images that it was
            made from, the page says that they are left out.

    Raises:
        DataError: they are not such results.
        UsageError: there are none, or two of them have the same setting and arm.
    """
    every = [results] if isinstance(results, Mapping) else list(results)
    if not every:
        raise UsageError("no results to render: name a file that evaluate --json has written")
    for i, evaluation in enumerate(every):
        check_results(evaluation, f"results {i + 1} of {len(every)}")
    _refuse_repetition(every)
    subject = every[0]["subject"]
    template = _environment().get_template("report.html")
    return template.render(
        subject=subject,
        runs=[evaluation["subject"]["run"] for evaluation in every],
        verdict=verdict(every[0]["rows"]),
        sections=sections_of(every, run),
    )


def _refuse_repetition(results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse two rows of one setting and arm: a page that shows one of them would not say which."""
    owners = dict[Any, str]()
    for evaluation in results:
        for setting, rows in by_setting(evaluation["rows"]).items():
            for row in rows:
                key, name = (setting, row["arm"]), evaluation["subject"]["run"]
                if key in owners:
                    raise UsageError(
                        f"arm {row['arm']} with {setting.title} at {setting.images_per_class} images per class is there"
                        f" twice ({owners[key]}, {name}); render one of them, or name the arms apart"
                    )
                owners[key] = name


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Everything is escaped, whatever a template is called: names of classes and folders are other people's.
    environment = Environment(
        loader=PackageLoader(__package__ or "d4m_fast.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "decimal": decimal,
        "signed": signed,
        "grouped": grouped,
        "short_name": cut,
        "interval": interval_words,
        "plain": _plain,
    }
    environment.tests["off_zero"] = is_off_zero
    return environment


def _plain(value: Any) -> str:
    """Return a single value of the provenance as text."""
    if value is None:
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
