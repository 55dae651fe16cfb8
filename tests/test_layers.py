"""Imports go downward only, and a few things stay in their place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import d4m_fast

PACKAGE = Path(d4m_fast.__file__).parent
LAYERS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("api",),
    ("profiling", "launch"),
    ("pipeline", "examination"),
    ("generation",),
    ("certification",),
    ("planning",),
    ("arms",),
    ("outputs",),
    ("options", "job", "diagnose"),
    ("engine_choice",),
    ("console", "endings"),
    ("export",),
    ("measure",),
    ("report",),
    ("evaluation", "engine.encode", "engine.prototypes", "engine.generate", "engine.trial", "engine.prompts"),
    ("engine.denoise",),
    ("engine.networks",),
    ("engine.engines",),
    ("engine.eager", "engine.ort", "engine.trt"),
    ("engine.runtime", "engine.modules", "engine.artifacts", "engine.memory", "engine.finite"),
    ("engine.model", "engine.hub", "engine.trt_api", "engine.unet", "engine.compatibility"),
    ("engine.schedule", "engine.scheduler", "engine.linearity", "engine.stepping", "engine.weights"),
    ("engine.signature", "engine.libraries", "engine.guidance", "runs"),
    ("sources", "flow"),
    ("storage", "kernels"),
    ("config", "streams", "preflight"),
    ("errors", "allocator", "wording", "characters", "fingerprints"),
)
FREE = ("", "__init__")  # the version


def layer(module: str) -> int:
    """Height of a module, named from the package down; 0 is the highest."""
    for height, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return height
    raise AssertionError(f"d4m_fast.{module} has no layer: give it one in LAYERS")


def part(module: str) -> str:
    return module.split(".")[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of this package that a source imports, inside functions too, named from the package down."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (found for name in names if (found := _module(name)) is not None)


def _module(name: str) -> str | None:
    """`d4m_fast.storage.files.sweep` -> `storage.files`."""
    words = name.split(".")
    if words[0] != "d4m_fast":
        return None
    while words[1:] and not _exists(words[1:]):
        words.pop()
    return ".".join(words[1:])


def _exists(words: list[str]) -> bool:
    path = PACKAGE.joinpath(*words)
    return path.is_dir() or path.with_suffix(".py").is_file()


def wrong_imports(module: str, tree: ast.AST) -> list[str]:
    found = []
    for other in set(imports(tree)) - {*FREE, module}:
        siblings = layer(other) == layer(module) and part(other) == part(module)
        if layer(other) < layer(module) or (layer(other) == layer(module) and not siblings):
            found.append(f"{module} imports {other}")
    if part(module) == "evaluation":
        found += [f"{module} imports {o}" for o in imports(tree) if part(o) in ("engine", "export", "kernels")]
    if part(module) == "engine":
        found += [f"{module} imports {o}" for o in imports(tree) if part(o) in ("export", "evaluation")]
    return found


def misplaced(module: str, tree: ast.AST) -> list[str]:
    found = []
    last_resort = _handlers_of_main(tree) if module == "cli" else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"{module}:{node.lineno}: print")
        if isinstance(node, ast.ExceptHandler) and _catches_all(node) and node not in last_resort:
            found.append(f"{module}:{node.lineno}: except Exception")
        if isinstance(node, ast.Constant) and node.value == "cuda" and module != "engine.runtime":
            found.append(f"{module}:{node.lineno}: 'cuda'")
    return found


def _handlers_of_main(tree: ast.AST) -> list[ast.AST]:
    mains = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "main")
    return [handler for main in mains for handler in ast.walk(main) if isinstance(handler, ast.ExceptHandler)]


def _catches_all(handler: ast.ExceptHandler) -> bool:
    """A bare except, or one of Exception; BaseException only where it is raised again."""
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else {""}
    again = any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))
    return bool(names & {"", "Exception"}) or ("BaseException" in names and not again)


def sources() -> list[str]:
    found = (f.relative_to(PACKAGE).with_suffix("") for f in sorted(PACKAGE.rglob("*.py")))
    return [".".join(path.parts) for path in found if path.name != "__init__"]


def parse(module: str) -> ast.Module:
    return ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", sources())
def test_imports_go_downward(module: str) -> None:
    assert wrong_imports(module, parse(module)) == []


@pytest.mark.parametrize("module", sources())
def test_things_in_their_place(module: str) -> None:
    assert misplaced(module, parse(module)) == []


def test_there_is_something_to_check() -> None:
    assert {"cli", "job", "engine.generate", "runs.latents", "kernels.kmeans"} <= set(sources())
    assert {"engine.encode", "storage.files", "job"} <= set(imports(parse("pipeline")))


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("storage.files", "from d4m_fast.engine import eager", "storage.files imports engine.eager"),
        ("storage.files", "import d4m_fast.cli", "storage.files imports cli"),
        (
            "config.distill",
            "def f():\n from d4m_fast.storage.files import sweep",
            "config.distill imports storage.files",
        ),
        ("kernels.kmeans", "from d4m_fast.storage import files", "kernels.kmeans imports storage.files"),
        ("evaluation.train", "from d4m_fast.engine.model import Model", "evaluation.train imports engine.model"),
        ("engine.eager", "from d4m_fast.engine.networks import Networks", "engine.eager imports engine.networks"),
        ("engine.generate", "from d4m_fast.evaluation import results", "engine.generate imports evaluation.results"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, problem: str) -> None:
    assert problem in wrong_imports(module, ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "device = 'cuda'",
        "try:\n x\nexcept Exception:\n pass",
        "try:\n x\nexcept (OSError, Exception):\n raise",
        "try:\n x\nexcept:\n pass",
        "try:\n x\nexcept BaseException:\n pass",
    ],
)
def test_a_misplaced_thing_is_found(source: str) -> None:
    assert len(misplaced("storage.files", ast.parse(source))) == 1
    assert len(misplaced("cli", ast.parse(source))) == 1


@pytest.mark.parametrize("source", ["f'{x} cuda'", "'use cuda'", "try:\n x\nexcept BaseException:\n y\n raise"])
def test_a_proper_thing_is_not(source: str) -> None:
    assert misplaced("storage.files", ast.parse(source)) == []
