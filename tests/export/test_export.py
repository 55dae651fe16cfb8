"""`d4m-fast export` of a tiny model, and runs on what it writes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from driving import CLASSES, Finished, Ran, refused, run_cli, write_photos
from PIL import Image

from d4m_fast.config.export import ExportConfig
from d4m_fast.engine.artifacts import catalogue
from d4m_fast.engine.model import open_model
from d4m_fast.engine.ort import open_ort
from d4m_fast.engine.signature import COMPONENTS, SIGNATURES, Component
from d4m_fast.errors import ModelError
from d4m_fast.export import comparison
from d4m_fast.export.job import exported as whole
from d4m_fast.export.job import prepare_export
from d4m_fast.export.limits import HALF_RATIO, LARGEST_ACTIVATION, LIMITS, Limits
from d4m_fast.export.to_onnx import export_onnx
from d4m_fast.storage.state import CERTIFICATE, require_state, write_state

Change = Callable[[Callable[[dict[str, Any]], object]], None]
FEW = ("--images", 4)  # to compare on; `exported` compares on as many as the command does by default


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough photographs for 32 prototypes."""
    return write_photos(tmp_path_factory.mktemp("data") / "many", CLASSES, 12)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, many: Path) -> Path:
    """An artifacts directory with the tiny model's export; not to be changed."""
    artifacts = tmp_path_factory.mktemp("exported")
    ran = run_cli("export", "--model", tiny_model, "--data", many, "--artifacts", artifacts, "--threads", 1, "--quiet")
    assert ran.code == 0, ran.err
    return artifacts


@pytest.fixture
def artifacts(tmp_path: Path, exported: Path) -> Path:
    """A copy that may be changed, where `distill` of conftest.py looks."""
    return Path(shutil.copytree(exported, tmp_path / "art"))


@pytest.fixture
def change(artifacts: Path) -> Change:
    """Edit the certificate."""

    def edit(how: Callable[[dict[str, Any]], object]) -> None:
        (file,) = artifacts.rglob("certificate.json")
        certificate = require_state(file, CERTIFICATE)
        how(certificate)
        write_state(file, CERTIFICATE, certificate)

    return edit


def certificate_of(artifacts: Path) -> dict[str, Any]:
    (file,) = artifacts.rglob("certificate.json")
    certificate: dict[str, Any] = json.loads(file.read_text())
    return certificate


def pixels(run: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(run.glob("images/*/*.png"))]).astype(int)


