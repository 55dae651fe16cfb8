"""Which weight files are loaded: what the libraries themselves load, whose `save_pretrained` makes every file here."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from driving import Ran, products, refused
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from d4m_fast.engine.model import open_model
from d4m_fast.engine.weights import HALF, WEIGHTS, choose_weights
from d4m_fast.errors import ModelError

Layout = tuple[tuple[str | None, bool], ...]
Save = Callable[..., Path]
CLASSES: dict[str, Any] = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
PARTS = tuple(CLASSES)
SHARD = {"unet": "40KB", "text_encoder": "8KB"}
SINGLE, SHARDED, HALF_SINGLE, HALF_SHARDED = (None, False), (None, True), (HALF, False), (HALF, True)
UNET = "diffusion_pytorch_model"


@pytest.fixture(scope="session")
def saved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str | None, bool], Path]:
    """Save a part as its library does, in one file or in shards; not to be changed."""

    @cache
    def save(part: str, variant: str | None, sharded: bool) -> Path:
        module = CLASSES[part].from_pretrained(tiny_model / part)
        folder = tmp_path_factory.mktemp("saved") / part
        module = module.half() if variant == HALF else module
        module.save_pretrained(folder, variant=variant, max_shard_size=SHARD[part] if sharded else "5GB")
        return folder

    return save


@pytest.fixture
def lay(saved: Callable[[str, str | None, bool], Path], tmp_path: Path) -> Save:
    """Put several ways of saving a part into one folder."""

    def lay(part: str, *layout: tuple[str | None, bool]) -> Path:
        for variant, sharded in layout:
            shutil.copytree(saved(part, variant, sharded), tmp_path / part, dirs_exist_ok=True)
        return tmp_path / part

    return lay


def state(part: str, folder: Path, variant: str | None) -> dict[str, torch.Tensor]:
    """What the library loads."""
    module = CLASSES[part].from_pretrained(folder, variant=variant, use_safetensors=True, dtype=torch.float32)
    return dict(module.state_dict())


def content(files: tuple[Path, ...]) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for file in files for name, tensor in load_file(file).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def change(file: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def raise_values(tensors: dict[str, torch.Tensor]) -> None:
    tensors[min(tensors)] += 1


def raise_the_last_value(tensors: dict[str, torch.Tensor]) -> None:
    """Beyond what is compared."""
    largest = max(tensors.values(), key=torch.Tensor.numel)
    largest.view(-1)[-1] += 1


def shards(folder: Path, stem: str) -> list[Path]:
    files = sorted(folder.glob(f"{stem}*-of-*.safetensors"))
    assert len(files) > 1
    return files


def refusal(folder: Path, stem: str = UNET) -> str:
    with pytest.raises(ModelError) as raised:
        choose_weights(folder, stem)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


# Sets that are whole


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("layout", "variant"),
    [
        ((SINGLE,), None),
        ((SHARDED,), None),
        ((HALF_SINGLE,), HALF),
        ((HALF_SHARDED,), HALF),
        ((SHARDED, HALF_SINGLE), None),
        ((SINGLE, HALF_SINGLE), None),
        ((SINGLE, HALF_SHARDED), None),
        ((SHARDED, HALF_SHARDED), None),
        ((SINGLE, SHARDED), None),
        ((HALF_SINGLE, HALF_SHARDED), HALF),
    ],
)
def test_the_files_are_those_that_the_library_loads(lay: Save, part: str, layout: Layout, variant: str | None) -> None:
    folder = lay(part, *layout)
    weights = choose_weights(folder, WEIGHTS[part])
    assert (weights.folder, weights.variant) == (folder, variant)
    assert list(weights.files) == sorted(weights.files)
    assert same(content(weights.tensors), state(part, folder, variant))
    everything = set(folder.glob("*.safetensors"))
    assert (set(weights.tensors) | set(weights.unread), set(weights.tensors) & set(weights.unread)) == (
        everything,
        set(),
    )
    assert (weights.line == "") == (layout in ((SINGLE,), (SHARDED,)))


@pytest.mark.parametrize("part", PARTS)
def test_of_one_file_and_shards_the_library_has_its_own_choice(lay: Save, part: str) -> None:
    folder, stem = lay(part, SINGLE, SHARDED), WEIGHTS[part]
    change(folder / f"{stem}.safetensors", raise_the_last_value)
    weights = choose_weights(folder, stem)
    assert same(content(weights.tensors), state(part, folder, None))
    assert weights.unread == (
        tuple(shards(folder, stem)) if part == "text_encoder" else (folder / f"{stem}.safetensors",)
    )


def test_a_line_says_what_is_loaded(lay: Save) -> None:
    folder = lay("unet", HALF_SINGLE)
    assert choose_weights(folder, UNET).line == f"unet: fp16 files ({UNET}.fp16.safetensors)"
    folder = lay("unet", SINGLE)
    assert choose_weights(folder, UNET).line == (
        f"unet: full-precision files ({UNET}.safetensors), not {UNET}.fp16.safetensors"
    )
    shutil.rmtree(folder)
    count = len(shards(lay("unet", HALF_SHARDED), UNET))
    assert choose_weights(folder, UNET).line == (
        f"unet: fp16 files ({UNET}.safetensors.index.fp16.json and {count} more)"
    )


def test_integers_of_old_text_encoders_are_no_weights(lay: Save) -> None:
    folder = lay("text_encoder", SINGLE, HALF_SINGLE)
    name = "text_model.embeddings.position_ids"
    change(folder / "model.safetensors", lambda tensors: tensors.update({name: torch.arange(24)[None]}))
    assert choose_weights(folder, "model").variant is None


def test_scalars_empty_tensors_and_numbers_that_are_none(tmp_path: Path) -> None:
    values = {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "odd": torch.tensor([float("nan"), 1e6, -1e6])}
    save_file(values, tmp_path / "model.safetensors")
    save_file({name: value.half() for name, value in values.items()}, tmp_path / "model.fp16.safetensors")
    assert choose_weights(tmp_path, "model").variant is None
    save_file(values | {"scalar": torch.tensor(2.5)}, tmp_path / "model.fp16.safetensors")
    assert "scalar has other values" in refusal(tmp_path, "model")


def test_a_pointer_beside_full_precision_is_left_alone(lay: Save) -> None:
    folder = lay("unet", SINGLE, HALF_SHARDED)
    pointer = shards(folder, UNET)[0]
    point(pointer)
    weights = choose_weights(folder, UNET)
    assert (weights.variant, pointer in weights.unread) == (None, True)


# Sets that differ


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ((SINGLE, HALF_SINGLE), (f"{UNET}.safetensors", f"{UNET}.fp16.safetensors")),
        ((SHARDED, HALF_SINGLE), (f"{UNET}.safetensors.index.json", f"{UNET}.fp16.safetensors")),
        ((SINGLE, HALF_SHARDED), (f"{UNET}.safetensors", f"{UNET}.safetensors.index.fp16.json")),
        ((SINGLE, SHARDED), (f"{UNET}.safetensors", f"{UNET}.safetensors.index.json")),
        ((HALF_SINGLE, HALF_SHARDED), (f"{UNET}.fp16.safetensors", f"{UNET}.safetensors.index.fp16.json")),
    ],
)
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (raise_values, "conv_in.bias has other values"),
        (lambda tensors: tensors.pop("conv_in.bias"), "conv_in.bias is in one of them only"),
        (lambda tensors: tensors.update({"a": torch.zeros(1)}), "a is in one of them only"),
        (lambda tensors: tensors.update({"conv_in.bias": torch.zeros(3)}), "conv_in.bias has another shape"),
    ],
)
def test_sets_that_differ_are_both_named(
    lay: Save, layout: Layout, names: tuple[str, str], edit: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    folder = lay("unet", *layout)
    change(next(folder / name for name in names if name.endswith(".safetensors")), edit)
    message = refusal(folder)
    assert said in message
    assert all(name in message for name in names)
    assert "remove the one that is not" in message


def test_one_variant_in_two_precisions_is_refused(lay: Save) -> None:
    folder = lay("unet", SHARDED)
    halves = lay("unet", HALF_SINGLE) / f"{UNET}.fp16.safetensors"
    halves.rename(folder / f"{UNET}.safetensors")
    assert "is of another type" in refusal(folder)


# Files that cannot be used


def point(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def dangle(file: Path) -> None:
    file.unlink()
    file.symlink_to("gone")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


DAMAGES = [
    (point, "is a git-lfs pointer, not weights: run git lfs pull"),
    (dangle, "a link to nothing"),
    (loop, "cannot be read"),
    (pipe, "not a regular file"),
    (directory, "not a regular file"),
    (truncate, "cannot be loaded as safetensors ("),
    (empty, "cannot be loaded as safetensors ("),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
@pytest.mark.parametrize("layout", [(SINGLE,), (SHARDED,), (HALF_SINGLE,), (HALF_SHARDED,), (SHARDED, HALF_SINGLE)])
def test_a_file_that_cannot_be_used_is_named(
    lay: Save, layout: Layout, damage: Callable[[Path], None], said: str
) -> None:
    folder = lay("unet", *layout)
    file = min(folder.glob("*.safetensors"))
    damage(file)
    assert str(file) in (message := refusal(folder))
    assert said in message


@pytest.mark.parametrize(("damage", "said"), [pair for pair in DAMAGES if pair[0] not in (truncate, empty)])
def test_an_index_that_cannot_be_used_is_named(lay: Save, damage: Callable[[Path], None], said: str) -> None:
    folder = lay("unet", SHARDED)
    index = folder / f"{UNET}.safetensors.index.json"
    damage(index)
    assert refusal(folder).startswith(f"{index}: ")
    assert said in refusal(folder)


# Shards and their index


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "layout", [(SHARDED,), (HALF_SHARDED,), (SHARDED, HALF_SINGLE), (HALF_SHARDED, SINGLE), (SHARDED, HALF_SHARDED)]
)
def test_shards_without_an_index(lay: Save, part: str, layout: Layout) -> None:
    folder, stem = lay(part, *layout), WEIGHTS[part]
    variant = layout[0][0]
    index = folder / (f"{stem}.safetensors.index.json" if variant is None else f"{stem}.safetensors.index.fp16.json")
    index.unlink()
    message = refusal(folder, stem)
    assert "a shard without an index" in message
    assert index.name in message


def test_a_shard_that_is_missing(lay: Save) -> None:
    folder = lay("unet", SHARDED)
    shard = shards(folder, UNET)[1]
    shard.unlink()
    assert f"names {shard.name}, which is not there" in refusal(folder)


def test_an_index_of_other_shards(lay: Save) -> None:
    folder = lay("unet", HALF_SHARDED)
    first, second = shards(folder, UNET)[:2]
    shutil.copy(first, second)
    message = refusal(folder)
    assert f"{UNET}.safetensors.index.fp16.json: does not fit {second.name}" in message


NO_INDEX = "not an index"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", NO_INDEX),
        ("{}", NO_INDEX),
        ('{"metadata": {}, "weight_map": {}}', NO_INDEX),
        ('{"metadata": {}, "weight_map": {"a": 1}}', NO_INDEX),
        ('{"weight_map": {"a": "b.safetensors"}}', NO_INDEX),
        *(
            (json.dumps({"metadata": {}, "weight_map": {"a": name}}), "no safetensors file beside it")
            for name in (
                "../b.safetensors",
                "/b.safetensors",
                "sub/b.safetensors",
                "",
                "..",
                "b.bin",
                "b\0.safetensors",
            )
        ),
    ],
)
def test_what_is_no_index(lay: Save, text: str, said: str) -> None:
    folder = lay("unet", SHARDED)
    index = folder / f"{UNET}.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    message = refusal(folder)
    assert message.startswith(f"{index}: ")
    assert said in message


@pytest.mark.parametrize("name", [f"{UNET}.safetensors.fp16.index.json", f"{UNET}.fp16.safetensors.index.json"])
def test_an_index_under_an_old_name(lay: Save, name: str) -> None:
    folder = lay("unet", HALF_SHARDED, HALF_SINGLE)
    index = folder / f"{UNET}.safetensors.index.fp16.json"
    index.rename(folder / name)
    assert f"{name}: an index under the name of old versions; rename it to {index.name}" in refusal(folder)
    (folder / name).rename(index)
    assert choose_weights(folder, UNET).variant == HALF


# Nothing there


def test_nothing_there(tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    folder.mkdir()
    missing = f"parts missing (unet/{UNET}.safetensors); a Stable Diffusion 1.x directory has them all"
    assert refusal(folder) == f"{tmp_path}: {missing}"
    (folder / f"{UNET}.fp16.bin").write_text("")
    assert "only pickled weights" in refusal(folder)
    (folder / f"{UNET}.non_ema.safetensors").write_text("")
    assert refusal(folder) == f"{tmp_path}: {missing}; {UNET}.non_ema.safetensors is another variant"


# Whole models


@pytest.fixture
def halves(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as its authors would save it with variant="fp16", all but the VAE in shards."""
    from diffusers import AutoencoderKL

    model = Path(shutil.copytree(tiny_model, tmp_path / "halves"))
    for part, library in {**CLASSES, "vae": AutoencoderKL}.items():
        module = library.from_pretrained(tiny_model / part).half()
        (model / part / f"{WEIGHTS[part]}.safetensors").unlink()
        module.save_pretrained(model / part, variant=HALF, max_shard_size=SHARD.get(part, "5GB"))
    return model


