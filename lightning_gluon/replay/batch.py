"""Copies of batches: a training step may write to its batch, or pop entries from it, and still be run again."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn import Module

Memo: TypeAlias = dict[int, Any]


def copy_batch(batch: object, memo: Memo | None = None) -> Any:
    """Return a copy of a batch down to its tensors: tuples, lists, mappings and dataclasses are followed.

    Args:
        batch: Anything a data loader may give.
        memo: Copies made so far, so that an object that occurs twice is copied once.

    Returns:
        The copy. Objects that can be moved to a device, such as graphs, are copied whole; others are the same objects.

    Example:
        >>> import torch
        >>> batch = {"x": torch.zeros(1), "name": "a"}
        >>> other = copy_batch(batch)
        >>> _ = batch.pop("name"), batch["x"].add_(1)
        >>> other
        {'x': tensor([0.]), 'name': 'a'}
    """
    if memo is None:
        memo = {}
    key = id(batch)
    if key not in memo:
        memo[key] = _copy(batch, memo)
        kept = memo.setdefault(id(memo), [])  # as `deepcopy` does: an object let go of would lend out its id
        kept.append(batch)
    return memo[key]


def _copy(batch: object, memo: Memo) -> Any:
    if isinstance(batch, Tensor):
        twin = batch.detach().clone()
        return twin.requires_grad_(batch.requires_grad)
    if isinstance(batch, tuple):
        return _copy_tuple(batch, memo)
    if isinstance(batch, list):
        other = copy.copy(batch)
        other[:] = [copy_batch(item, memo) for item in batch]
        return other
    if isinstance(batch, MutableMapping):
        return _copy_mapping(batch, memo)
    if isinstance(batch, (type, Module)):
        return batch
    if is_dataclass(batch):
        return _copy_dataclass(batch, memo)
    return _copy_whole(batch, memo)


def _copy_tuple(batch: tuple, memo: Memo) -> tuple:
    items = [copy_batch(item, memo) for item in batch]
    pairs = zip(items, batch, strict=True)
    if all(one is other for one, other in pairs):
        return batch
    kind: Any = type(batch)
    if hasattr(batch, "_fields"):  # a named tuple
        return kind(*items)
    return kind(items)


def _copy_mapping(batch: MutableMapping, memo: Memo) -> MutableMapping:
    other = copy.copy(batch)
    for key, value in batch.items():
        other[key] = copy_batch(value, memo)
    return other


def _copy_dataclass(batch: Any, memo: Memo) -> Any:
    twin = copy.copy(batch)
    for field in fields(batch):
        value = copy_batch(getattr(batch, field.name), memo)
        object.__setattr__(twin, field.name, value)  # frozen ones too
    return twin


def _copy_whole(batch: object, memo: Memo) -> Any:
    """Copy an object with tensors that nobody sees from outside, such as a graph."""
    if callable(getattr(batch, "to", None)):
        with suppress(TypeError, RuntimeError):  # what cannot be copied stays the same object
            return copy.deepcopy(batch, memo)
    return batch
