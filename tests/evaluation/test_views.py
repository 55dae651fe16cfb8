"""Views beside torchvision's own transforms, and what is drawn beside what it is drawn from."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from d4m_fast.evaluation.augment import flipped, pasted, resized_crops, shifted, shuffled_halves
from d4m_fast.evaluation.protocols import PROTOCOLS
from d4m_fast.evaluation.views import Mix, draw_boxes, draw_mix, draw_views, mixed, render


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def boxes_within(n: int, height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(1)
    heights, widths = rng.integers(1, height + 1, n), rng.integers(1, width + 1, n)
    tops, lefts = rng.integers(0, height - heights + 1), rng.integers(0, width - widths + 1)
    return torch.tensor(np.stack((tops, lefts, heights, widths), 1))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("height", "width", "size"), [(40, 40, 40), (32, 48, 17), (21, 13, 64)])
def test_crops_are_torchvisions(antialias: bool, height: int, width: int, size: int) -> None:
    images, boxes = pictures(200, height, width), boxes_within(200, height, width)
    crops = resized_crops(images, boxes, size, antialias=antialias)
    for image, box, crop in zip(images, boxes.tolist(), crops, strict=True):
        expected = reference.resized_crop(image, *box, [size, size], antialias=antialias)
        assert (crop - expected).abs().max() < 2e-5


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [17, 32, 33, 64])
def test_mirrored_crops_are_crops_that_are_mirrored(antialias: bool, size: int) -> None:
    images, boxes = pictures(100, 32, 48), boxes_within(100, 32, 48)
    mirrored = torch.rand(100, generator=torch.Generator().manual_seed(6)) < 0.5
    crops = resized_crops(images, boxes, size, antialias=antialias)
    expected = torch.where(mirrored.view(-1, 1, 1, 1), reference.horizontal_flip(crops), crops)
    assert torch.equal(resized_crops(images, boxes, size, antialias=antialias, mirrored=mirrored), expected)


@pytest.mark.slow
@pytest.mark.parametrize("antialias", [False, True])
def test_a_thousand_crops_at_224_pixels(antialias: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        images, boxes = pictures(50, 224, 224), draw_boxes(50, 224, (0.08, 1.0), generator)
        crops = resized_crops(images, boxes, 224, antialias=antialias)
        for image, box, crop in zip(images, boxes.tolist(), crops, strict=True):
            expected = reference.resized_crop(image, *box, [224, 224], antialias=antialias)
            assert (crop - expected).abs().max() < 5e-5


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0), (1.0, 1.0)])
def test_boxes_are_drawn_as_torchvision_draws_them(scale: tuple[float, float]) -> None:
    n, side = 3000, 224
    boxes = draw_boxes(n, side, scale, torch.Generator().manual_seed(3))
    torch.manual_seed(4)
    image = torch.zeros(3, side, side)
    crop = v2.RandomResizedCrop(side, scale=scale)
    theirs = torch.tensor([list(crop.make_params([image]).values())[:4] for _ in range(n)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= side).all()
    for ours, reference_column in zip(boxes.T, theirs.T, strict=True):
        if len(set(reference_column.tolist())) > 1:
            assert stats.ks_2samp(ours.numpy(), reference_column.numpy()).pvalue > 1e-3
        else:
            assert torch.equal(ours, reference_column)


def test_shift_is_a_crop_of_the_padded_image() -> None:
    images, limit = pictures(9, 12, 10), 3
    offsets = torch.randint(0, 2 * limit + 1, (2, 9, 1), generator=torch.Generator().manual_seed(5))
    padded = reference.pad(images, [limit] * 4)
    for i, moved in enumerate(shifted(images, offsets, limit)):
        top, left = offsets[:, i, 0].tolist()
        assert torch.equal(moved, reference.crop(padded[i], top, left, 12, 10))


def test_flips_are_torchvisions() -> None:
    images = pictures(6, 5, 7)
    mirrored = torch.tensor([True, False, True, True, False, False])
    result = flipped(images, mirrored)
    for image, is_mirrored, shown in zip(images, mirrored.tolist(), result, strict=True):
        assert torch.equal(shown, reference.horizontal_flip(image) if is_mirrored else image)


def test_halves_are_swapped_sideways_then_upside_down() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4).repeat(4, 1, 1, 1)
    swaps = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    result = shuffled_halves(images, swaps)
    assert torch.equal(result[0], images[0])
    assert torch.equal(result[1], torch.roll(images[1], 2, 2))
    assert torch.equal(result[2], torch.roll(images[2], 2, 1))
    assert torch.equal(result[3], torch.roll(images[3], (2, 2), (1, 2)))


def test_a_box_for_all_and_boxes_for_each_paste_the_same() -> None:
    images, others = pictures(5, 8, 8), pictures(5, 8, 8).flip(0)
    box = torch.tensor([1, 6, 3, 8])
    assert torch.equal(pasted(images, others, box), pasted(images, others, box.expand(5, 4)))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:6, 3:8] = True
    assert torch.equal(pasted(images, others, box), torch.where(inside, others, images))


def reference_cutmix(images: torch.Tensor, mix: Mix, share: float, centre: tuple[float, float]) -> torch.Tensor:
    """Yun et al.'s rand_bbox (2019), from the same numbers."""
    height, width = images.shape[2:]
    cut = math.sqrt(1 - share)
    y, x = centre[0] * height, centre[1] * width
    top, bottom = (int(np.clip(round(v), 0, height)) for v in (y - cut * height / 2, y + cut * height / 2))
    left, right = (int(np.clip(round(v), 0, width)) for v in (x - cut * width / 2, x + cut * width / 2))
    result = images.clone()
    result[:, :, top:bottom, left:right] = images[mix.partners, :, top:bottom, left:right]
    return result


