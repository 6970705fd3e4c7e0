"""Gradients that the ranks of a distributed run hold apart, brought together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["anywhere", "averaged"]


def anywhere(trainer: Any, flags: Sequence[bool]) -> list[bool]:
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
    return (trainer.strategy.reduce(values, reduce_op="mean") > 0).tolist()


def averaged(trainer: Any, params: Sequence[Tensor], gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Return copies of gradients, averaged over the ranks; where only some ranks have one, zero stands for the others.

    Args:
        trainer: The Trainer.
        params: Parameters, in the same order on every rank.
        gradients: Their gradients on this rank, as far as there are any.

    Returns:
        The means, the same on all ranks.
    """
    found = {}
    for parameter, present in zip(params, anywhere(trainer, [p in gradients for p in params]), strict=True):
        if present:
            own = gradients[parameter].detach().clone() if parameter in gradients else torch.zeros_like(parameter)
            found[parameter] = trainer.strategy.reduce(own, reduce_op="mean") if trainer.world_size > 1 else own
    return found
