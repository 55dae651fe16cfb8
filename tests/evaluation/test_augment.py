"""Each augmentation against a slow reference, one image at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from d4m_fast.evaluation.augment import cutmix, flip, shift


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width", "limit"), [(32, 32, 4), (9, 12, 3), (8, 8, 0)])
def test_shift_is_a_crop_of_the_padded_image(height: int, width: int, limit: int, layout: torch.memory_format) -> None:
    images = torch.rand(20, 3, height, width).contiguous(memory_format=layout)
    shifted = shift(images, limit, generator())
    dy, dx = torch.randint(0, 2 * limit + 1, (2, 20, 1), generator=generator())
    for i in range(20):
        padded, top, left = F.pad(images[i], (limit,) * 4), int(dy[i]), int(dx[i])
        assert torch.equal(shifted[i], padded[:, top : top + height, left : left + width])
    assert shifted.is_contiguous()


def test_shift_reaches_every_offset_equally_often() -> None:
    n, limit = 5000, 2
    images = torch.zeros(n, 1, 9, 9)
    images[:, :, 4, 4] = 1
    landed = shift(images, limit, generator()).sum(0)[0]
    inside = landed[2:7, 2:7]
    assert inside.sum() == n
    assert (inside - n / 25).abs().max() < 5 * (n / 25) ** 0.5


def test_flip_mirrors_half_of_the_images() -> None:
    images = torch.rand(1000, 1, 2, 3)
    flipped = flip(images, generator())
    mirrored = torch.tensor([torch.equal(a, b[..., [2, 1, 0]]) for a, b in zip(flipped, images, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, images, strict=True)])
    assert bool((mirrored ^ kept).all())
    assert 420 < int(mirrored.sum()) < 580


@pytest.mark.parametrize("seed", range(25))
def test_cutmix_pastes_one_box_of_another_image(seed: int) -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 10, 12).contiguous()
    mixed = cutmix(images, generator(seed))
    box = (mixed != images).any(0).any(0)
    rows, columns = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
    if len(rows):
        assert bool(box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
        assert int(box.sum()) == len(rows) * len(columns)
    for i in range(6):
        assert len(set(mixed[i][:, box].flatten().tolist())) <= 1
        assert bool((mixed[i][:, ~box] == i).all())
    assert torch.equal(mixed.sort(dim=0).values, images)


def test_cutmix_pastes_the_expected_area() -> None:
    """A side of s is cut to s - s^2 / 4 on average, and s^2 is uniform: E = 1/2 - 1/5 + 1/48; half the pairs swap."""
    images = torch.stack([torch.zeros(1, 32, 32), torch.ones(1, 32, 32)])
    source = generator()
    shares = [float((cutmix(images, source) != images).float().mean()) for _ in range(400)]
    assert sum(shares) / len(shares) == pytest.approx((1 / 2 - 1 / 5 + 1 / 48) / 2, abs=0.035)
