"""Datasets of the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from lightning_gluon.extras import require

__all__ = ["load_dataset", "split_name"]

_NAMES = {"train": ("train",), "val": ("validation", "valid", "val"), "test": ("test",)}


def load_dataset(name: str, config: str | None, *, otherwise: str) -> Any:
    """Load a dataset by its id; code that comes with it is not run.

    Args:
        name: The id.
        config: Name of the dataset's configuration; None for the default.
        otherwise: What to use without a network.

    Returns:
        The splits by name, `train` among them.

    Raises:
        ConnectionError: If the hub cannot be reached or does not know the id.
        ValueError: If there is no split `train`.
    """
    datasets = require("datasets")
    try:
        loaded = datasets.load_dataset(name, config, trust_remote_code=False)
    except Exception as error:  # the hub's client raises a dozen unrelated types when there is no network
        raise ConnectionError(
            f"Expected to load '{name}' from the hub, but: {type(error).__name__}: {error} Without a network use "
            f"{otherwise} with the `path` of a local copy."
        ) from error
    if "train" not in loaded:
        raise ValueError(f"Expected a split `train` in '{name}', but it has {sorted(loaded)}.")
    return loaded


def split_name(loaded: Any, split: str) -> str | None:
    """Return what a dataset calls its split `train`, `val` or `test`, or None if it has none."""
    for name in _NAMES[split]:
        if name in loaded:
            return name
    return None
