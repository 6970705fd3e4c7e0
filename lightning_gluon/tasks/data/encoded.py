"""Encoded images that know where they come from, so that one that cannot be decoded is named."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.extras import require

__all__ = ["EncodedImage", "ImageFile"]

_MOST_PIXELS = 1 << 25  # pixels, 100 MB once decoded; a file of a few kB can claim far more
# What training sets are made of. Pillow would run another program for some of the other formats.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file, in a row of a table.

    Args:
        blob: The bytes.
        table: File or dataset that the row is in.
        row: Number of the row, from 0.
    """

    blob: bytes | None
    table: str
    row: int

    def pixels(self) -> Tensor:
        """Return the decoded image `(3, h, w)` as bytes."""
        return _decode(self.blob, f"row {self.row} of '{self.table}'")


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own.

    Args:
        path: The file.
    """

    path: str

    def pixels(self) -> Tensor:
        """Return the decoded image `(3, h, w)` as bytes.

        Raises:
            ValueError: If the file is none of finite length, or no image.
        """
        file = Path(self.path)
        if not file.is_file():  # reading a device may never end
            raise ValueError(
                f"Expected an image file, but '{self.path}' is a device, a pipe or a link to nothing. Remove it."
            )
        return _decode(file.read_bytes(), f"'{self.path}'")


def _decode(blob: bytes | None, place: str) -> Tensor:
    image = require("PIL.Image")
    if blob is None:
        raise ValueError(f"Expected an encoded image (PNG, JPEG, ...), but {place} has none.")
    try:
        with image.open(io.BytesIO(blob), formats=_FORMATS) as opened:
            _check_size(*opened.size)
            return _to_tensor(opened)
    except Exception as error:  # Pillow's formats raise whatever comes to them
        reason = "its format is not known" if isinstance(error, image.UnidentifiedImageError) else error
        raise ValueError(
            f"Expected an encoded image (PNG, JPEG, ...), but {place} cannot be decoded: {reason}"
        ) from error


def _check_size(width: int, height: int) -> None:
    if width * height > _MOST_PIXELS:
        raise ValueError(
            f"it has {width} x {height} pixels, more than the {_MOST_PIXELS:,} that are decoded. Make it smaller first"
        )


def _to_tensor(image: Any) -> Tensor:
    if image.mode[0] in "IF":  # `convert` cuts off above 255
        image = _eight_bits(image)
    coloured = image.convert("RGB")  # some sets mix grey and coloured images
    blob = bytearray(coloured.tobytes())
    pixels = torch.frombuffer(blob, dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def _eight_bits(image: Any) -> Any:
    """Scale a grey image of 16 bits to 8."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose scale is not known. Save it with 8 or 16 bits")
    blob = bytearray(image.convert("I").tobytes())
    grey = torch.frombuffer(blob, dtype=torch.int32).float()
    scaled = (grey / 257).round().clamp(0, 255)
    values = scaled.to(torch.uint8).numpy()
    pillow = require("PIL.Image")
    return pillow.frombytes("L", image.size, values.tobytes())
