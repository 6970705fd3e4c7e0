"""Sources of images: scikit-learn's digits, parquet files, a folder of images, a dataset on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_gluon.extras import require
from lightning_gluon.tasks.data.encoded import EncodedImage, ImageFile
from lightning_gluon.tasks.data.hub import load_dataset, split_name

__all__ = ["ImageSource", "read_digits", "read_folder", "read_hub_images", "read_parquet", "resize"]

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label", "labels")
_SPLITS = ("train", "val", "test")
_IN_MEMORY = 1 << 30  # bytes of decoded images that are kept; above, images are decoded when they are asked for
_MOST_CLASSES = 1_000_000


class Encoded(Protocol):
    """An image that can be decoded, and says where it is if it cannot."""

    def pixels(self) -> Tensor:
        """Return the decoded image `(c, h, w)` as bytes."""


@dataclass(frozen=True)
class ImageSource:
    """Images with labels, decoded or yet to be decoded.

    Args:
        labels: Class indices, shape `(n,)`.
        pixels: Decoded images `(n, c, h, w)` as bytes, where all have one shape and fit into memory.
        items: Encoded images, where they do not.
    """

    labels: Tensor
    pixels: Tensor | None = None
    items: Sequence[Encoded] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Channels of every image; those that are decoded on demand are coloured."""
        return 3 if self.pixels is None else self.pixels.shape[1]

    def images(self, indices: Sequence[int], size: int | None) -> Tensor:
        """Return the images at `indices` as bytes `(len(indices), c, h, w)`, resized to `size` where it is given."""
        if self.pixels is not None:
            return resize(self.pixels[torch.as_tensor(indices)], size)
        images = []
        for i in indices:
            pixels = self.items[i].pixels()
            images.append(resize(pixels, size))
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            few = sorted(shapes)[:3]
            raise ValueError(f"Expected images of one shape, but got {few}. Set `image_size` to resize them.")
        return torch.stack(images)

    def subset(self, indices: Tensor) -> ImageSource:
        """Return the source restricted to `indices`."""
        labels = self.labels[indices]
        if self.pixels is not None:
            return ImageSource(labels, self.pixels[indices])
        picked = _Picked(self.items, indices.tolist())
        return ImageSource(labels, items=picked)


class _Picked(Sequence[Any]):
    """A view of some elements of a sequence: a hub dataset must not be copied into a list."""

    def __init__(self, items: Sequence[Any], indices: list[int]) -> None:
        self.items = items
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: Any) -> Any:
        return self.items[self.indices[i]]


def resize(images: Tensor, size: int | None) -> Tensor:
    """Scale the shorter side to `size` and crop the middle; images that have that size already are returned as is."""
    if size is None:
        return images
    target = (size, size)
    if images.shape[-2:] == target:
        return images
    functional = require("torchvision.transforms.v2.functional")
    scaled = functional.resize(images, [size], antialias=True)
    return functional.center_crop(scaled, target)


def read_digits() -> dict[str, ImageSource]:
    """Read scikit-learn's 1,797 handwritten digits (8 x 8, one channel); a stratified fifth is the test split.

    Returns:
        The splits `train` and `test`.
    """
    datasets = require("sklearn.datasets")
    selection = require("sklearn.model_selection")
    digits = datasets.load_digits()
    labels = torch.from_numpy(digits.target).long()
    sixteenths = torch.from_numpy(digits.images)
    pixels = (sixteenths * (255 / 16)).round().to(torch.uint8)
    source = ImageSource(labels, pixels.unsqueeze(1))
    indices = torch.arange(len(source)).numpy()
    train, test = selection.train_test_split(
        indices,
        test_size=0.2,
        random_state=0,
        stratify=digits.target,
    )
    splits = {}
    for name, part in (("train", train), ("test", test)):
        chosen = torch.from_numpy(part)
        splits[name] = source.subset(chosen)
    return splits


def read_parquet(path: str | Path) -> dict[str, ImageSource]:
    """Read a folder of parquet files in the hub's column layout (`img` or `image`, `label`).

    The split is the beginning of the file's name: `train*.parquet`, `val*.parquet`, `test*.parquet`.

    Args:
        path: The folder, or its `data` folder's parent.

    Returns:
        The splits that were found, `train` among them.

    Raises:
        FileNotFoundError: If there is no training file.
        ValueError: If a row has no image or no class.
    """
    folder = Path(path).expanduser()
    files = sorted(folder.glob("*.parquet"))
    if not files:
        files = sorted(folder.glob("data/*.parquet"))
    splits = {}
    for split in _SPLITS:
        found = [file for file in files if file.name.startswith(split)]
        if found:
            splits[split] = _read_parquet_split(found)
    if "train" not in splits:
        names = [file.name for file in files]
        raise FileNotFoundError(
            f"Expected `train*.parquet` in '{folder}', but found {names or 'no parquet file'}. "
            "Give the folder that holds the parquet files, or use source='digits', which needs no file."
        )
    return splits


def _read_parquet_split(files: list[Path]) -> ImageSource:
    items: list[EncodedImage] = []
    labels: list[Tensor] = []
    for file in files:
        table, place = _read_table(file), str(file)
        image = _column(table.column_names, _IMAGE_COLUMNS, place)
        label = _column(table.column_names, _LABEL_COLUMNS, place)
        classes = _classes(table[label].to_pylist(), place)
        labels.append(classes)
        items += _encoded(table[image].to_pylist(), place)
    if not items:
        names = [file.name for file in files]
        raise ValueError(f"Expected images, but the files {names} have no rows.")
    return _decoded(items, torch.cat(labels))


