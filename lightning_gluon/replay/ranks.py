"""Gradients that the ranks of a distributed run hold apart, brought together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_gluon.ranks.pieces import is_sharded

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def anywhere(trainer: Trainer, flags: Sequence[bool]) -> list[bool]:
    """Return which flags are true on at least one rank.

    Args:
        trainer: The Trainer.
        flags: As many on every rank.

    Returns:
        The same on all ranks.
    """
    if trainer.world_size == 1:
        return list(flags)
    values = torch.tensor(flags, dtype=torch.float32, device=trainer.strategy.root_device)
    return (mean(trainer, values) > 0).tolist()


def agreed(trainer: Trainer, values: Tensor) -> list[float]:
    """Wait for numbers on the device, and return their means over the ranks, the same on all of them.

    Args:
        trainer: The Trainer.
        values: Numbers of this rank, one-dimensional.

    Returns:
        The means.
    """
    if trainer.world_size == 1:
        return values.tolist()
    own = values.to(trainer.strategy.root_device)
    return mean(trainer, own).tolist()


def averaged(trainer: Trainer, params: Sequence[Tensor], gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Return copies of gradients, averaged over the ranks; if only some ranks have one, zero stands for the others.

    Args:
        trainer: The Trainer.
        params: Parameters, in the same order on every rank.
        gradients: Their gradients on this rank, as far as there are any.

    Returns:
        The means, the same on all ranks.
    """
    found: dict[Tensor, Tensor] = {}
    present = [parameter in gradients for parameter in params]
    somewhere = anywhere(trainer, present)
    for parameter, averages in zip(params, somewhere, strict=True):
        if not averages:
            continue
        if parameter in gradients and is_sharded(parameter):  # a piece of the mean already
            found[parameter] = gradients[parameter].detach().clone()
            continue
        if parameter in gradients:
            own = gradients[parameter].detach().clone()
        else:
            own = torch.zeros_like(parameter)
        found[parameter] = mean(trainer, own)
    return found


def mean(trainer: Trainer, tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks.

    Args:
        trainer: The Trainer.
        tensor: It, of one shape on all ranks; it may be written to.
    """
    if trainer.world_size == 1:
        return tensor
    found = trainer.strategy.reduce(tensor, reduce_op="mean")
    assert isinstance(found, Tensor)
    return found
