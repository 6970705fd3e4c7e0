"""Configurations of transformers: by model type, class, folder or hub id, with entries that exist."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_gluon.extras import require

if typing.TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["ConfigValues", "configuration", "suggest"]

# Arguments of a model, or entries of its configuration.
ConfigValues: typing.TypeAlias = Mapping[str, Any]


def configuration(name: str, entries: ConfigValues) -> PreTrainedConfig:
    """Return a configuration of transformers with some entries replaced, each of which has to exist.

    transformers itself would keep an unknown entry and build another model than was meant.

    Args:
        name: A model type (`qwen2`), a class of configurations (`Qwen2Config`), a hub id or a folder.
        entries: Entries that replace the defaults.

    Returns:
        The configuration.

    Raises:
        ValueError: If the name or an entry is unknown.
        ConnectionError: If a hub id is not in the local cache and the hub cannot be reached.

    Example:
        >>> configuration("qwen2", {"num_hidden_layers": 2}).num_hidden_layers
        2
    """
    transformers = require("transformers")
    if "/" in name or Path(name).is_dir():
        _check_entries(_read_config(name, {}), entries)
        return _read_config(name, entries)
    cls = _class_of_configurations(transformers, name)
    _check_entries(cls(), entries)
    return cls(**entries)


def _class_of_configurations(transformers: ModuleType, name: str) -> type[PreTrainedConfig]:
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedConfig):
        return found
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if name not in known:
        raise ValueError(f"Expected a model type of transformers, but got {name!r}.{suggest(name, known)}")
    return type(transformers.AutoConfig.for_model(name))


def _check_entries(default: PreTrainedConfig, entries: ConfigValues) -> None:
    for entry in entries:
        if not hasattr(default, entry):
            near = suggest(entry, default.to_dict())
            raise ValueError(f"Expected entries of {type(default).__name__}, but got {entry!r}.{near}")


def _read_config(name: str, entries: ConfigValues) -> PreTrainedConfig:
    """Read a configuration of a folder or the hub; code that comes with it is not run."""
    transformers = require("transformers")
    try:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **entries)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"Expected '{name}' to be a folder with a `config.json`, or an id that the hub or its cache has, but: "
            f"{_first_line(error)} Without a network give a model type and its entries, such as qwen2 with "
            '{"hidden_size": 896}.'
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the names that are like another one, or nothing.

    Args:
        name: A name that is not known.
        known: Names that are.

    Returns:
        A sentence with a space before it, or an empty string.

    Example:
        >>> suggest("quen2", ["qwen2", "mamba"])
        ' Similar names: qwen2.'
    """
    similar = difflib.get_close_matches(name, known, n=5)
    return f" Similar names: {', '.join(similar)}." if similar else ""