def test_a_model_of_half_precision_is_distilled_with_the_numbers_that_it_has(
    distill: Callable[..., Ran], tiny_model: Path, halves: Path, tmp_path: Path
) -> None:
    ran = distill("--model", halves)
    assert ran.code == 0, ran.err
    (line,) = [line for line in ran.err.splitlines() if line.startswith("weights: ")]
    assert (
        f"vae: fp16 files ({UNET}.fp16.safetensors); unet: fp16 files ({UNET}.safetensors.index.fp16.json and" in line
    )
    rounded = Path(shutil.copytree(tiny_model, tmp_path / "rounded"))
    for part, stem in WEIGHTS.items():
        change(rounded / part / f"{stem}.safetensors", round_values)
    first = products(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    ran = distill("--model", rounded)
    assert (ran.code, "weights: " in ran.err) == (0, False)
    assert products(tmp_path / "run") == first


def round_values(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: tensor.half().float() for name, tensor in tensors.items()})


def test_quiet_says_nothing(distill: Callable[..., Ran], halves: Path) -> None:
    assert "weights: " not in distill("--model", halves, "--quiet").err


def test_the_hash_of_a_model_is_of_what_is_loaded(tiny_model: Path, lay: Save, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    whole = open_model(str(tiny_model)).sha256
    for file in lay("unet", HALF_SINGLE).glob("*.safetensors"):
        shutil.copy(file, model / "unet")
    (model / "unet" / f"{UNET}.non_ema.safetensors").write_text("not read")
    assert open_model(str(model)).sha256 == whole
    (model / "unet" / f"{UNET}.safetensors").unlink()
    assert open_model(str(model)).sha256 != whole


@pytest.mark.parametrize("damage", [dangle, pipe, point, directory])
def test_a_refusal_is_one_line(distill: Callable[..., Ran], halves: Path, damage: Callable[[Path], None]) -> None:
    file = halves / "vae" / f"{UNET}.fp16.safetensors"
    damage(file)
    refused(distill("--model", halves), 1, str(file))
