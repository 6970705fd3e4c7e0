"""Batches of images for classification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_gluon.valid import Check, number, whole
from recipes.data.image_sources import ImageSource, read_digits, read_folder, read_hub_images, read_parquet
from recipes.data.loader import ResumableLoader, default_seed

__all__ = ["ImageData", "ImageDataset"]

_CHECKS = {
    "batch_size": whole(1),
    "image_size": whole(1, none="the images' own size"),
    "crop_padding": whole(),
    "val_fraction": number(0, 1),
    "limit": whole(1, none="all"),
    "num_workers": whole(),
}
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
        seed: int = 0,
    ) -> None:
        self.source, self.image_size, self.seed = source, image_size, seed
        self.crop_padding, self.flip = crop_padding, flip
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's augmentation."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = self.source.images(indices, self.image_size)
        key = ((self.seed * 1_000_003 + self.epoch) * 1_000_003 + int(indices[0])) % (1 << 63)
        generator = torch.Generator().manual_seed(key)
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, generator)
        if self.flip:
            mirror = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirror.view(-1, 1, 1, 1), images.flip(-1), images)
        return (images.float() / 255 - self.mean) / self.std, self.source.labels[torch.as_tensor(indices)]


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad by `padding` zeros and crop every image back to its size at a random place."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1, 1), generator=generator)
    rows = top + torch.arange(height).view(1, -1, 1)
    columns = left + torch.arange(width).view(1, 1, -1)
    return padded.permute(0, 2, 3, 1)[torch.arange(count).view(-1, 1, 1), rows, columns].permute(0, 3, 1, 2)


def keep(batch: Any) -> Any:
    """Return a batch as it is: the dataset has made it whole already."""
    return batch


class ImageData(LightningDataModule):
    """Images and class labels, from an embedded set, local files or the hub.

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
        mean: Per channel; None measures it on decoded training images, and takes ImageNet's for encoded ones.
        std: Like `mean`.
        val_fraction: Part of the training split that is held out where the source has no validation split.
        limit: Number of training images to keep, the first ones in a random order; None keeps all.
        num_workers: Processes that make batches.
        seed: Seed of split, order and augmentation; None takes the one of `seed_everything`.

    Raises:
        ValueError: If the source is unknown or lacks its `path`, a number is out of range, or nothing is held out.

    Example:
        >>> data = ImageData(batch_size=4)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> tuple(images.shape), data.num_classes
        ((4, 1, 8, 8), 10)
    """

    def __init__(
        self,
        source: Literal["digits", "parquet", "folder", "hub"] = "digits",
        path: str | None = None,
        batch_size: int = 64,
        image_size: int | None = None,
        crop_padding: int = 0,
        flip: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        val_fraction: float = 0.1,
        limit: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        given = locals()
        for name, check in _CHECKS.items():
            check(name, given[name])
        _check_numbers("mean", mean, number(-math.inf, signs="< <"))
        _check_numbers("std", std, number(0, signs="< <"))
        super().__init__()
        if source not in _READERS:
            raise ValueError(f"Expected `source` to be one of {sorted(_READERS)}, but got {source!r}.")
        if source != "digits" and not path:
            raise ValueError(f"Expected `path` with source={source!r}: {_READERS[source][1]}.")
        self.source, self.path, self.batch_size, self.num_workers = source, path, batch_size, num_workers
        self.image_size, self.val_fraction, self.limit = image_size, val_fraction, limit
        self.augment: dict[str, Any] = {"crop_padding": crop_padding, "flip": flip}
        self.mean, self.std = mean, std
        self.seed = default_seed(seed)
        self.splits: dict[str, ImageSource] = {}

    def setup(self, stage: str) -> None:
        """Read and split the images, once.

        Args:
            stage: Lightning's name of what is about to run; all splits are made for any of them.

        Raises:
            ValueError: If nothing is held out.
        """
        if self.splits:
            return
        splits = dict(_READERS[self.source][0](self.path))
        if len(splits) == 1 and self.val_fraction <= 0:
            raise ValueError(f"Expected `val_fraction` > 0 since '{self.path}' has no other split than `train`.")
        order = torch.randperm(len(splits["train"]), generator=torch.Generator().manual_seed(self.seed))
        held_out = 0
        if "val" not in splits and self.val_fraction > 0:
            held_out = max(1, round(self.val_fraction * len(order)))
            splits["val"] = splits["train"].subset(order[:held_out].sort().values)
        splits["train"] = splits["train"].subset(order[held_out:][: self.limit])
        splits.setdefault("test", splits.get("val"))
        splits.setdefault("val", splits["test"])
        self.splits = splits
        self.num_classes = 1 + max(int(split.labels.max()) for split in splits.values())
        self._measure()

    def _measure(self) -> None:
        train = self.splits["train"]
        if train.pixels is None:
            mean, std = _IMAGENET
        else:
            scaled = train.pixels[:10_000].float() / 255
            mean = scaled.mean((0, 2, 3)).tolist()
            std = scaled.std((0, 2, 3)).clamp(min=1e-3).tolist()
        self.mean, self.std = self.mean or mean, self.std or std
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, train.channels):
                raise ValueError(
                    f"Expected one `{name}` per channel, {train.channels} in all, but got {len(values)}: {values}."
                )

    def dataset(self, split: str) -> ImageDataset:
        """Return a split as a dataset; only `train` is augmented."""
        augment = self.augment if split == "train" else {}
        assert self.mean is not None and self.std is not None
        return ImageDataset(
            self.splits[split], mean=self.mean, std=self.std, image_size=self.image_size, seed=self.seed, **augment
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
            self.dataset(split), batch_size=self.batch_size, collate_fn=keep, num_workers=self.num_workers
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


def _check_numbers(name: str, values: list[float] | None, check: Check) -> None:
    for value in values or []:
        check(name, value)


_READERS: dict[str, tuple[Any, str]] = {
    "digits": (lambda _: read_digits(), "needs none"),
    "parquet": (read_parquet, "the folder that holds `train*.parquet` and `test*.parquet`"),
    "folder": (read_folder, "a folder with one folder of images per class, or with `train` and `val` of that kind"),
    "hub": (read_hub_images, "the id of a dataset on the hub, such as `uoft-cs/cifar10`"),
}
