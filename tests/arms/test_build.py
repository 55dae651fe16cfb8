"""The arms of a real run of two of the bundled classes, and of one whose images are resized at every step."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from driving import Finished, json_lines, run_cli
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import avg_pool2d

from d4m_fast.arms.build import ArmBuilder
from d4m_fast.arms.names import ARMS
from d4m_fast.engine.model import locate
from d4m_fast.errors import DamageError, DataError, ModelError, OutOfMemoryError, UsageError
from d4m_fast.evaluation.images import ImageSet, match_classes
from d4m_fast.runs.prototypes import read_prototypes
from d4m_fast.sources.dataset import open_source, subset
from d4m_fast.sources.records import Item, Source

CPU = torch.device("cpu")
BUDGETED = [name for name, arm in ARMS.items() if arm.has_budget]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trousers and bags, two each, from few steps; not to be changed."""
    folder = tmp_path_factory.mktemp("arms")
    options = ("--classes", "1,8", "--ipc", 2, "--steps", 5, "--batch-size", 4, "--artifacts", folder / "cache")
    assert run_cli("distill", *options, "--out", folder / "run", "--quiet").code == 0
    return folder / "run"


def small(images: torch.Tensor) -> torch.Tensor:
    """Grey pictures of few pixels, in place of a teacher's features."""
    return avg_pool2d(images.double().mean(1), 8).flatten(1)


def builder_of(run: Path, train: str = "bundled", size: int = 32, **changes: Any) -> ArmBuilder:
    distilled = open_source(str(run), prompts_needed=False)
    source = open_source(train, prompts_needed=False)
    builder = ArmBuilder(run, distilled, source, match_classes(distilled, source), size, CPU, small)
    return replace(builder, **changes)


@pytest.fixture(scope="module")
def builder(run: Path) -> ArmBuilder:
    return builder_of(run)


def images_of(source: Source, items: list[Item]) -> torch.Tensor:
    """Images as they are in the source."""
    return torch.from_numpy(np.stack([np.asarray(source.read(item)) for item in items])).permute(0, 3, 1, 2)


def nearest_items(run: Path, source: Source) -> list[Item]:
    """The images that the manifest names, by folder and index."""
    rows = sorted(json_lines(run / "manifest.jsonl"), key=lambda row: (row["class_id"], row["index"]))
    by_name = {(item.class_id, item.origin): item for item in source.items}
    return [by_name[row["class_id"], row["nearest"]] for row in rows]


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def diffusers_vae(model: str) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(locate(model).path / "vae").eval()


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, S, S) uint8 through diffusers' own encoder and decoder."""
    return to_bytes(vae.decode(vae.encode(images / 127.5 - 1).latent_dist.mean).sample)


