"""Options of `d4m-fast convert`."""

from __future__ import annotations

from dataclasses import dataclass

from d4m_fast.config.fields import Group, check_bounds, setting


@dataclass(frozen=True)
class ConvertConfig:
    """Options of `d4m-fast convert`; the order of the fields is that of an output's record.

    Attributes:
        shard_images: images per tar or parquet file; the last has the rest.
        shuffle_seed: of the order in which tars and parquet files hold the images.
        license: of the images, as the Hugging Face hub names licences; None is the generating model's where it is
            known.
    """

    # 1,000 PNG files of 224 pixels are about 100 MB. 50 images of each of 1,000 classes make 50 shards, enough for
    # eight GPUs with six loaders each.
    shard_images: int = setting(1000, group=Group.OUTPUT, help="Images per tar or parquet file.", minimum=1)
    shuffle_seed: int = setting(0, group=Group.OUTPUT, help="Of the images' order in tars and parquet files.")
    license: str | None = setting(
        None,
        group=Group.OUTPUT,
        help="Licence in the dataset card, as the Hugging Face hub names it.",
        default_text="the model's, where known",
    )

    def __post_init__(self) -> None:
        check_bounds(self)
