"""`d4m-fast certify` of a tiny model on a CPU; every kind of faulty runtime must fail the command itself."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from driving import CLASSES, Ran, refused, run_cli, write_photos
from mutants import (
    Drifting,
    Exaggerated,
    Fault,
    Overwriting,
    correct,
    half,
    mutate,
    overflow,
    permuted_batch,
    rounded,
    shifted_timestep,
    stale_buffer,
    swapped_halves,
)

from d4m_fast.certification import engines, reference, speed, steps
from d4m_fast.certification.agreement import agree
from d4m_fast.certification.engines import Engine
from d4m_fast.certification.reference import Memo, Reference, read_reference
from d4m_fast.certification.request import Request, prepare_certification
from d4m_fast.config.certify import CertifyConfig
from d4m_fast.engine.networks import Networks, open_networks
from d4m_fast.engine.runtime import Runtime
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.errors import DamageError, ModelError
from d4m_fast.measure.sweep import Point

pytestmark = pytest.mark.usefixtures("eight_calls")

TORCH_HALF, COMPILED_HALF = Engine("torch", "fp16"), Engine("compiled", "fp16")
CPU_STEPS = [
    "reference",
    *("parity-torch-fp32", "speed-torch-fp32-encode", "speed-torch-fp32-unet", "speed-torch-fp32-decode"),
    *("export-onnx-fp32", "parity-onnx-fp32"),
    *("speed-onnx-fp32-encode", "speed-onnx-fp32-unet", "speed-onnx-fp32-decode"),
]
Certify = Callable[..., Ran]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[object, ...]:
    """Options of a certification of seconds."""
    data = write_photos(tmp_path_factory.mktemp("data") / "few", CLASSES, 6)
    asked = ("--images", 2, "--seconds", 0.05, "--batches", "1,2", "--threads", 1, "--quiet")
    return ("certify", "--model", tiny_model, "--data", data, *asked)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory, base: tuple[object, ...], eight_calls: None) -> Path:
    """A folder with a finished certification, its exports in `art`; not to be changed."""
    root = tmp_path_factory.mktemp("certified")
    ran = run_cli(*base, "--out", root / "out", "--artifacts", root / "art")
    assert ran.code == 0, (ran.out, ran.err)
    assert ran.out.startswith("certified: ")
    return root


@pytest.fixture
def certify(tmp_path: Path, certified: Path, base: tuple[object, ...]) -> Certify:
    """Certifies again, in a copy in which only the reference is done."""
    shutil.copytree(certified, tmp_path / "again")
    for file in (tmp_path / "again" / "out" / "steps").glob("[!r]*.json"):
        file.unlink()

    def run(*args: object) -> Ran:
        return run_cli(*base, "--out", tmp_path / "again" / "out", "--artifacts", tmp_path / "again" / "art", *args)

    return run


def found_in(root: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((root / "out" / "certify.json").read_text())
    return value


def test_every_step_of_a_cpu(certified: Path) -> None:
    found = found_in(certified)
    assert list(found["steps"]) == CPU_STEPS
    assert (found["passed"], found["complete"], found["failed"], found["to_do"]) == (True, True, [], [])
    assert found["machine"]["device"] == "cpu"
    assert found["seconds"] == 0.05
    assert str(certified) not in (certified / "out" / "certify.json").read_text()  # it may be published
    assert set(found["engines"]) == {"torch-fp32", "onnx-fp32"}
    for record in found["steps"].values():
        assert record["checks"], record["step"]


def test_figures_of_an_engine(certified: Path) -> None:
    found = found_in(certified)
    row = found["engines"]["onnx-fp32"]
    assert 0 < row["relative_l2"] <= 1e-4
    assert row["psnr_worst"] >= 50
    for figures in row["stages"].values():
        assert [point["batch"] for point in figures["sweep"]] == [1, 2]
        assert figures["batch"] in (1, 2)
        assert figures["seconds"] >= 0.05
        assert 0 < figures["busy_share"] <= 1
        assert figures["flops_per_second"] > 0
    unet, decode = (row["stages"][stage]["images_per_second"] for stage in ("unet", "decode"))
    assert row["generate"] == pytest.approx(1 / (found["calls"] / unet + 1 / decode))
    assert row["ratio"] == pytest.approx(row["generate"] / found["engines"]["torch-fp32"]["generate"])
    calls = found["steps"]["parity-onnx-fp32"]["figures"]["parity"]["unet"]
    assert found["calls"] == len({call["timestep"] for call in calls}) == 8


def test_exports_are_compared_on_as_many_images(certified: Path) -> None:
    (file,) = certified.rglob("certificate.json")
    found = json.loads(file.read_text())
    assert (found["images"]["count"], found["speed"]["batch"], found["revision"]) == (2, 2, None)


def test_what_is_done_is_not_done_again(certified: Path, base: tuple[object, ...]) -> None:
    before = {file: file.stat().st_mtime_ns for file in certified.rglob("steps/*.json")}
    args = (*base, "--out", certified / "out", "--artifacts", certified / "art")
    assert run_cli(*args).code == 0
    assert {file: file.stat().st_mtime_ns for file in certified.rglob("steps/*.json")} == before
    assert len(before) == len(CPU_STEPS)
    assert run_cli(*args, "--list", "--json").json["steps"] == dict.fromkeys(CPU_STEPS, "done")


def test_what_it_depends_on_makes_it_to_do(certified: Path, base: tuple[object, ...], finished: Any) -> None:
    """Other images: all of it; another duration: the timings; changed exports: what ran on them."""
    where = ("--out", certified / "out", "--artifacts", certified / "art", "--list", "--json")
    assert set(run_cli(*base, *where, "--images", 3).json["steps"].values()) == {"to do"}
    timed = run_cli(*base, *where, "--seconds", 1).json["steps"]
    assert {name for name, state in timed.items() if state == "to do"} == {n for n in CPU_STEPS if "speed" in n}
    elsewhere = run_cli(*base, *where[:2], "--artifacts", finished.artifacts, "--list", "--json").json["steps"]
    assert {name for name, state in elsewhere.items() if state == "to do"} == {n for n in CPU_STEPS if "onnx" in n}


def test_chosen_steps_and_what_they_need(certify: Certify, tmp_path: Path) -> None:
    ran = certify("--steps", "speed-torch-fp32-unet,parity-torch")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("certified so far")
    found = found_in(tmp_path / "again")
    assert list(found["steps"]) == ["reference", "parity-torch-fp32", "speed-torch-fp32-unet"]
    assert not found["complete"]
    refused(certify("--steps", "parity-cupy"), 2, "--steps parity-cupy: no such step")


FAULTS: list[tuple[Component, Fault]] = [
    ("unet", swapped_halves),
    ("unet", shifted_timestep),
    ("unet", permuted_batch),
    ("vae_encoder", permuted_batch),
    ("unet", stale_buffer),
    ("unet", overflow),
    ("unet", half),
    ("unet", Overwriting()),
]
HALF_FAULTS: list[tuple[Component, Fault]] = [
    ("unet", swapped_halves),
    ("unet", shifted_timestep),
    ("vae_decoder", permuted_batch),
    ("text_encoder", stale_buffer),
    ("vae_decoder", overflow),
    ("text_encoder", Overwriting()),
]


def open_mutant(monkeypatch: pytest.MonkeyPatch, engine: Engine, component: Component, fault: Fault) -> None:
    """Let the command find one engine here, with a fault."""

    def open_engine(_: Engine, request: Request) -> Networks:
        plain = open_networks(request.model.path, request.device, torch.float32)
        return mutate(plain, component, fault, engines.DTYPES[engine.precision])

    monkeypatch.setattr(engines, "engines_of", lambda _: [engine])
    monkeypatch.setattr(engines, "open_engine", open_engine)


@pytest.mark.parametrize(("component", "fault"), FAULTS)
def test_a_faulty_runtime_fails(
    certify: Certify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, component: Component, fault: Fault
) -> None:
    open_mutant(monkeypatch, Engine("torch", "fp32"), component, fault)
    ran = certify("--steps", "parity")
    assert ran.code == 1, ran.out
    found = found_in(tmp_path / "again")
    assert not found["passed"]
    assert all(problem.startswith("parity-torch-fp32: ") for problem in found["failed"])
    assert any(component in problem for problem in found["failed"])
    assert f"failed: {found['failed'][0]}" in ran.out


def fp32_for_fp16(runtime: Any, inputs: dict[str, torch.Tensor], last: object) -> dict[str, torch.Tensor]:
    """Passes by the runtime that would round, and says that it is fp16."""
    plain: dict[str, torch.Tensor] = runtime._runtime(inputs)
    return plain


def every_half_fault() -> Iterator[Any]:
    """Each fault in each half-precision engine; one of the two, in turn, in the normal suite."""
    for number, (component, fault) in enumerate([*HALF_FAULTS, ("unet", fp32_for_fp16)]):
        fast, slow = (TORCH_HALF, COMPILED_HALF) if number % 2 else (COMPILED_HALF, TORCH_HALF)
        yield pytest.param(component, fault, fast)
        yield pytest.param(component, fault, slow, marks=pytest.mark.slow)


@pytest.mark.parametrize(("component", "fault", "engine"), list(every_half_fault()))
def test_a_faulty_fp16_runtime_fails(
    certify: Certify,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    component: Component,
    fault: Fault,
    engine: Engine,
) -> None:
    """By the ceilings alone, and beside PyTorch's own half precision."""
    open_mutant(monkeypatch, engine, component, fault)
    assert certify("--steps", "parity").code == 1
    problems = found_in(tmp_path / "again")["failed"]
    assert all(problem.startswith(f"parity-{engine.name}: ") for problem in problems)
    assert any(component in problem for problem in problems)