@torch.inference_mode()
def decode_stored(vae: AutoencoderKL, run: Path) -> torch.Tensor:
    latents = torch.cat([load_file(file)["centroids"] for file in sorted((run / "prototypes").iterdir())])
    return to_bytes(vae.decode(latents / vae.config.scaling_factor).sample)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for what falls on the other side of a rounding."""
    differences = (found.int() - expected.int()).abs()
    return found.shape == expected.shape and int(differences.max()) <= 1 and float(differences.float().mean()) < 0.01


@pytest.mark.parametrize("name", BUDGETED)
def test_every_arm_has_the_same_budget_and_balance(builder: ArmBuilder, name: str) -> None:
    arm = builder.build(name)
    assert arm.images.shape == (4, 3, 32, 32)
    assert arm.images.dtype == torch.uint8
    assert arm.labels.tolist() == [1, 1, 8, 8]
    assert len(set(arm.origins)) == 4
    assert len(set(arm.hashes())) == 4


def test_distilled_images_are_those_of_the_files(run: Path, builder: ArmBuilder) -> None:
    files = [run / "images" / name for name in ("1/00000.png", "1/00001.png", "8/00000.png", "8/00001.png")]
    expected = np.stack([np.asarray(Image.open(file)) for file in files])
    assert np.array_equal(builder.build("distilled").images.permute(0, 2, 3, 1).numpy(), expected)


def test_whole_is_every_image_of_the_runs_classes(builder: ArmBuilder) -> None:
    items = [item for item in builder.train.items if item.class_id in (1, 8)]
    whole = builder.build("whole")
    assert Counter(whole.labels.tolist()) == Counter(item.class_id for item in items)
    assert set(whole.origins) == {item.origin for item in items}


def test_random_is_repeated_by_its_draw_and_differs_from_others(builder: ArmBuilder) -> None:
    first, again, other = builder.build("random", 3), builder.build("random", 3), builder.build("random", 4)
    assert torch.equal(first.images, again.images)
    assert first.origins == again.origins != other.origins
    by_origin = {item.origin: item for item in builder.train.items}
    assert torch.equal(first.images, images_of(builder.train, [by_origin[origin] for origin in first.origins]))


def test_medoids_are_the_manifests_nearest_images_byte_for_byte(run: Path, builder: ArmBuilder) -> None:
    assert torch.equal(builder.build("medoid").images, images_of(builder.train, nearest_items(run, builder.train)))


def test_through_the_vae_is_what_diffusers_makes_of_the_same_images(builder: ArmBuilder) -> None:
    vae = diffusers_vae("bundled")
    for name in ("random", "medoid"):
        plain, through = builder.build(name, 2), builder.build(f"{name}-vae", 2)
        assert plain.origins == through.origins
        assert close(through.images, reconstruct(vae, plain.images))
        assert not close(through.images, plain.images)


def test_decoded_is_what_diffusers_decodes_of_the_stored_prototypes(run: Path, builder: ArmBuilder) -> None:
    decoded = builder.build("decoded")
    assert close(decoded.images, decode_stored(diffusers_vae("bundled"), run))
    assert torch.equal(decoded.images, builder.build("decoded").images)


@pytest.fixture(scope="module")
def resized_run(tmp_path_factory: pytest.TempPathFactory, options: tuple[object, ...]) -> Path:
    """Photographs of 20 x 18 pixels and more, encoded and decoded at 32, written at 24; evaluated at 20."""
    folder = tmp_path_factory.mktemp("resized")
    sizes = ("--resolution", 32, "--image-size", 24)
    ran = run_cli("distill", *options, *sizes, "--out", folder / "run", "--artifacts", folder / "art", "--quiet")
    assert ran.code == 0, ran.err
    return folder / "run"


def pillow_resized(images: torch.Tensor, side: int) -> torch.Tensor:
    rows = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    resized = [np.asarray(row.resize((side, side), Image.Resampling.BICUBIC)) for row in rows]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def test_images_of_other_sizes_go_the_way_of_the_runs_own(resized_run: Path, photos: Path, tiny_model: Path) -> None:
    builder = builder_of(resized_run, str(photos), size=20)
    vae = diffusers_vae(str(tiny_model))
    squares = []
    for item in nearest_items(resized_run, builder.train):
        squares.append(np.asarray(builder.train.read(item).resize((32, 32), Image.Resampling.BILINEAR)))
    through = reconstruct(vae, torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))
    decoded = decode_stored(vae, resized_run)
    assert close(builder.build("medoid-vae").images, pillow_resized(pillow_resized(through, 24), 20))
    assert close(builder.build("decoded").images, pillow_resized(pillow_resized(decoded, 24), 20))


class Scarce:
    """A runtime that has the memory for one row."""

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.device, self.dtype = runtime, runtime.device, runtime.dtype
        self.rows: list[int] = []

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        (x,) = inputs.values()
        self.rows.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        outputs: dict[str, torch.Tensor] = self.runtime(inputs)
        return outputs


def test_batches_are_halved_where_memory_runs_out(run: Path) -> None:
    plenty, scarce = builder_of(run), builder_of(run)
    encoder, decoder = Scarce(scarce._vae.encoder.runtime), Scarce(scarce._vae.decoder.runtime)
    vae = scarce._vae
    halving = replace(
        vae,
        encoder=replace(vae.encoder, runtime=encoder),
        decoder=replace(vae.decoder, runtime=decoder),
        encode_batch=4,
    )
    scarce.__dict__["_vae"] = halving
    assert close(scarce.build("medoid-vae").images, plenty.build("medoid-vae").images)
    assert encoder.rows == decoder.rows == [4, 2, 1, 1, 1, 1]


def test_one_image_that_does_not_fit_is_said_to(run: Path) -> None:
    builder = builder_of(run)

    def nothing_fits(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    decoder = replace(builder._vae.decoder, runtime=nothing_fits)  # type: ignore[arg-type]
    decoder.runtime.device = CPU  # type: ignore[misc]
    builder.__dict__["_vae"] = replace(builder._vae, decoder=decoder)
    with pytest.raises(OutOfMemoryError, match="not even one image fits"):
        builder.build("decoded")


@pytest.mark.parametrize("method", ["herding", "kcenter"])
def test_a_coreset_is_the_real_images_its_method_chooses_of_each_class(builder: ArmBuilder, method: Any) -> None:
    """Both images of each class are searched for with NumPy."""
    chosen = replace(builder, coreset=method).build("coreset")
    for label, first in ((1, 0), (8, 2)):
        items = [item for item in builder.train.items if item.class_id == label]
        x = small(images_of(builder.train, items)).numpy()
        x = x / np.linalg.norm(x, axis=1, keepdims=True) if method == "herding" else x
        nearest = np.linalg.norm(x - x.mean(0), axis=1).argmin()
        assert chosen.origins[first] == items[nearest].origin
        second = [item.origin for item in items].index(chosen.origins[first + 1])
        pairs = np.linalg.norm(x.mean(0) - (x + x[nearest]) / 2, axis=1)
        expected = pairs.argmin() if method == "herding" else np.linalg.norm(x - x[nearest], axis=1).argmax()
        assert second == expected


def test_a_part_of_the_classes_is_a_part_of_every_arm(builder: ArmBuilder) -> None:
    distilled = subset(builder.distilled, "8")
    part = replace(builder, distilled=distilled, test_ids=match_classes(distilled, builder.train))
    for name in BUDGETED:
        whole, piece = builder.build(name), part.build(name)
        assert piece.labels.tolist() == [8, 8]
        assert piece.origins == whole.origins[2:]
        assert close(piece.images, whole.images[2:])


def test_labels_are_the_test_sets_whatever_its_order(builder: ArmBuilder) -> None:
    turned = {class_id: 20 - label for class_id, label in builder.test_ids.items()}
    for name in BUDGETED:
        ours, theirs = builder.build(name), replace(builder, test_ids=turned).build(name)
        assert theirs.labels.tolist() == [12, 12, 19, 19]
        assert theirs.origins == (*ours.origins[2:], *ours.origins[:2])


def write_folder(images: ImageSet, root: Path) -> Path:
    for row, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / str(label) / f"{row:03}.png")
    return root


def test_another_methods_folder_is_an_arm(builder: ArmBuilder, tmp_path: Path) -> None:
    theirs = builder.build("random", 7)
    folder = write_folder(theirs, tmp_path / "theirs")
    shutil.copytree(folder / "1", folder / "0")  # a class that the run has not
    arm = replace(builder, folders={"theirs": folder}).build("theirs")
    assert torch.equal(arm.images, theirs.images)
    assert arm.labels.tolist() == [1, 1, 8, 8]


def test_a_folder_of_another_budget_or_other_classes_is_refused(builder: ArmBuilder, tmp_path: Path) -> None:
    folder = write_folder(builder.build("random"), tmp_path / "theirs")
    theirs = replace(builder, folders={"theirs": folder})
    theirs.require(["theirs"])
    for file in folder.glob("*/*"):
        shutil.copy(file, file.with_name(f"more-{file.name}"))
    with pytest.raises(DataError, match="4 images per class, the run has 2"):
        theirs.require(["theirs"])
    shutil.rmtree(folder / "8")
    with pytest.raises(DataError, match="no class '8'"):
        theirs.require(["random", "theirs"])


def test_another_methods_set_has_the_arms_that_need_no_records(run: Path, tmp_path: Path) -> None:
    builder = builder_of(shutil.copytree(run / "images", tmp_path / "theirs"))
    plain = [name for name, arm in ARMS.items() if "records" not in arm.needs]
    builder.require(plain)
    assert {len(builder.build(name)) for name in plain if ARMS[name].has_budget} == {4}
    with pytest.raises(UsageError, match=r"no run of d4m-fast.*: medoid, decoded; leave them out"):
        builder.require(["random", "medoid", "decoded"])
    with pytest.raises(UsageError, match="no run of d4m-fast"):
        builder.build("random-vae")


def test_arms_that_are_not_there_and_a_coreset_without_teacher_are_refused(builder: ArmBuilder) -> None:
    with pytest.raises(UsageError, match="no arm 'x'"):
        builder.require(["random", "x"])
    with pytest.raises(UsageError, match="no arm 'x'"):
        builder.build("x")
    with pytest.raises(UsageError, match="coreset: chosen by a teacher's features"):
        replace(builder, features=None).build("coreset")


def test_a_medoid_that_is_gone_is_named(finished: Finished, photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    builder_of(finished.run, str(data)).require(["medoid"])  # a copy elsewhere is the same data
    origin = min(row["nearest"] for row in json_lines(finished.run / "manifest.jsonl"))
    (data / origin).unlink()
    with pytest.raises(DataError, match=f"{origin}: nearest to a prototype of class 'apple'"):
        builder_of(finished.run, str(data)).require(["medoid"])


def test_other_data_of_the_same_names_are_refused(finished: Finished, photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    Image.new("RGB", (20, 20)).save(data / "apple" / "0.png")
    with pytest.raises(DataError, match="not those that the run was made from"):
        builder_of(finished.run, str(data)).build("medoid-vae")


def test_a_damaged_real_image_is_named(finished: Finished, photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    for file in (data / "bread").iterdir():
        file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(DataError, match=r"bread/.*remove the image"):
        builder_of(finished.run, str(data)).build("random-vae")


def test_damaged_records_are_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / "prototypes" / "00008.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamageError, match=r"00008.safetensors: damaged .*d4m-fast verify"):
        builder_of(copy).build("decoded")
    file.unlink()
    with pytest.raises(DamageError, match="No such file"):
        builder_of(copy).build("decoded")
    (copy / "groups" / "00000.json").unlink()
    with pytest.raises(DamageError, match=r"00000.json: damaged \(it is missing\)"):
        builder_of(copy).require(["medoid"])


def test_images_that_were_taken_away_are_noticed(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    for file in copy.glob("images/*/00001.png"):
        file.unlink()
    with pytest.raises(DataError, match="2 prototypes of class '1' and 1 images"):
        builder_of(copy).require(["medoid"])


def test_another_model_of_the_same_name_is_refused(resized_run: Path, photos: Path, tiny_model: Path) -> None:
    config = tiny_model / "vae" / "config.json"
    text = config.read_text()
    config.write_text(json.dumps({**json.loads(text), "scaling_factor": 0.5}))
    try:
        with pytest.raises(ModelError, match="not the model that"):
            builder_of(resized_run, str(photos)).require(["random", "decoded"])
    finally:
        config.write_text(text)


def test_the_prototypes_of_a_run_are_read_by_the_names_of_its_folders(run: Path) -> None:
    prototypes = read_prototypes(run)
    assert list(prototypes.by_folder) == ["1", "8"]
    assert prototypes.by_folder["8"].centroids().shape == (2, 4, 8, 8)
    assert prototypes.options["ipc"] == 2
