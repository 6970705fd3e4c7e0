"""The recipes' sources at their edges: unusual images, classes, documents, tokenizers and hub datasets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.data import ImageData
from recipes.data.image_sources import read_folder

Image = pytest.importorskip("PIL.Image")


def encoded(image: Any, kind: str = "PNG") -> bytes:
    """Return the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_classes(folder: Path, classes: Sequence[str], count: int = 3) -> None:
    """Write images of one colour per class."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(encoded(Image.new("RGB", (4, 4), (ord(name[0]), i, 0))))


# --------------------------------------------------------------------------------------------------------------- images


def test_a_split_that_lacks_a_class_keeps_the_labels(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ["ant", "bee", "cat"])
    write_classes(tmp_path / "val", ["bee", "cat"])
    val = read_folder(tmp_path)["val"]
    assert val.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert val.images([0, 5], None)[:, 0, 0, 0].tolist() == [ord("b"), ord("c")]
    write_classes(tmp_path / "test", ["bee", "dog"])
    with pytest.raises(ValueError, match=r"the classes of `train` in .*test', but it also has \['dog'\]"):
        read_folder(tmp_path)


def test_a_folder_with_splits_but_no_training_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", ["bee", "cat"])
    with pytest.raises(FileNotFoundError, match=r"a folder `train` in .* beside \['val'\]"):
        read_folder(tmp_path)


def test_training_images_are_not_validated_on(tmp_path: Path) -> None:
    write_classes(tmp_path, ["ant", "bee"])
    with pytest.raises(ValueError, match=r"`val_fraction` > 0 since '.*' has no other split than `train`"):
        ImageData("folder", str(tmp_path), val_fraction=0).setup("fit")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_images_of_sixteen_bits_are_scaled(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 257, 300], [32896, 65535, 65535]], np.uint16)
    write_classes(tmp_path, ["ant", "bee"])
    (tmp_path / "ant" / "0.png").write_bytes(encoded(Image.fromarray(values), kind))
    image = read_folder(tmp_path)["train"].images([0], None)[0]
    assert image.dtype == torch.uint8
    assert image.tolist() == [[[0, 1, 1], [128, 255, 255]]] * 3
    (tmp_path / "ant" / "0.png").write_bytes(encoded(Image.fromarray(values.astype(np.float32)), "TIFF"))
    with pytest.raises(ValueError, match=r"0.png' cannot be decoded: .* floating-point numbers"):
        read_folder(tmp_path)["train"].images([0], None)