def test_the_certificate_says_what_was_compared(exported: Path) -> None:
    found = certificate_of(exported)
    assert (found["status"], found["reasons"]) == ("certified", [])
    assert found["images"]["count"] == 32
    assert found["images"]["psnr_worst"] >= LIMITS["fp32"].psnr
    for component in COMPONENTS:
        calls = found["components"][component]["parity"]
        assert {1, 2, 7} < {call["batch"] for call in calls}
        assert 0 < max(call["relative_l2"] for call in calls) <= LIMITS["fp32"].relative_l2
    steps = {call["timestep"] for call in found["components"]["unet"]["parity"]}
    assert steps == set(range(1, 702, 20))
    assert max(call["batch"] for call in found["components"]["unet"]["parity"]) == 50
    assert found["versions"] == {"onnxruntime": onnxruntime.__version__}
    assert found["speed"]["ratio"] > 0


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_batch_is_free_and_the_rest_is_fixed(exported: Path, tiny_model: Path, component: Component) -> None:
    (file,) = exported.rglob(f"{component}.onnx")
    model = onnx.load(file)
    signature, sizes = SIGNATURES[component], open_model(str(tiny_model)).sizes(16)
    context = certificate_of(exported)["components"][component].get("context", [])
    prompts = {"hidden_states"} if context else set()
    assert [x.name for x in model.graph.input] == [n for n in signature.inputs if n not in prompts] + context
    assert [x.name for x in model.graph.output] == list(signature.outputs)
    for value in (x for x in (*model.graph.input, *model.graph.output) if x.name not in context):
        lengths = [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
        assert tuple(lengths) == signature.shape(value.name, sizes, -1)
    assert model.graph.name == component
    assert {p.key for p in model.metadata_props} >= {"model_sha256", "resolution", "version torch"}
    assert model.opset_import[0].version == certificate_of(exported)["components"][component]["opset"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_nothing_of_this_machine_is_in_the_files(exported: Path, component: Component) -> None:
    content = b"".join(file.read_bytes() for file in exported.rglob(f"{component}*.onnx"))
    assert len(content) > 10_000
    assert b".py" not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_a_static_batch_is_in_the_graph(tmp_path: Path, tiny_model: Path) -> None:
    sizes = open_model(str(tiny_model)).sizes(16)
    file = tmp_path / "decoder.onnx"
    report = export_onnx(tiny_model, "vae_decoder", file, sizes=sizes, opset=20, static_batch=5, metadata={})
    assert onnx.load(file).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 5
    assert report.operators["Conv"] > 5


def test_weights_above_the_limit_go_to_a_file_of_their_own(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d4m_fast.export.onnx_files.EXTERNAL_BYTES", 1000)
    sizes = open_model(str(tiny_model)).sizes(16)
    file = tmp_path / "decoder.onnx"
    export_onnx(tiny_model, "vae_decoder", file, sizes=sizes, opset=20, metadata={})
    assert (tmp_path / "decoder.onnx.data").stat().st_size > 10_000
    onnx.checker.check_model(str(file))


def test_images_of_both_engines_are_equal(
    artifacts: Path, finished: Finished, distill: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = distill("--engine", "onnx")
    assert ran.code == 0, ran.err
    assert "engine: onnx, certified" in ran.err
    assert np.abs(pixels(tmp_path / "run") - pixels(finished.run)).max() <= 1
    assert "artifact_sha256" in json.loads((tmp_path / "run" / "config.json").read_text())


@pytest.mark.parametrize(("speed", "engine"), [(1.2, "onnx"), (0.8, "torch")])
def test_auto_takes_the_faster_and_says_so(
    change: Change, distill: Callable[..., Ran], speed: float, engine: str
) -> None:
    change(lambda c: c["speed"].update(ratio=speed))
    ran = distill()
    assert f"engine: {engine}" in ran.err
    assert f"{speed:.2f} times PyTorch's" in ran.err


def test_a_run_that_was_begun_keeps_its_engine(exported: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    assert "engine: torch" in distill().err
    shutil.copytree(exported, tmp_path / "art", dirs_exist_ok=True)
    ran = distill()
    assert ran.code == 0, ran.err
    assert "engine: torch" in ran.err
    refused(distill("--engine", "onnx"), 4, "engine")


def test_a_flipped_byte_is_caught(artifacts: Path, distill: Callable[..., Ran]) -> None:
    (file,) = artifacts.rglob("unet.onnx")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused(distill("--engine", "onnx"), 5, "not those that were certified", "d4m-fast export again")
    ran = distill("--engine", "auto")
    assert ran.code == 0
    assert "engine: torch; the onnx export cannot be used" in ran.err


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda c: c["versions"].update(onnxruntime="1.0"), "certified with onnxruntime 1.0"),
        (lambda c: c.update(model_sha256="0"), "made from another model"),
        (lambda c: c.update(status="rejected"), "rejected"),
    ],
)
def test_what_the_certificate_does_not_cover_is_refused(
    change: Change, distill: Callable[..., Ran], how: Callable[[dict[str, Any]], object], said: str
) -> None:
    change(how)
    refused(distill("--engine", "onnx"), 1, said, "d4m-fast export again")


def test_another_device_is_refused(artifacts: Path, tiny_model: Path) -> None:
    (found,) = catalogue(artifacts)
    with pytest.raises(ModelError, match="certified on cpu, this is NVIDIA A100"):
        found.check(open_model(str(tiny_model)).sha256, "NVIDIA A100 (sm80)")


def test_a_certified_set_is_left_alone_and_a_damaged_one_is_not(artifacts: Path, tiny_model: Path, many: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in artifacts.rglob("*.onnx")}
    args = ("--model", tiny_model, "--data", many, "--artifacts", artifacts, "--threads", 1)
    ran = run_cli("export", *args)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("certified")
    assert {file: file.stat().st_mtime_ns for file in artifacts.rglob("*.onnx")} == before
    job = prepare_export(ExportConfig(str(tiny_model), str(many)), artifacts)
    assert whole(job) is not None
    job.path.joinpath("unet.onnx").write_bytes(b"")
    assert whole(job) is None


def test_a_class_without_images(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "photos" / "empty").mkdir(parents=True)
    write_photos(tmp_path / "photos", ("full",), 40)
    ran = run_cli("export", "--model", tiny_model, "--data", tmp_path / "photos", "--artifacts", tmp_path / "art")
    refused(ran, 1, "empty")


def test_something_else_in_place_of_a_certificate(artifacts: Path, distill: Callable[..., Ran]) -> None:
    (file,) = artifacts.rglob("certificate.json")
    file.write_text("{}")
    refused(distill("--engine", "onnx"), 5, "certificate.json: damaged")


def test_no_export_is_one_line(distill: Callable[..., Ran]) -> None:
    refused(distill("--engine", "onnx"), 1, "run d4m-fast export first")


def test_list(exported: Path, tmp_path: Path) -> None:
    (row,) = run_cli("export", "--list", "--json", "--artifacts", exported).json["artifacts"]
    assert (row["status"], row["precision"], row["static_batch"]) == ("certified", "fp32", None)
    assert row["bytes"] == sum(file.stat().st_size for file in exported.rglob("*.onnx*"))
    assert "certified" in run_cli("export", "--list", "--artifacts", exported).out
    assert "nothing exported" in run_cli("export", "--list", "--artifacts", tmp_path).out


def test_an_export_that_is_too_far_off_is_kept_as_rejected(
    tmp_path: Path, tiny_model: Path, many: Path, monkeypatch: pytest.MonkeyPatch, distill: Callable[..., Ran]
) -> None:
    monkeypatch.setattr(comparison, "LIMITS", {"fp32": Limits(0.0, 1e-12, 1.0, 0.0)})
    art = tmp_path / "art"
    args = ("--model", tiny_model, "--data", many, "--artifacts", art, *FEW, "--quiet")
    ran = run_cli("export", *args, "--static-batch", 4)
    refused(ran, 1, ".rejected", "relative L2", "the limit is 1e-12")
    assert certificate_of(art)["status"] == "rejected"
    assert len(list(art.glob("engines/*/*.rejected/*.onnx"))) == 4
    assert run_cli("export", "--list", "--json", "--artifacts", art).json["artifacts"][0]["status"] == "rejected"
    refused(distill("--engine", "onnx"), 1, "not exported")


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_extra_names_the_install(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    ran = run_cli("export", "--model", tiny_model, "--artifacts", tmp_path / "art")
    refused(ran, 6, "pip install 'd4m-fast[cpu]'")
    assert not (tmp_path / "art").exists()


def test_fp16_is_compared_by_its_rounded_graph_and_unverified(tmp_path: Path, tiny_model: Path, many: Path) -> None:
    art = tmp_path / "art"
    args = ("--model", tiny_model, "--data", many, "--artifacts", art, *FEW, "--threads", 1, "--quiet")
    ran = run_cli("export", *args, "--precision", "fp16")
    assert ran.code == 0, ran.err
    found = certificate_of(art)
    assert (found["status"], found["speed"]) == ("unverified", None)
    assert "every fp16 value rounded" in found["compared"]
    for component in COMPONENTS:
        part = found["components"][component]
        assert 1e-5 < max(call["relative_l2"] for call in part["parity"]) <= 3e-3
        assert found["half"][component]["ours"] <= HALF_RATIO * found["half"][component]["pytorch"]
        assert 0 < part["mixed"]["largest_fp16_activation"] < LARGEST_ACTIVATION
    assert not [file for file in art.rglob("*") if file.name.startswith((".fp32", ".rounded"))]
    again = run_cli("export", *args, "--precision", "fp16", "--certify")
    assert (again.code, "unverified" in again.out) == (0, True)
    (artifact,) = catalogue(art)
    with pytest.raises(ModelError, match=r"unverified, so it is not run.*export --certify"):
        artifact.check(open_model(str(tiny_model)).sha256, "cpu")


def test_a_fixed_batch_is_run_by_distill(
    tmp_path: Path, tiny_model: Path, many: Path, finished: Finished, distill: Callable[..., Ran]
) -> None:
    args = ("--model", tiny_model, "--data", many, "--artifacts", tmp_path / "art", *FEW, "--quiet")
    assert run_cli("export", *args, "--static-batch", 4).code == 0
    ran = distill("--engine", "onnx")
    assert ran.code == 0, ran.err
    assert np.abs(pixels(tmp_path / "run") - pixels(finished.run)).max() <= 1


def test_too_few_images_to_compare_on(tmp_path: Path, tiny_model: Path, photos: Path) -> None:
    ran = run_cli("export", "--model", tiny_model, "--data", photos, "--artifacts", tmp_path / "art", "--quiet")
    refused(ran, 1, "class apple: 6 usable images, 11 are needed")
    assert not list((tmp_path / "art").rglob("certificate.json"))


def test_a_file_that_is_no_model(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "unet.onnx").write_bytes(b"nothing")
    sizes = open_model(str(tiny_model)).sizes(16)
    with pytest.raises(ModelError, match="cannot open it"):
        open_ort(tmp_path / "unet.onnx", "unet", sizes, torch.device("cpu"), threads=1)


def test_a_file_of_another_component(exported: Path, tiny_model: Path) -> None:
    (file,) = exported.rglob("vae_decoder.onnx")
    sizes = open_model(str(tiny_model)).sizes(16)
    with pytest.raises(ModelError, match="not a unet's"):
        open_ort(file, "unet", sizes, torch.device("cpu"), threads=1)
