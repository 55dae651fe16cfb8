"""The VAE of a run's own model, at the run's resolution: what a real image loses on its way through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from d4m_fast.engine.encode import encode
from d4m_fast.engine.finite import FiniteCheck
from d4m_fast.engine.generate import resized, to_bytes
from d4m_fast.engine.memory import fitting, release
from d4m_fast.engine.model import open_model
from d4m_fast.engine.networks import VaeDecoder, VaeEncoder, open_networks
from d4m_fast.engine.runtime import resolve_precision
from d4m_fast.errors import DataError, ModelError, OutOfMemoryError
from d4m_fast.flow.stopwatch import Stopwatch
from d4m_fast.flow.workers import Workers
from d4m_fast.runs.prototypes import RunPrototypes
from d4m_fast.sources.records import ClassInfo, Source

Names = Sequence[tuple[ClassInfo, int]]


@dataclass(frozen=True)
class Vae:
    """Encoder and decoder as a run has them.

    Attributes:
        resolution: side of the images that are encoded and decoded.
        image_size: side of the images that a run writes.
        encode_batch, decode_batch: images per call; halved where the device has not the memory.
    """

    encoder: VaeEncoder
    decoder: VaeDecoder
    resolution: int
    image_size: int
    encode_batch: int
    decode_batch: int

    def encode(self, source: Source) -> torch.Tensor:
        """Return the scaled latents of a source's images in its order, (N, C, h, w) float32: the posterior's means.

        Images are squeezed to squares, as a run's are.

        Raises:
            DataError: an image is damaged.
            OutOfMemoryError: not even one image fits the device.
        """
        latents, batch = list[np.ndarray](), self.encode_batch
        while len(latents) < len(source.items):
            try:
                latents += self._encode_from(source, len(latents), batch)
            except OutOfMemoryError as error:
                batch = self._smaller(batch, error)
        return torch.from_numpy(np.stack(latents))

    def _encode_from(self, source: Source, start: int, batch: int) -> list[np.ndarray]:
        latents = list[np.ndarray]()
        with Workers(Stopwatch()) as workers:
            batches = encode(
                source,
                self.encoder,
                resolution=self.resolution,
                draw=None,
                batch=batch,
                workers=workers,
                start=start,
            )
            for encoded in batches:
                for failure in encoded.failures:
                    raise DataError(f"{failure.item.origin}: {failure.reason}; remove the image from the real data")
                latents += list(encoded.latents)
        return latents

    def decode(self, latents: torch.Tensor, names: Names) -> Iterator[np.ndarray]:
        """Yield the images of scaled latents (N, C, h, w) float32 in batches, (n, S, S, 3) uint8, as a run writes them.

        Args:
            names: class and index of each, for the error.

        Raises (from the iterator):
            NonFiniteError: the decoder returned NaN or infinity.
            OutOfMemoryError: not even one image fits the device.
        """
        start, batch = 0, self.decode_batch
        while start < len(latents):
            try:
                images = self._decode_batch(latents[start : start + batch], names[start : start + batch])
            except OutOfMemoryError as error:
                batch = self._smaller(batch, error)
                continue
            yield np.stack([resized(image, self.image_size) for image in images])
            start += len(images)

    def _decode_batch(self, latents: torch.Tensor, names: Names) -> np.ndarray:
        check = FiniteCheck()
        with fitting("decode"), torch.inference_mode():
            pixels = to_bytes(self.decoder(latents.to(self.decoder.runtime.device), check))
        check.read()(names)
        images: np.ndarray = pixels.cpu().numpy()
        return images

    def _smaller(self, batch: int, error: OutOfMemoryError) -> int:
        if batch == 1:
            raise error.for_one_image()
        # What the call that failed has left in the caches would be missing for the smaller one.
        release(self.decoder.runtime.device)
        return batch // 2


def open_vae(records: RunPrototypes, device: torch.device) -> Vae:
    """Open the VAE that a run was made with, on the PyTorch engine, whichever engine the run had.

    It runs in the run's precision; on a CPU in fp32, the only one there.

    Raises:
        ModelError: the model is not there any more, or is another one now.
    """
    options = records.options
    model = open_model(options["model"], options["revision"])
    if model.sha256 != records.identity["model_sha256"]:
        raise ModelError(
            f"{model.name}: not the model that {records.run} was made with (its SHA-256 is another); bring that back,"
            " or leave out the arms random-vae, medoid-vae and decoded"
        )
    dtype = resolve_precision("auto" if device.type == "cpu" else options["precision"], device)
    networks = open_networks(model.path, device, dtype)
    return Vae(
        encoder=networks.vae_encoder,
        decoder=networks.vae_decoder,
        resolution=options["resolution"],
        image_size=options["image_size"],
        encode_batch=records.plan.encode_batch,
        decode_batch=min(group.decode_batch for group in records.plan.groups),
    )