def test_cutmix_is_the_papers() -> None:
    images = pictures(7, 32, 32)
    for seed in range(200):
        mix = draw_mix(PROTOCOLS["small"], 7, torch.Generator().manual_seed(seed))
        assert mix is not None
        again = torch.Generator().manual_seed(seed)
        share, centre = torch.rand((), generator=again).item(), torch.rand(2, generator=again).tolist()
        expected = reference_cutmix(images, mix, share, (centre[0], centre[1]))
        assert torch.equal(mixed(images, mix), expected)
        assert mix.partners.sort().values.tolist() == list(range(7))
        pasted_area = (mixed(images, mix)[0, 0] != images[0, 0]).float().mean()
        assert pasted_area == pytest.approx(mix.share(32) if mix.partners[0] != 0 else 0)


def test_a_mix_has_its_probability() -> None:
    protocol = dataclasses.replace(PROTOCOLS["small"], cutmix=0.3)
    generator = torch.Generator().manual_seed(6)
    mixes = sum(draw_mix(protocol, 4, generator) is not None for _ in range(2000))
    assert stats.binomtest(mixes, 2000, 0.3).pvalue > 1e-3
    assert draw_mix(dataclasses.replace(protocol, cutmix=0.0), 4, generator) is None


@pytest.mark.parametrize("name", PROTOCOLS)
def test_views_of_a_protocol_are_its_steps_one_after_the_other(name: str) -> None:
    protocol = dataclasses.replace(PROTOCOLS[name], resolution=32)
    images = (pictures(6, 32, 32) * 255).to(torch.uint8)
    views = draw_views(protocol, 6, torch.Generator().manual_seed(7))
    for i, shown in enumerate(render(images, views, protocol)):
        image = images[i].float() / 255
        if views.swaps is not None:
            image = shuffled_halves(image[None], views.swaps[i : i + 1])[0]
        if views.boxes is not None:
            image = reference.resized_crop(image, *views.boxes[i].tolist(), [32, 32], antialias=protocol.antialias)
        if views.offsets is not None:
            top, left = views.offsets[:, i, 0].tolist()
            image = reference.crop(reference.pad(image, [protocol.shift] * 4), top, left, 32, 32)
        image = reference.horizontal_flip(image) if views.flips[i] else image
        assert (shown - image).abs().max() < 2e-5
