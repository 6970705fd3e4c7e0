"""An accumulation window that a checkpoint is taken in: the gradients so far, saved with the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.ranks import averaged

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Named: TypeAlias = Mapping[str, Tensor]
Tensors: TypeAlias = Mapping[Tensor, Tensor]
Window: TypeAlias = Mapping[str, Named]


def save_window(trainer: Trainer, optimizer: Gluon) -> Window:
    """Return the gradients of an unfinished window by parameter name.

    Before the last micro-batch of a window every rank holds its own sums. They are averaged here, as they would have
    been in the end, because a checkpoint is written by one rank and read by all.

    Args:
        trainer: The Trainer.
        optimizer: The optimizer.

    Returns:
        `gradients` and `references`, each a dict from parameter name to tensor.
    """
    params = [layer.parameter for layer in optimizer.layers()]
    present = {}
    for parameter in params:
        if parameter.grad is not None:
            present[parameter] = parameter.grad
    gradients = averaged(trainer, params, present)
    references = averaged(trainer, params, optimizer.reference_gradients)
    return {
        "gradients": by_name(optimizer, gradients),
        "references": by_name(optimizer, references),
    }


def load_window_(optimizer: Gluon, window: Window) -> None:
    """Put the gradients of an unfinished window back into `.grad` and `optimizer.reference_gradients`.

    Args:
        optimizer: The optimizer.
        window: Result of `save_window`.
    """
    gradients = by_parameter(optimizer, window["gradients"])
    references = by_parameter(optimizer, window["references"])
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    optimizer.reference_gradients = references


def by_name(optimizer: Gluon, tensors: Tensors) -> dict[str, Tensor]:
    """Return tensors of parameters under the parameters' names, in the optimizer's order."""
    found = {}
    for layer in optimizer.layers():
        parameter = layer.parameter
        if parameter in tensors:
            found[layer.name] = tensors[parameter]
    return found


def by_parameter(optimizer: Gluon, tensors: Named) -> dict[Tensor, Tensor]:
    """Return copies of named tensors by parameter, on the parameters' devices; unknown names are left out.

    Args:
        optimizer: The optimizer.
        tensors: Tensors of a checkpoint, by parameter name.

    Returns:
        The copies.

    Raises:
        ValueError: If a tensor has not its parameter's shape.
    """
    found = {}
    for layer in optimizer.layers():
        parameter = layer.parameter
        if layer.name in tensors:
            tensor = tensors[layer.name]
            _check_shape(layer.name, tensor, parameter)
            found[parameter] = tensor.to(parameter.device, copy=True)
    return found


def _check_shape(name: str, tensor: object, parameter: Tensor) -> None:
    expected = tuple(parameter.shape)
    got: object = type(tensor).__name__
    if isinstance(tensor, Tensor):
        got = tuple(tensor.shape)
    if got != expected:
        raise ValueError(
            f"Expected what the checkpoint holds of {name!r} to be a tensor of shape {expected}, but got {got}: it is "
            "another model's, or damaged."
        )
