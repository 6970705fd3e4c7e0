"""The optimizers of a Trainer that are of this library, and whether their steps can be repeated."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_gluon.optimizer import Gluon


def unwrapped(optimizer: object) -> Any:
    """Return the optimizer inside a `LightningOptimizer`."""
    return getattr(optimizer, "optimizer", optimizer)


def own_optimizers(trainer: Trainer) -> Iterator[Gluon]:
    """Yield the optimizers of this library."""
    for optimizer in map(unwrapped, trainer.optimizers):
        if isinstance(optimizer, Gluon):
            yield optimizer


def own_optimizer(trainer: Trainer) -> Gluon:
    """Return the optimizer of this library whose layers can be measured: the first.

    Args:
        trainer: The Trainer.

    Returns:
        The optimizer.

    Raises:
        TypeError: If there is none.
        ValueError: If it folds its gradients, which then cannot be seen.
    """
    own = list(own_optimizers(trainer))
    if not own:
        found = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers) or "none"
        raise TypeError(
            f"Expected an optimizer of `lightning_gluon`, whose layers know their norm, but got {found}. Build it with "
            "`lightning_gluon.configure_optimizers`; method='adamw' monitors AdamW."
        )
    if len(own) > 1:
        rank_zero_warn(
            f"The Trainer has {len(own)} optimizers of `lightning_gluon`: only the first is measured, and only its "
            "radii are set. The others keep theirs, `lr='auto'` or not."
        )
    if own[0].folds:
        raise ValueError("With `fold` both gradients lie mixed in `.grad` and cannot be measured. Set `fold=False`.")
    return own[0]


def check_point(optimizer: Gluon, callback: str) -> None:
    """Check that a method bears a callback that moves weights between steps.

    Args:
        optimizer: An optimizer.
        callback: Name of the callback, for errors.

    Raises:
        ValueError: If the method rebuilds a point from the weights, or leaves them.
    """
    point = optimizer.reference_point
    if point is not None and not optimizer.keeps_previous:
        raise ValueError(
            f"Expected a method that takes its gradients at the weights or keeps a copy of the previous ones, but this "
            f"one rebuilds the point {point!r} from the weights that `{callback}` moves. Set `reference='copy'`."
        )
    if point not in (None, "previous"):
        raise ValueError(f"Expected gradients at the weights, but got the point {point!r}. Take another `method`.")


def repeatable(module: LightningModule) -> bool:
    """Return whether a training step can be run again: not under manual optimization, nor if it draws its own batch."""
    draws = "dataloader_iter" in inspect.signature(module.training_step).parameters
    return module.automatic_optimization and not draws


def parameters_of(optimizer: Gluon) -> Iterator[Tensor]:
    """Yield every parameter of an optimizer."""
    for group in optimizer.param_groups:
        yield from group["params"]
