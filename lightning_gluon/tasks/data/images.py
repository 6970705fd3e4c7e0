"""Batches of images for classification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_gluon.extras import require
from lightning_gluon.tasks.data.image_sources import (
    ImageSource,
    read_digits,
    read_folder,
    read_hub_images,
    read_parquet,
)
from lightning_gluon.tasks.data.loader import ResumableLoader, default_seed
from lightning_gluon.valid import Check, number, whole

__all__ = ["ImageData", "ImageDataset"]

IMAGE_CHECKS = {
    "batch_size": whole(1),
    "image_size": whole(1, none="the images' own size"),
    "crop_padding": whole(),
    "rand_augment": whole(none="none"),
    "mixup": number(),
    "cutmix": number(),
    "val_fraction": number(0, 1),
    "limit": whole(1, none="all"),
    "num_workers": whole(),
}
_KEY_STRIDE = 1_000_003  # a prime: the keys of neighbouring seeds and epochs must not meet
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and standard deviation of ImageNet's channels


class ImageDataset(Dataset[Any]):
    """A whole batch at a time: pick, augment, standardise.

    The random numbers of a batch are a function of (seed, epoch, first index), whatever process makes it.

    Args:
        source: Images and labels.
        mean: One per channel, in units of the full scale.
        std: One per channel, in units of the full scale.
        image_size: Side to resize to; None keeps the images' own.
        crop_padding: Pixels of zero padding before a random crop back to the image's size; 0 for no crop.
        flip: Whether half of the images are mirrored.
        rand_augment: Magnitude of RandAugment, in tenths of its range; None for none.
        mix: Mixing of images and labels; None for none.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        mean: list[float],
        std: list[float],
        image_size: int | None = None,
        crop_padding: int = 0,
        flip: bool = False,
        rand_augment: int | None = None,
        mix: ImageMix | None = None,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.image_size = image_size
        self.crop_padding = crop_padding
        self.flip = flip
        self.augment = None
        if rand_augment is not None:
            self.augment = require("torchvision.transforms.v2").RandAugment(magnitude=rand_augment)
        self.mix = mix
        self.seed = seed
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's augmentation."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        image, label = images[0], labels[0]
        return image, label

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = self.source.images(indices, self.image_size)
        labels = self.source.labels[torch.as_tensor(indices)]
        epoch_key = self.seed * _KEY_STRIDE + self.epoch
        key = epoch_key * _KEY_STRIDE + int(indices[0])
        generator = torch.Generator().manual_seed(key % (1 << 63))
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, generator)
        if self.flip:
            chance = torch.rand(len(images), 1, 1, 1, generator=generator)
            images = torch.where(chance < 0.5, images.flip(-1), images)
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms take torch's own stream
            torch.manual_seed(key % (1 << 63))
            if self.augment is not None:
                images = torch.stack([self.augment(image) for image in images])
            centred = images.float() / 255 - self.mean
            scaled = centred / self.std
            if self.mix is None:
                return scaled, labels
            return self.mix(scaled, labels)