@pytest.mark.parametrize("engine", [Engine("torch", "fp32"), TORCH_HALF, COMPILED_HALF])
def test_a_right_one_does_not(certify: Certify, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """Else the mutants would fail for being mutants."""
    open_mutant(monkeypatch, engine, "unet", correct)
    ran = certify("--steps", "parity")
    assert ran.code == 0, ran.out


@pytest.mark.parametrize("engine", [TORCH_HALF, COMPILED_HALF])
def test_pytorchs_half_itself_does_not(
    certify: Certify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, engine: Engine
) -> None:
    open_mutant(monkeypatch, engine, "unet", Exaggerated(tiny_model, "unet", 1.0))
    ran = certify("--steps", "parity")
    assert ran.code == 0, ran.out
    half = found_in(tmp_path / "again")["steps"][f"parity-{engine.name}"]["figures"]["half"]
    assert set(half) == set(COMPONENTS)
    # But for the order of sums, which threads decide on some processors.
    assert half["unet"]["ours"] == pytest.approx(half["unet"]["pytorch"], rel=1e-6)


@pytest.mark.parametrize("component", COMPONENTS)
def test_twice_the_error_of_pytorchs_half_fails(
    certify: Certify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, component: Component
) -> None:
    open_mutant(monkeypatch, COMPILED_HALF, component, Exaggerated(tiny_model, component, 2.0))
    assert certify("--steps", "parity").code == 1
    record = found_in(tmp_path / "again")["steps"]["parity-compiled-fp16"]
    half, problem = record["figures"]["half"], record["checks"][1]["detail"]
    assert half[component]["ours"] == pytest.approx(2 * half[component]["pytorch"], rel=0.01)
    assert f"{component}: relative L2" in problem
    assert "PyTorch's own half precision" in problem


@pytest.mark.parametrize("engine", [TORCH_HALF, COMPILED_HALF])
def test_an_error_beyond_the_ceiling_fails(
    certify: Certify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, engine: Engine
) -> None:
    """Of PyTorch's own half precision, too."""
    open_mutant(monkeypatch, engine, "vae_decoder", Exaggerated(tiny_model, "vae_decoder", 300.0))
    assert certify("--steps", "parity").code == 1
    assert ", the limit is 0.1;" in found_in(tmp_path / "again")["failed"][0]


def test_another_dtype_than_asked_for_fails(certify: Certify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_mutant(monkeypatch, Engine("torch", "fp32"), "unet", rounded)

    def open_engine(_: Engine, request: Request) -> Networks:
        plain = open_networks(request.model.path, request.device, torch.float32)
        return mutate(plain, "unet", correct, torch.float16)

    monkeypatch.setattr(engines, "open_engine", open_engine)
    assert certify("--steps", "parity").code == 1
    assert "tensors are fp32 (others: text_encoder" in found_in(tmp_path / "again")["failed"][0]


def test_what_changes_its_answers_under_load_fails(
    certify: Certify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_mutant(monkeypatch, Engine("torch", "fp32"), "vae_decoder", Drifting())
    assert certify("--steps", "speed-torch-fp32-decode", "--batches", 2).code == 1
    assert "answers under load as before" in found_in(tmp_path / "again")["failed"][0]


def test_a_step_that_breaks_is_recorded_and_repeated(
    certify: Certify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = engines.open_engine

    def broken(engine: Engine, request: Request) -> Networks:
        if engine.kind == "onnx":
            raise ModelError("no driver for it\nand more")
        return right(engine, request)

    with monkeypatch.context() as patch:
        patch.setattr(engines, "open_engine", broken)
        ran = certify("--steps", "parity")
    assert ran.code == 1
    assert "failed: parity-onnx-fp32: it runs (ModelError: no driver for it)" in ran.out
    assert found_in(tmp_path / "again")["steps"]["parity-torch-fp32"]["passed"]
    assert certify("--steps", "parity").code == 0


def test_an_exported_byte_that_flipped_is_not_run(certified: Path, base: tuple[object, ...], tmp_path: Path) -> None:
    shutil.copytree(certified / "art", tmp_path / "art")
    (file,) = (tmp_path / "art").rglob("vae_decoder.onnx")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    config = CertifyConfig(str(base[2]), str(base[4]), images=2)
    asked = prepare_certification(config, tmp_path / "art", tmp_path / "out")
    with pytest.raises(DamageError, match="not those that were certified"):
        engines.open_engine(Engine("onnx", "fp32"), asked)


def test_the_cpu_is_asked_once(certified: Path, base: tuple[object, ...]) -> None:
    """What `reference` wrote answers every question of `parity`."""
    config = CertifyConfig(str(base[2]), str(base[4]), images=2, threads=1)
    asked = prepare_certification(config, certified / "art", certified / "out")
    kept = read_reference(asked)

    def closed(component: Component) -> Runtime:
        memo = kept.networks.runtime(component)
        assert isinstance(memo, Memo)
        return Memo(component, memo._answers, lambda: pytest.fail("asked again"))

    again = Reference(kept.probe, kept.networks.with_runtimes(closed))
    engine = Engine("torch", "fp32")
    assert agree(engine, engines.open_engine(engine, asked), again, asked).checks[1].passed


def test_a_changed_reference_is_refused(certified: Path, base: tuple[object, ...], tmp_path: Path) -> None:
    out = Path(shutil.copytree(certified / "out", tmp_path / "out"))
    asked = prepare_certification(
        CertifyConfig(str(base[2]), str(base[4]), images=2, threads=1), certified / "art", out
    )
    data = bytearray((out / reference.FILE).read_bytes())
    data[-1] ^= 1
    (out / reference.FILE).write_bytes(data)
    with pytest.raises(DamageError, match=r"reference\.safetensors: damaged"):
        read_reference(asked)
    (out / reference.SEAL).unlink()
    with pytest.raises(ModelError, match="the step 'reference' makes it"):
        read_reference(asked)


def test_a_missing_extra_is_said(certify: Certify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ran = certify("--steps", "reference")
    assert ran.code == 0, ran.err
    assert "not here: onnx-fp32: --engine onnx needs ONNX Runtime: pip install 'd4m-fast[cpu]'" in ran.out
    assert list(found_in(tmp_path / "again")["not_here"]) == ["onnx-fp32"]


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    refused(run_cli("certify", "--batches", "1,x"), 2, "--batches 1,x")
    refused(run_cli("certify", "--seconds", 0), 2, "--seconds must be above 0")
    refused(run_cli("certify", "--model", "nowhere"), 1, "no such model directory")
    refused(run_cli("certify", "--into", tmp_path / "x"), 2, "--into is for --render")


@pytest.mark.parametrize("passed", [True, False])
def test_kernels_are_judged(monkeypatch: pytest.MonkeyPatch, passed: bool) -> None:
    """With a stand-in for the self-check, which needs a GPU."""
    fake = types.ModuleType("d4m_fast.kernels.selfcheck")
    checks = [{"name": "assign", "passed": True, "error": 0.0}, {"name": "update", "passed": passed, "error": 1e-3}]
    monkeypatch.setattr(fake, "selfcheck", lambda *, gpu: {"checks": checks}, raising=False)
    monkeypatch.setitem(sys.modules, "d4m_fast.kernels.selfcheck", fake)
    monkeypatch.setattr("d4m_fast.measure.kernels.time_kernels", lambda gpu: [gpu])
    found = steps.kernels(torch.device("cuda:1"))
    assert [check.passed for check in found.checks] == [True, True, passed]
    assert found.figures == {"timings": [1]}


@pytest.mark.parametrize(
    ("rates", "tried"),
    [((10, 8, 20, 30, 30, 30, 30), 6), ((10, 20, 20, 20, 99), 4), ((10, None, 20), 2)],
)
def test_a_sweep_ends_at_the_second_batch_that_does_not_pay(
    monkeypatch: pytest.MonkeyPatch, rates: tuple[float | None, ...], tried: int
) -> None:
    """Or at the first that does not fit."""
    batches = tuple(2**i for i in range(len(rates)))
    seconds = {b: None if rate is None else b / rate for b, rate in zip(batches, rates, strict=True)}
    monkeypatch.setattr(speed, "_candidate_batches", lambda *_: batches)
    monkeypatch.setattr(speed, "make_call", lambda *_: None)
    monkeypatch.setattr(speed, "_time_batch", lambda _, batch, __: Point(batch, seconds[batch]))
    asked = types.SimpleNamespace(config=types.SimpleNamespace(sizes=None))
    points = speed.sweep_batches("unet", cast(Any, None), cast(Any, asked), compiled=False)
    assert [point.batch for point in points] == list(batches[:tried])
