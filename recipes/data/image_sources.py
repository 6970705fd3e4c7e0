"""Where images come from: scikit-learn's digits, parquet files, a folder of images, a dataset on the hub."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.extras import require

__all__ = ["ImageSource", "read_digits", "read_folder", "read_hub_images", "read_parquet"]

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label", "labels")
_IN_MEMORY = 1 << 30  # bytes of decoded images that are kept; above, images are decoded when they are asked for


@dataclass(frozen=True)
class ImageSource:
    """Images with labels, decoded or yet to be decoded.

    Args:
        labels: Class indices, shape `(n,)`.
        pixels: Decoded images `(n, c, h, w)` as bytes, where all have one shape and fit into memory.
        items: Whatever `decode` turns into an image, where they do not.
        decode: Maps an item to a `(c, h, w)` tensor of bytes.
    """

    labels: Tensor
    pixels: Tensor | None = None
    items: Sequence[Any] | None = None
    decode: Callable[[Any], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Sequence[int], size: int | None) -> Tensor:
        """Return the images at `indices` as bytes `(len(indices), c, h, w)`, resized to `size` where it is given."""
        if self.pixels is not None:
            return resize(self.pixels[torch.as_tensor(indices)], size)
        assert self.items is not None and self.decode is not None
        images = [resize(self.decode(self.items[i])[None], size) for i in indices]
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(
                f"Expected images of one shape, but got {sorted(shapes)[:3]}. Set `image_size` to resize them."
            )
        return torch.cat(images)

    def subset(self, indices: Tensor) -> ImageSource:
        """Return the source restricted to `indices`."""
        pixels = None if self.pixels is None else self.pixels[indices]
        items = None if self.items is None else _Picked(self.items, indices.tolist())
        return ImageSource(self.labels[indices], pixels, items, self.decode)


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
    height, width = images.shape[-2:]
    if size is None or (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    new = (max(size, round(height * scale)), max(size, round(width * scale)))
    scaled = (
        torch.nn.functional.interpolate(images.float(), new, mode="bilinear", antialias=True).round_().clamp_(0, 255)
    )
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return scaled[..., top : top + size, left : left + size].to(torch.uint8)


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
    """
    folder = Path(path).expanduser()
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    groups = {split: [f for f in files if f.name.startswith(split)] for split in ("train", "val", "test")}
    if not groups["train"]:
        raise FileNotFoundError(
            f"Expected `train*.parquet` in '{folder}', but found {[f.name for f in files] or 'no parquet file'}. "
            "Give the folder that holds the parquet files, or use source='digits', which needs no file."
        )
    return {split: _read_parquet_split(paths) for split, paths in groups.items() if paths}


def _read_parquet_split(files: list[Path]) -> ImageSource:
    parquet = require("pyarrow.parquet", "vision")
    blobs: list[Any] = []
    labels: list[int] = []
    for file in files:
        try:
            table = parquet.read_table(file)
        except (OSError, ValueError) as error:  # pyarrow's errors derive from both
            raise ValueError(f"Expected a readable parquet file, but '{file}' is not: {error}") from error
        image = _column(table.column_names, _IMAGE_COLUMNS, file)
        label = _column(table.column_names, _LABEL_COLUMNS, file)
        blobs += [value["bytes"] if isinstance(value, dict) else value for value in table[image].to_pylist()]
        labels += table[label].to_pylist()
    if not labels:
        raise ValueError(f"Expected images, but the files {[f.name for f in files]} have no rows.")
    return _decoded(blobs, torch.tensor(labels), _decode_bytes)


def _column(names: list[str], wanted: tuple[str, ...], file: Path) -> str:
    for name in wanted:
        if name in names:
            return name
    raise ValueError(f"Expected a column out of {wanted} in '{file}', but it has {names}.")


def _decode_bytes(blob: bytes) -> Tensor:
    image = require("PIL.Image", "vision")
    try:
        with image.open(io.BytesIO(blob)) as opened:
            return _to_tensor(opened)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"Expected an encoded image (PNG, JPEG), but the bytes cannot be decoded: {error}") from error


def _decode_file(path: str) -> Tensor:
    try:
        return _decode_bytes(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"Expected an image file, but '{path}' cannot be decoded: {error}") from error


def _to_tensor(image: Any) -> Tensor:
    if image.mode[0] in "IF":  # `convert` cuts off above 255
        image = _eight_bits(image)
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)  # some sets mix grey and coloured images


def _eight_bits(image: Any) -> Any:
    """Scale a grey image of 16 bits to 8."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose scale is not known. Save it with 8 or 16 bits.")
    grey = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
    scaled = (grey.float() / 257).round().clamp(0, 255).to(torch.uint8)
    return require("PIL.Image", "vision").frombytes("L", image.size, scaled.numpy().tobytes())


def _decoded(items: Sequence[Any], labels: Tensor, decode: Callable[[Any], Tensor]) -> ImageSource:
    """Decode everything where the images are alike and small, leave them encoded where not."""
    first = decode(items[0])
    if first.numel() * len(items) > _IN_MEMORY:
        return ImageSource(labels, items=items, decode=decode)
    images = []
    for item in items:
        image = decode(item)
        if image.shape != first.shape:
            return ImageSource(labels, items=items, decode=decode)
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
    folder = require("torchvision.datasets", "vision").ImageFolder
    root = Path(path).expanduser()
    roots = {split: root / split for split in ("train", "val", "test") if (root / split).is_dir()}
    if roots and "train" not in roots:
        raise FileNotFoundError(f"Expected a folder `train` in '{root}' beside {sorted(roots)}, but there is none.")
    splits: dict[str, ImageSource] = {}
    classes: dict[str, int] = {}
    for split, place in (roots or {"train": root}).items():
        try:
            found = folder(str(place))
        except (FileNotFoundError, OSError) as error:
            raise FileNotFoundError(
                f"Expected '{place}' to hold one folder of images per class, but: {error} "
                "Give another `path`, or use source='digits', which needs no file."
            ) from error
        classes = classes or found.class_to_idx  # a split that lacks a class would count from its own first one
        if unknown := sorted(set(found.classes) - set(classes)):
            raise ValueError(f"Expected the classes of `train` in '{place}', but it also has {unknown[:5]}.")
        labels = torch.tensor([classes[found.classes[label]] for label in found.targets])
        splits[split] = ImageSource(labels, items=[file for file, _ in found.samples], decode=_decode_file)
    return splits


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
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the hub's client raises a dozen unrelated types when there is no network
        raise ConnectionError(
            f"Expected to load '{name}' from the hub, but: {type(error).__name__}: {error} Without a network use "
            "source='digits' (embedded) or source='parquet' with the `path` of a local copy."
        ) from error
    if "train" not in loaded:
        raise ValueError(f"Expected a split `train` in '{name}', but it has {sorted(loaded)}.")
    splits = {}
    for split, names in (("train", ("train",)), ("val", ("validation", "valid", "val")), ("test", ("test",))):
        found = next((n for n in names if n in loaded), None)
        if found is None:
            continue
        table = loaded[found]
        image = _column(table.column_names, _IMAGE_COLUMNS, Path(name))
        label = _column(table.column_names, _LABEL_COLUMNS, Path(name))
        splits[split] = ImageSource(
            torch.tensor(table[label]), items=table.select_columns(image), decode=_Decode(image)
        )
    return splits


@dataclass(frozen=True)
class _Decode:
    """Decode a row of a hub dataset; a class, because workers have to pickle it."""

    column: str

    def __call__(self, row: dict[str, Any]) -> Tensor:
        return _to_tensor(row[self.column])