@dataclass(frozen=True)
class ImageMix:
    """Mixing of pairs of images and their labels, by torchvision: mixup, cutmix, or either by a coin.

    Args:
        classes: Number of classes.
        mixup: Parameter of the Beta distribution of the share; 0 for no mixup.
        cutmix: The same of the area that is cut out; 0 for no cutmix.
    """

    classes: int
    mixup: float
    cutmix: float

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images and the shares of their classes, `(batch, classes)`."""
        transforms = require("torchvision.transforms.v2")
        kinds = []
        if self.mixup:
            kinds.append(transforms.MixUp(alpha=self.mixup, num_classes=self.classes))
        if self.cutmix:
            kinds.append(transforms.CutMix(alpha=self.cutmix, num_classes=self.classes))
        return transforms.RandomChoice(kinds)(images, labels)


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad by `padding` zeros and crop every image back to its size at a random place."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1, 1), generator=generator)
    image = torch.arange(count)
    row = torch.arange(height)
    column = torch.arange(width)
    channels_last = padded.permute(0, 2, 3, 1)
    crops = channels_last[
        image.view(-1, 1, 1),
        top + row.view(1, -1, 1),
        left + column.view(1, 1, -1),
    ]
    return crops.permute(0, 3, 1, 2)


def keep(batch: Any) -> Any:
    """Return a batch as it is: the dataset has made it whole already."""
    return batch


class ImageData(LightningDataModule):
    """Images and class labels, from an embedded set, local files or the hub.

        x <- (x / 255 - mean) / std    per channel

    Shapes: batches of images `(batch, channels, height, width)` and labels `(batch,)`, or `(batch, classes)` if mixed.

    `val` is the source's own validation split, or a random `val_fraction` of the training split; `test` is the
    source's test split, or `val` where it has none. With `val_fraction=0`, `val` is `test`.

    Args:
        source: `digits` (embedded in scikit-learn), `parquet` (a folder with `train*.parquet`, `test*.parquet`),
            `folder` (one folder per class) or `hub` (an id).
        path: The folder of `parquet` and `folder`, the id of `hub`.
        batch_size: Images per batch and process.
        image_size: Side that images are resized to; None keeps their own.
        crop_padding: Pixels of padding before a random crop; 0 for none.
        flip: Whether training images are mirrored at random.
        rand_augment: Magnitude of RandAugment on training images, such as 9; None for none.
        mixup: Parameter of mixup's Beta distribution, such as 0.8; 0 for none. Labels become shares of classes.
        cutmix: Parameter of cutmix's Beta distribution; 0 for none. With both, either is taken for a batch.
        timm_model: Model of timm whose mean, standard deviation and image size are taken unless they are given.
        mean: Per channel; None measures it on decoded training images, and takes ImageNet's for encoded ones.
        std: Like `mean`.
        val_fraction: Part of the training split that is held out where the source has no validation split.
        limit: Number of training images to keep, the first ones in a random order; None keeps all.
        num_workers: Processes that make batches.
        seed: Seed of split, order and augmentation; None takes the one of `seed_everything`.

    Raises:
        ValueError: If the source is unknown or lacks its `path`, a number is out of range, or nothing is held out.

    References:
        RandAugment: E. Cubuk et al., arXiv 1909.13719. Mixup: H. Zhang et al., arXiv 1710.09412. CutMix: S. Yun et al.,
        arXiv 1905.04899.

    Example:
        >>> data = ImageData(batch_size=4)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> tuple(images.shape), data.num_classes
        ((4, 1, 8, 8), 10)
        >>> len(data.dataset("train")), len(data.dataset("val"))
        (1293, 144)
    """

    def __init__(
        self,
        source: Literal["digits", "parquet", "folder", "hub"] = "digits",
        path: str | None = None,
        batch_size: int = 64,
        image_size: int | None = None,
        crop_padding: int = 0,
        flip: bool = False,
        rand_augment: int | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        timm_model: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        val_fraction: float = 0.1,
        limit: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        given = locals()
        for name, check in IMAGE_CHECKS.items():
            check(name, given[name])
        _check_numbers("mean", mean, number(-math.inf, signs="< <"))
        _check_numbers("std", std, number(0, signs="< <"))
        super().__init__()
        if source not in _READERS:
            raise ValueError(f"Expected `source` to be one of {sorted(_READERS)}, but got {source!r}.")
        _, place = _READERS[source]
        if place and not path:
            raise ValueError(f"Expected `path` with source={source!r}: {place}.")
        self.source = source
        self.path = path
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.image_size = image_size
        self.val_fraction = val_fraction
        self.limit = limit
        self.augment: dict[str, Any] = {"crop_padding": crop_padding, "flip": flip, "rand_augment": rand_augment}
        self.mixup = mixup
        self.cutmix = cutmix
        self.mean = mean
        self.std = std
        if timm_model is not None:
            self._follow(timm_model)
        self.seed = default_seed(seed)
        self.splits: dict[str, ImageSource] = {}

    def _follow(self, model: str) -> None:
        """Take what was not given from the configuration of a model of timm."""
        config = require("timm").get_pretrained_cfg(model)
        if config is None:
            raise ValueError(f"Expected `timm_model` to be a model that timm has weights of, but got {model!r}.")
        self.mean = self.mean or list(config.mean)
        self.std = self.std or list(config.std)
        self.image_size = self.image_size or config.input_size[-1]

    def setup(self, stage: str) -> None:
        """Read and split the images, once.

        Args:
            stage: Lightning's name of what is about to run; all splits are made for any of them.

        Raises:
            ValueError: If nothing is held out, or nothing is left to train on.
        """
        if self.splits:
            return
        read, _ = _READERS[self.source]
        splits = dict(read(self.path))
        self._hold_out(splits)
        splits.setdefault("test", splits.get("val"))
        splits.setdefault("val", splits["test"])
        self.mean, self.std = self._measure(splits["train"])
        largest = max(int(split.labels.max()) for split in splits.values())
        self.num_classes = largest + 1
        self.splits = splits

    def _hold_out(self, splits: dict[str, ImageSource]) -> None:
        """Take validation images from `train` where the source has no others, and keep `limit` of the rest."""
        train = splits["train"]
        if len(splits) == 1 and self.val_fraction <= 0:
            raise ValueError(f"Expected `val_fraction` > 0 since '{self.path}' has no other split than `train`.")
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(train), generator=generator)
        count = 0
        if "val" not in splits and self.val_fraction > 0:
            share = round(self.val_fraction * len(train))
            count = max(1, share)
            held_out = order[:count].sort().values
            splits["val"] = train.subset(held_out)
        kept = order[count:][: self.limit]
        if len(kept) == 0:
            raise ValueError(
                f"Expected more images than the {count} that are held out, but got {len(train)}. Lower `val_fraction` "
                "or give more images."
            )
        splits["train"] = train.subset(kept)

    def _measure(self, train: ImageSource) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel: those given, else those of the training images."""
        mean, std = _IMAGENET
        if train.pixels is not None:
            scaled = train.pixels[:10_000].float() / 255
            mean = scaled.mean((0, 2, 3)).tolist()
            std = scaled.std((0, 2, 3)).clamp(min=1e-3).tolist()
        mean = self.mean or mean
        std = self.std or std
        _check_channels("mean", mean, train.channels)
        _check_channels("std", std, train.channels)
        return mean, std

    def dataset(self, split: str) -> ImageDataset:
        """Return a `split` as a dataset; only `train` is augmented."""
        augment = {}
        if split == "train":
            mix = ImageMix(self.num_classes, self.mixup, self.cutmix) if self.mixup or self.cutmix else None
            augment = {**self.augment, "mix": mix}
        assert self.mean is not None and self.std is not None
        return ImageDataset(
            self.splits[split],
            mean=self.mean,
            std=self.std,
            image_size=self.image_size,
            seed=self.seed,
            **augment,
        )

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled, augmented batches that can be resumed inside an epoch."""
        loader = ResumableLoader(
            self.dataset("train"),
            batch_size=self.batch_size,
            seed=self.seed,
            collate_fn=keep,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        return loader if self.trainer is None else loader.follow(self.trainer)

    def _in_order(self, split: str) -> DataLoader[Any]:
        return DataLoader(
            self.dataset(split),
            batch_size=self.batch_size,
            collate_fn=keep,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the held-out images in order."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test images in order."""
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the test images in order."""
        return self._in_order("test")


def _check_channels(name: str, values: list[float], channels: int) -> None:
    if len(values) not in (1, channels):
        raise ValueError(f"Expected one `{name}` per channel, {channels} in all, but got {len(values)}: {values}.")


def _check_numbers(name: str, values: list[float] | None, check: Check) -> None:
    for value in values or []:
        check(name, value)


_READERS: dict[str, tuple[Any, str | None]] = {
    "digits": (lambda _: read_digits(), None),
    "parquet": (read_parquet, "the folder that holds `train*.parquet` and `test*.parquet`"),
    "folder": (read_folder, "a folder with one folder of images per class, or with `train` and `val` of that kind"),
    "hub": (read_hub_images, "the id of a dataset on the hub, such as `uoft-cs/cifar10`"),
}
