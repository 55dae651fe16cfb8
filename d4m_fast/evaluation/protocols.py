"""The named recipes by which distilled sets are scored. A published protocol is never edited: a new one gets a name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from d4m_fast.config.choices import Regime

Steps = tuple[tuple[int, int], ...]
RunningStats = Literal["all", "first", "twice"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """Recipe by which a student is trained; the accuracy reported is that of the last epoch on the full test set.

    Every batch is cropped (or shifted) and flipped, then mixed. Steps are AdamW's; the loss of soft labels is
    KL(teacher || student), that of hard ones cross-entropy.

    Attributes:
        version: changes when a field does; numbers of two versions are never compared.
        resolution: pixels along each side, of training and of test images.
        epochs: passes over the training images, the last batch of a pass included however small.
        batch_size: images per step, by the least images per class for which it holds: ((10, 100), (50, 200)).
        micro_batch: images per backward pass, whose losses are averaged; None is the whole batch. A short last
            micro-batch weighs as a full one.
        bn_batch: images that batch normalisation sees together; None is the whole micro-batch.
        running_stats: which of them move its running statistics: all, the first of each micro-batch (DataParallel's
            replica 0), or all of them twice (RDED's second forward pass).
        lr: AdamW's rate in the first step, by student; "" is everybody else.
        decays_all: weight decay also on biases and normalisation.
        lr_horizon: the cosine reaches zero after this many times the epochs, by student as well.
        lr_unit: whether the rate changes with every step or with every epoch.
        temperature: divides the logits of teacher and student.
        scales_loss: by the square of the temperature (Hinton et al., 2015).
        cutmix: probability that a batch is mixed (Yun et al., 2019), beta 1, one box per batch.
        mixes_hard_labels: whether it is with hard labels too, whose loss is then weighted by area.
        crop: least and largest part of the area of a random resized crop, ratio 3/4 to 4/3; None is no crop.
        antialias: whether crops that shrink are filtered first, as Pillow does.
        shift: largest translation along each axis, in pixels, zeros moving in.
        patches: rows and columns that are shuffled by halves before the crop; 1 is none.
        flip: probability that an image is mirrored.
        test_resize: shorter side before the central crop of test images; None is the resolution itself.
        validations: first epoch, counted from 0, and distance of those whose best accuracy the authors report;
            None where they report the last.
        regime: the labels of the authors.
        student, teacher: the authors'; "bundled" is ours of Fashion-MNIST.
        stored_epochs: epochs of labels that the "fixed" regime stores.
        sources: where each field was read.
    """

    name: str
    version: int
    resolution: int
    epochs: int
    batch_size: Steps
    micro_batch: int | None
    bn_batch: int | None
    running_stats: RunningStats
    lr: Mapping[str, float]
    weight_decay: float
    betas: tuple[float, float]
    decays_all: bool
    lr_horizon: Mapping[str, float]
    lr_unit: Literal["step", "epoch"]
    temperature: float
    scales_loss: bool
    cutmix: float
    mixes_hard_labels: bool
    crop: tuple[float, float] | None
    antialias: bool
    shift: int
    patches: int
    flip: float
    test_resize: int | None
    validations: tuple[int, int] | None
    regime: Regime
    student: str
    teacher: str
    stored_epochs: int
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def batch_for(self, images_per_class: int) -> int:
        """Return the images per step at a number of images per class."""
        size = self.batch_size[0][1]
        for least, batch in self.batch_size:
            if images_per_class >= least:
                size = batch
        return size

    def lr_at(self, student: str, step: int, steps: int) -> float:
        """Return a student's rate at a step, or at an epoch, of as many."""
        horizon = self.lr_horizon.get(student, self.lr_horizon[""])
        return self.lr_of(student) * (1 + math.cos(math.pi * step / (steps * horizon))) / 2

    def lr_of(self, student: str) -> float:
        """Return a student's first rate."""
        return self.lr.get(student, self.lr[""])

    def is_validated(self, epoch: int) -> bool:
        """Whether the authors look at the test accuracy after this epoch, counted from 0."""
        if epoch == self.epochs - 1:
            return True
        if self.validations is None:
            return False
        first, distance = self.validations
        return epoch >= first and (epoch - first) % distance == 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields but for the sources, as JSON has them."""
        value = {}
        for item in dataclasses.fields(self):
            if item.name != "sources":
                value[item.name] = _plain(getattr(self, item.name))
        return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(map(_plain, value)) if isinstance(value, tuple) else value


_SRE2L = "VILA-Lab/SRe2L 8d00cba, SRe2L/relabel/*.sh, SRe2L/validate/train_FKD.{sh,py}"
_D4M = "suduo94/D4M da35d10, matching/, validate/train_FKD.{sh,py}"
_RDED = "LINs-lab/RDED 3f6453d, argument.py, validation/main.py, validation/utils.py"
_RD3 = "arXiv 2509.19743 as summarised by others; its code was not found"
_RETHINK = "ArmandXiao/Rethinking-Dataset-Compression 91d1ef0, standard_hard_config"
_OURS = "d4m-fast"

# The RDED recipe's own rates; a student that is not named has 1e-3 (argument.py).
_RDED_RATES = {
    "": 1e-3,
    "mobilenet_v2": 2.5e-3,
    "efficientnet_b0": 2e-3,
    "vgg11": 5e-4,
    "vit_b_16": 1e-4,
    "swin_v2_t": 1e-4,
    "alexnet": 1e-4,
}


def _cited(everywhere: str, **exceptions: str) -> Mapping[str, str]:
    """Return the source of every field: one for all but those that have their own."""
    sources = dict[str, str]()
    for item in dataclasses.fields(Protocol):
        if item.name not in ("name", "version", "sources"):
            sources[item.name] = exceptions.get(item.name, everywhere)
    return sources


SMALL = Protocol(
    name="small",
    version=1,
    resolution=32,
    epochs=300,
    batch_size=((1, 50),),
    micro_batch=None,
    bn_batch=None,
    running_stats="all",
    lr={"": 2e-3},
    weight_decay=0.01,
    betas=(0.9, 0.999),
    decays_all=True,
    lr_horizon={"": 1.0},
    lr_unit="step",
    temperature=4.0,
    scales_loss=True,
    cutmix=1.0,
    mixes_hard_labels=False,
    crop=None,
    antialias=False,
    shift=4,
    patches=1,
    flip=0.5,
    test_resize=None,
    validations=None,
    regime="online",
    student="convnet3",
    teacher="bundled",
    stored_epochs=10,
    sources=_cited(_OURS),
)
# SRe2L's recipe, which later ones on ImageNet-1K change in a few fields each.
FKD = Protocol(
    name="fkd",
    version=1,
    resolution=224,
    epochs=300,
    batch_size=((1, 1024),),
    micro_batch=512,
    bn_batch=None,
    running_stats="all",
    lr={"": 1e-3},
    weight_decay=0.01,
    betas=(0.9, 0.999),
    decays_all=False,
    lr_horizon={"": 1.0},
    lr_unit="epoch",
    temperature=20.0,
    scales_loss=False,
    cutmix=1.0,
    mixes_hard_labels=False,
    crop=(0.08, 1.0),
    antialias=True,
    shift=0,
    patches=1,
    flip=0.5,
    test_resize=256,
    validations=(0, 10),
    regime="fixed",
    student="resnet18",
    teacher="resnet18",
    stored_epochs=300,
    sources=_cited(_SRE2L, micro_batch=f"{_SRE2L} (accumulation 2, on one GPU)"),
)
D4M = dataclasses.replace(
    FKD,
    name="d4m",
    bn_batch=74,  # 512 on seven GPUs, DataParallel rounding up
    running_stats="first",
    validations=(0, 50),
    sources=_cited(
        _D4M,
        bn_batch=f"{_D4M} (CUDA_VISIBLE_DEVICES=1..7; what the paper's runs had is unknown)",
        running_stats="PyTorch's documentation of DataParallel",
    ),
)
RDED = dataclasses.replace(
    FKD,
    name="rded",
    batch_size=((1, 20), (10, 100), (50, 200)),
    micro_batch=None,
    running_stats="twice",
    lr=_RDED_RATES,
    lr_horizon={"": 2.0},
    crop=(0.5, 1.0),
    patches=2,
    validations=(249, 10),
    regime="online",
    sources=_cited(_RDED, batch_size=f"{_RDED} (IPC 1, 10, 50; between them the smaller one's is ours)"),
)
RD3 = dataclasses.replace(
    RDED,
    name="rd3",
    epochs=400,
    batch_size=((1, 50),),
    running_stats="all",
    lr_horizon={"": 2.0, "resnet18": 1.0},
    validations=None,
    stored_epochs=400,
    sources=_cited(_RD3, weight_decay=_OURS, crop=_RDED, patches=_RDED, temperature=_RDED, lr=_RDED, decays_all=_RDED),
)
HARD = dataclasses.replace(
    FKD,
    name="hard",
    batch_size=((1, 128),),
    micro_batch=None,
    cutmix=0.0,
    validations=(0, 50),
    regime="hard",
    sources=_cited(_RETHINK),
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {protocol.name: protocol for protocol in (SMALL, FKD, D4M, RDED, RD3, HARD)}
)
