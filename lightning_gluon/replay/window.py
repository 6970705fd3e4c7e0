"""An accumulation window that a checkpoint is taken in: the gradients so far, saved with the optimizer's state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.ranks import averaged

__all__ = ["load_window_", "save_window"]

Window = dict[str, dict[str, Tensor]]


def save_window(trainer: Any, optimizer: Gluon) -> Window | None:
    """Return the gradients of an unfinished window by parameter name, or `None` between windows.

    Before the last micro-batch of a window every rank holds its own sums. They are averaged here, as they would have
    been in the end, because a checkpoint is written by one rank and read by all.

    Args:
        trainer: The Trainer.
        optimizer: The optimizer.

    Returns:
        `gradients` and `references`, each a dict from parameter name to tensor.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    inside_a_batch = progress.ready != progress.processed  # an exception: that micro-batch will be run again
    if inside_a_batch or not trainer.fit_loop._should_accumulate():
        return None
    names = {parameter: name for name, parameter in _named(optimizer)}
    gradients = {parameter: parameter.grad for parameter in names if parameter.grad is not None}
    return {
        part: {names[p]: mean for p, mean in averaged(trainer, list(names), some).items()}
        for part, some in (("gradients", gradients), ("references", optimizer.reference_gradients))
    }


def load_window_(optimizer: Gluon, window: Window) -> None:
    """Put the gradients of an unfinished window back into `.grad` and `optimizer.reference_gradients`.

    Args:
        optimizer: The optimizer.
        window: What `save_window` returned.
    """
    optimizer.reference_gradients = {}
    for name, parameter in _named(optimizer):
        if name in window["gradients"]:
            parameter.grad = window["gradients"][name].to(parameter.device, copy=True)
        if name in window["references"]:
            optimizer.reference_gradients[parameter] = window["references"][name].to(parameter.device, copy=True)


def _named(optimizer: Gluon) -> list[tuple[str, Tensor]]:
    return [
        (name, parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]
