"""Where images come from: scikit-learn's digits, parquet files, a folder of images, a dataset on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from recipes.data.encoded import EncodedImage, ImageFile
from recipes.extras import require

__all__ = ["ImageSource", "read_digits", "read_folder", "read_hub_images", "read_parquet", "resize"]

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label", "labels")
_SPLITS = ("train", "val", "test")
_HUB_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val"), "test": ("test",)}
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
        images = [resize(self.items[i].pixels(), size) for i in indices]
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(
                f"Expected images of one shape, but got {sorted(shapes)[:3]}. Set `image_size` to resize them."
            )
        return torch.stack(images)

    def subset(self, indices: Tensor) -> ImageSource:
        """Return the source restricted to `indices`."""
        if self.pixels is not None:
            return ImageSource(self.labels[indices], self.pixels[indices])
        return ImageSource(self.labels[indices], items=_Picked(self.items, indices.tolist()))


class _Picked(Sequence[Any]):
    """A view of some elements of a sequence: a hub dataset must not be copied into a list."""

    def __init__(self, items: Sequence[Any], indices: list[int]) -> None:
        self.items, self.indices = items, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: Any) -> Any:
        return self.items[self.indices[i]]


def resize(images: Tensor, size: int | None) -> Tensor:
    """Scale the shorter side to `size` and crop the middle; images that have that size already are returned as is."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    functional = require("torchvision.transforms.v2.functional", "vision")
    scaled = functional.resize(images, [size], antialias=True)
    return functional.center_crop(scaled, [size, size])


def read_digits() -> dict[str, ImageSource]:
    """Read scikit-learn's 1,797 handwritten digits (8 x 8, one channel); a stratified fifth is the test split.

    Returns:
        The splits `train` and `test`.
    """
    datasets = require("sklearn.datasets", "vision")
    selection = require("sklearn.model_selection", "vision")
    digits = datasets.load_digits()
    pixels = torch.from_numpy(digits.images * (255.0 / 16.0)).round().to(torch.uint8)[:, None]
    source = ImageSource(torch.from_numpy(digits.target).long(), pixels)
    indices = torch.arange(len(source)).numpy()
    train, test = selection.train_test_split(indices, test_size=0.2, random_state=0, stratify=digits.target)
    return {"train": source.subset(torch.from_numpy(train)), "test": source.subset(torch.from_numpy(test))}


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
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    groups = {split: [file for file in files if file.name.startswith(split)] for split in _SPLITS}
    if not groups["train"]:
        raise FileNotFoundError(
            f"Expected `train*.parquet` in '{folder}', but found {[f.name for f in files] or 'no parquet file'}. "
            "Give the folder that holds the parquet files, or use source='digits', which needs no file."
        )
    return {split: _read_parquet_split(found) for split, found in groups.items() if found}


def _read_parquet_split(files: list[Path]) -> ImageSource:
    items: list[EncodedImage] = []
    labels: list[Tensor] = []
    for file in files:
        table = _read_table(file)
        image = _column(table.column_names, _IMAGE_COLUMNS, str(file))
        label = _column(table.column_names, _LABEL_COLUMNS, str(file))
        labels.append(_classes(table[label].to_pylist(), str(file)))
        items += _encoded(table[image].to_pylist(), str(file))
    if not items:
        raise ValueError(f"Expected images, but the files {[f.name for f in files]} have no rows.")
    return _decoded(items, torch.cat(labels))


def _read_table(file: Path) -> Any:
    parquet = require("pyarrow.parquet", "vision")
    arrow_error = require("pyarrow", "vision").ArrowException
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
        blob = value.get("bytes") if isinstance(value, dict) else value
        yield EncodedImage(blob, table, row)


def _classes(values: Sequence[Any], table: str) -> Tensor:
    """Return labels as class indices; a whole number that is stored as a float is one."""
    for row, value in enumerate(values):
        if not (isinstance(value, (int, float)) and 0 <= value < _MOST_CLASSES and value == int(value)):
            raise ValueError(
                f"Expected class indices, whole numbers from 0 to {_MOST_CLASSES - 1:,}, but the label in row {row} of "
                f"'{table}' is {value!r}."
            )
    return torch.tensor([int(value) for value in values], dtype=torch.long)


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
    roots = {split: root / split for split in _SPLITS if (root / split).is_dir()}
    if roots and "train" not in roots:
        raise FileNotFoundError(f"Expected a folder `train` in '{root}' beside {sorted(roots)}, but there is none.")
    splits: dict[str, ImageSource] = {}
    classes: dict[str, int] = {}
    for split, place in (roots or {"train": root}).items():
        found = _image_folder(place)
        classes = classes or found.class_to_idx  # a split that lacks a class would count from its own first one
        unknown = sorted(set(found.classes) - set(classes))
        if unknown:
            raise ValueError(f"Expected the classes of `train` in '{place}', but it also has {unknown[:5]}.")
        labels = torch.tensor([classes[found.classes[label]] for label in found.targets])
        splits[split] = ImageSource(labels, items=[ImageFile(file) for file, _ in found.samples])
    return splits


def _image_folder(place: Path) -> Any:
    try:
        return require("torchvision.datasets", "vision").ImageFolder(str(place))
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
    datasets = require("datasets", None)
    try:
        loaded = datasets.load_dataset(name, trust_remote_code=False)
    except Exception as error:  # the hub's client raises a dozen unrelated types when there is no network
        raise ConnectionError(
            f"Expected to load '{name}' from the hub, but: {type(error).__name__}: {error} Without a network use "
            "source='digits' (embedded) or source='parquet' with the `path` of a local copy."
        ) from error
    if "train" not in loaded:
        raise ValueError(f"Expected a split `train` in '{name}', but it has {sorted(loaded)}.")
    splits = {}
    for split, names in _HUB_SPLITS.items():
        for found in names:
            if found in loaded:
                splits[split] = _hub_split(loaded[found], f"{name} ({found})", datasets.Image(decode=False))
                break
    return splits


def _hub_split(table: Any, name: str, encoded: Any) -> ImageSource:
    image = _column(table.column_names, _IMAGE_COLUMNS, name)
    label = _column(table.column_names, _LABEL_COLUMNS, name)
    labels = _classes(list(table[label]), name)
    rows = table.select_columns(image).cast_column(image, encoded)
    return ImageSource(labels, items=_HubImages(rows, image, name))


class _HubImages(Sequence[Encoded]):
    """Images of a hub dataset, encoded, each read when it is asked for."""

    def __init__(self, rows: Any, column: str, name: str) -> None:
        self.rows, self.column, self.name = rows, column, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        value = self.rows[i][self.column] or {}
        if value.get("bytes") is None and value.get("path"):
            return ImageFile(value["path"])
        return EncodedImage(value.get("bytes"), self.name, i)
