"""`d4m-fast doctor`: what can run here, and why not."""

from __future__ import annotations

from typing import Any

from d4m_fast.console import say_result
from d4m_fast.options import command


@command
def doctor(as_json: bool, quiet: bool) -> None:
    """Report what is installed, which engines can run here, and why the others cannot.

    \b
    Examples:
      d4m-fast doctor
      d4m-fast doctor --json
    """
    from d4m_fast.diagnose import diagnose

    report = diagnose()
    say_result(report, as_json, lambda: _lines(report))


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [
        f"d4m-fast {report['d4m-fast']}, Python {report['python']}, {report['platform']}",
        f"{report['cores']} cores, {report['threads']} threads; devices: {', '.join(report['devices'])}",
        "engines:",
    ]
    for name, engine in report["engines"].items():
        lines.append(f"  {name}: {'yes' if engine['available'] else 'no'}, {engine['reason']}")
    lines.append("libraries:")
    for name, version in report["libraries"].items():
        lines.append(f"  {name} {'not installed' if version is None else version}")
    return lines
