"""The batches of an epoch, as a student sees them: shown anew with labels made on the spot, or as they were stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol as Interface

import torch

from d4m_fast.evaluation.augment import pasted
from d4m_fast.evaluation.images import ImageSet
from d4m_fast.evaluation.label_rows import LabelRows, views_at
from d4m_fast.evaluation.label_store import LabelStore
from d4m_fast.evaluation.protocols import Protocol
from d4m_fast.evaluation.targets import HardTargets, SoftTargets, Targets, log_probabilities
from d4m_fast.evaluation.views import Mix, Views, draw_mix, draw_views, mixed, render


@dataclass(frozen=True, slots=True)
class Batch:
    """Pixels (N, 3, S, S) float32 in [0, 1], and what the student is told about them.

    Attributes:
        whole_size: images of the whole batch, where these are one process's share of it; None is all.
    """

    pixels: torch.Tensor
    targets: Targets
    whole_size: int | None = None

    @property
    def size(self) -> int:
        """Images of the whole batch."""
        return len(self.pixels) if self.whole_size is None else self.whole_size


Share = Callable[[int], slice]
"""Rows that this process has of a batch of so many."""


def every_row(n: int) -> slice:
    """Return all rows of a batch of n."""
    return slice(0, n)


class Feed(Interface):
    """Source of batches; everything random comes from the generator passed in."""

    def epoch(self, number: int, generator: torch.Generator) -> Iterator[Batch]: ...


@dataclass(frozen=True, slots=True, eq=False)
class HardFeed:
    """Batches with class ids.

    Attributes:
        positions: (N,) int64, the images' classes among those evaluated, on the images' device.
    """

    protocol: Protocol
    images: ImageSet
    positions: torch.Tensor
    batch_size: int
    share: Share = every_row

    def epoch(self, number: int, generator: torch.Generator) -> Iterator[Batch]:
        # Only a recipe that mixes hard labels mixes here: without the area in the loss a pasted box is a wrong label.
        cutmix = self.protocol.cutmix if self.protocol.mixes_hard_labels else 0.0
        for rows, pixels, mix in shown_batches(
            replace(self.protocol, cutmix=cutmix), self.images, self.batch_size, generator, self.share
        ):
            own = self.share(len(rows))
            labels = self.positions[rows[own]]
            if mix is None:
                targets = HardTargets(labels)
            else:
                pasted_labels = self.positions[rows[mix.partners[own]]]
                targets = HardTargets(labels, pasted_labels, mix.share(self.protocol.resolution))
            yield Batch(pixels, targets, len(rows))


@dataclass(frozen=True, slots=True, eq=False)
class OnlineFeed:
    """Batches that the teacher labels in every step (training-time matching, as RDED, Sun et al., 2024).

    Attributes:
        label: pixels (N, 3, S, S) to logits (N, classes evaluated).
    """

    protocol: Protocol
    images: ImageSet
    label: Callable[[torch.Tensor], torch.Tensor]
    batch_size: int
    share: Share = every_row

    def epoch(self, number: int, generator: torch.Generator) -> Iterator[Batch]:
        temperature = self.protocol.temperature
        for rows, pixels, _ in shown_batches(self.protocol, self.images, self.batch_size, generator, self.share):
            targets = soft_targets(log_probabilities(self.label(pixels), temperature), self.protocol)
            yield Batch(pixels, targets, len(rows))


@dataclass(frozen=True, slots=True, eq=False)
class StoredFeed:
    """Batches as a stored epoch has them, whose labels need no teacher.

    As many stored epochs as the protocol trains are shown once each, in their order and that of their batches, as the
    authors do; of fewer, one is drawn for each epoch (LPLD, Xiao & He, 2024).
    """

    protocol: Protocol
    images: ImageSet
    labels: LabelStore
    batch_size: int
    share: Share = every_row

    def epoch(self, number: int, generator: torch.Generator) -> Iterator[Batch]:
        if self.labels.epochs >= self.protocol.epochs:
            labels = self.labels.epoch(number)
            for rows in torch.split(labels.order, self.batch_size):
                yield self._batch(labels, rows)
            return
        labels = self.labels.epoch(int(torch.randint(self.labels.epochs, (), generator=generator)))
        batches = torch.split(labels.order, self.batch_size)
        # The teacher's own batches, whose partners are among them, in another order.
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield self._batch(labels, batches[index])

    def _batch(self, labels: LabelRows, rows: torch.Tensor) -> Batch:
        own = rows[self.share(len(rows))]
        targets = labels.log_probabilities(own, self.labels.classes, self.protocol.temperature)
        pixels = stored_pixels(self.protocol, self.images, self.labels, labels, own)
        return Batch(pixels, soft_targets(targets.to(pixels.device), self.protocol), len(rows))


def soft_targets(targets: torch.Tensor, protocol: Protocol) -> SoftTargets:
    """Return targets at a protocol's temperature."""
    return SoftTargets(targets, protocol.temperature, protocol.scales_loss)


def shown_batches(
    protocol: Protocol, images: ImageSet, batch_size: int, generator: torch.Generator, share: Share = every_row
) -> Iterator[tuple[torch.Tensor, torch.Tensor, Mix | None]]:
    """Yield the batches of an epoch: rows of the set, pixels, and how these were mixed; of pixels, the share alone."""
    for rows in torch.split(torch.randperm(len(images), generator=generator), batch_size):
        views = draw_views(protocol, len(rows), generator)
        mix = draw_mix(protocol, len(rows), generator)
        yield rows, _shown(protocol, images, rows, views, mix, share(len(rows))), mix


def _shown(
    protocol: Protocol, images: ImageSet, rows: torch.Tensor, views: Views, mix: Mix | None, own: slice
) -> torch.Tensor:
    """Show a share of a batch; of the others' images, those that are pasted into its own are all that it needs."""
    device = images.images.device
    if own == slice(0, len(rows)):
        pixels = render(images.images[rows.to(device)], views.to(device), protocol)
        return pixels if mix is None else mixed(pixels, mix)
    positions = torch.arange(len(rows))[own]
    partners = positions if mix is None else mix.partners[own]
    needed, index = torch.unique(torch.cat((positions, partners)), return_inverse=True)
    pixels = render(images.images[rows[needed].to(device)], views_at(views, needed).to(device), protocol)
    shown, others = (pixels[half] for half in index.to(device).split(len(positions)))
    return shown if mix is None else pasted(shown, others, mix.box)


def stored_pixels(
    protocol: Protocol, images: ImageSet, store: LabelStore, labels: LabelRows, rows: torch.Tensor
) -> torch.Tensor:
    """Show rows of a store as the teacher saw them, in whatever batch: (len(rows), 3, S, S) float32."""
    device = images.images.device
    partners = labels.partners[rows]
    # Each once: most partners are rows of the batch themselves.
    both, places = torch.unique(torch.cat((rows, partners)), return_inverse=True)
    pixels = render(images.images[store.positions[both].to(device)], views_at(labels.views, both).to(device), protocol)
    row_places, partner_places = places.to(device).split(len(rows))
    boxes = labels.mix_boxes[rows].to(device)
    if bool((boxes == boxes[0]).all()):  # one box for the batch, as it was mixed
        boxes = boxes[0]
    return pasted(pixels[row_places], pixels[partner_places], boxes)