def _read_table(file: Path) -> Any:
    parquet = require("pyarrow.parquet")
    arrow_error = require("pyarrow").ArrowException
    if not file.is_file():  # reading a device may never end
        raise ValueError(f"Expected a readable parquet file, but '{file}' is a device, a pipe or a link to nothing.")
    try:
        return parquet.read_table(file)
    except (arrow_error, OSError) as error:
        raise ValueError(f"Expected a readable parquet file, but '{file}' is not: {error}") from error


def _column(names: list[str], wanted: tuple[str, ...], table: str) -> str:
    for name in wanted:
        if name in names:
            return name
    raise ValueError(f"Expected a column out of {wanted} in '{table}', but it has {names}.")


def _encoded(values: list[Any], table: str) -> Iterator[EncodedImage]:
    for row, value in enumerate(values):
        if isinstance(value, dict):
            value = value.get("bytes")
        yield EncodedImage(value, table, row)


def _classes(values: Sequence[Any], table: str) -> Tensor:
    """Return labels as class indices."""
    for row, value in enumerate(values):
        if not _is_class(value):
            raise ValueError(
                f"Expected class indices, whole numbers from 0 to {_MOST_CLASSES - 1:,}, but the label in row {row} of "
                f"'{table}' is {value!r}."
            )
    return torch.tensor([int(value) for value in values], dtype=torch.long)


def _is_class(value: Any) -> bool:
    """Tell whether a label is a class index; a whole number that is stored as a float is one."""
    if not isinstance(value, (int, float)):
        return False
    return 0 <= value < _MOST_CLASSES and value == int(value)


def _decoded(items: Sequence[Encoded], labels: Tensor) -> ImageSource:
    """Decode everything where the images are alike and small, leave them encoded where not."""
    first = items[0].pixels()
    if first.numel() * len(items) > _IN_MEMORY:
        return ImageSource(labels, items=items)
    images = []
    for item in items:
        image = item.pixels()
        if image.shape != first.shape:
            return ImageSource(labels, items=items)
        images.append(image)
    return ImageSource(labels, torch.stack(images))


def read_folder(path: str | Path) -> dict[str, ImageSource]:
    """Read `path/train/<class>/*.png`, `path/val/<class>/...`, `path/test/...`; or `path/<class>/...` as `train`.

    The classes are those of `train`, in alphabetical order; another split may lack some.

    Args:
        path: The folder.

    Returns:
        The splits that were found, `train` among them.

    Raises:
        FileNotFoundError: If the folder is missing or holds no image.
        ValueError: If `train` lacks a class that another split has.
    """
    root = Path(path).expanduser()
    folders = {}
    for split in _SPLITS:
        place = root / split
        if place.is_dir():
            folders[split] = place
    if not folders:
        folders["train"] = root
    if "train" not in folders:
        names = sorted(folders)
        raise FileNotFoundError(f"Expected a folder `train` in '{root}' beside {names}, but there is none.")
    found = {split: _image_folder(place) for split, place in folders.items()}
    classes = found["train"].class_to_idx
    return {split: _folder_split(images, classes) for split, images in found.items()}


def _folder_split(found: Any, classes: dict[str, int]) -> ImageSource:
    """Return a split's images; one that lacks a class would count its own from the first it has."""
    unknown = set(found.classes).difference(classes)
    if unknown:
        few = sorted(unknown)[:5]
        raise ValueError(f"Expected the classes of `train` in '{found.root}', but it also has {few}.")
    items, labels = [], []
    for file, label in found.samples:
        name = found.classes[label]
        items.append(ImageFile(file))
        labels.append(classes[name])
    return ImageSource(torch.tensor(labels), items=items)


def _image_folder(place: Path) -> Any:
    try:
        return require("torchvision.datasets").ImageFolder(str(place))
    except OSError as error:
        raise FileNotFoundError(
            f"Expected '{place}' to hold one folder of images per class, but: {error} "
            "Give another `path`, or use source='digits', which needs no file."
        ) from error


def read_hub_images(name: str) -> dict[str, ImageSource]:
    """Read an image dataset from the Hugging Face hub by its id, such as `uoft-cs/cifar10` or `zh-plus/tiny-imagenet`.

    Args:
        name: The id.

    Returns:
        The splits that were found, `train` among them.

    Raises:
        ConnectionError: If the hub cannot be reached or does not know the id.
        ValueError: If there is no split `train`, or no column with images or labels.
    """
    loaded = load_dataset(name, None, otherwise="source='digits' (embedded) or source='parquet'")
    splits = {}
    for split in _SPLITS:
        found = split_name(loaded, split)
        if found is not None:
            splits[split] = _hub_split(loaded[found], f"{name} ({found})")
    return splits


def _hub_split(table: Any, name: str) -> ImageSource:
    image = _column(table.column_names, _IMAGE_COLUMNS, name)
    label = _column(table.column_names, _LABEL_COLUMNS, name)
    values = list(table[label])
    labels = _classes(values, name)
    datasets = require("datasets")
    as_stored = datasets.Image(decode=False)
    rows = table.select_columns(image).cast_column(image, as_stored)
    return ImageSource(labels, items=_HubImages(rows, image, name))


class _HubImages(Sequence[Encoded]):
    """Images of a hub dataset, encoded, each read when it is asked for."""

    def __init__(self, rows: Any, column: str, name: str) -> None:
        self.rows = rows
        self.column = column
        self.name = name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        row = self.rows[i]
        value = row[self.column] or {}
        blob = value.get("bytes")
        path = value.get("path")
        if blob is None and path:
            return ImageFile(path)
        return EncodedImage(blob, self.name, i)
