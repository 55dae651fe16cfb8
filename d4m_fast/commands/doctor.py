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

    found = diagnose()
    say_result(found, as_json, lambda: _lines(found))


def _lines(found: dict[str, Any]) -> list[str]:
    libraries = [f"  {name} {'not installed' if v is None else v}" for name, v in found["libraries"].items()]
    engines = [
        f"  {name}: {'yes' if engine['available'] else 'no'}, {engine['reason']}"
        for name, engine in found["engines"].items()
    ]
    head = f"d4m-fast {found['d4m-fast']}, Python {found['python']}, {found['platform']}"
    machine = f"{found['cores']} cores, {found['threads']} threads; devices: {', '.join(found['devices'])}"
    return [head, machine, "engines:", *engines, "libraries:", *libraries]
