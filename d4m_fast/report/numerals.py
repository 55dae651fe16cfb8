"""Numbers as the report writes them: the same whatever the reader's locale."""

from __future__ import annotations

MINUS = "\N{MINUS SIGN}"
_GROUP = "\N{NARROW NO-BREAK SPACE}"  # SI's mark of thousands, which no locale reads as a decimal one


def decimal(value: float, digits: int = 2) -> str:
    """Return a number with a point and a typographic minus."""
    text = f"{value:.{digits}f}"
    # What rounds to zero has no sign.
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """Return a difference with its sign."""
    text = decimal(value, digits)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def grouped(value: int) -> str:
    """Return a count in groups of three digits."""
    return f"{value:,}".replace(",", _GROUP)


def short(value: float) -> str:
    """Return the label of an axis: as few digits as it takes."""
    return f"{round(value, 6):g}".replace("-", MINUS)
