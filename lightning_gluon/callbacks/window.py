"""An accumulation window that a checkpoint is taken in: the gradients so far, saved with the optimizer's state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_gluon.optimizer import Gluon

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
    window: Window = {"gradients": {}, "references": {}}
    for name, parameter in _named(optimizer):
        reference = optimizer.reference_gradients.get(parameter)
        for part, gradient in (("gradients", parameter.grad), ("references", reference)):
            if gradient is not None:
                copy = gradient.detach().clone()
                window[part][name] = trainer.strategy.reduce(copy, reduce_op="mean") if trainer.world_size > 1 else copy
    return window


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
