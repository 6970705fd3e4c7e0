"""An accumulation window that a checkpoint is taken in: the gradients so far, saved with the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.ranks import averaged

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Window: TypeAlias = dict[str, dict[str, Tensor]]


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
    return {"gradients": by_name(optimizer, gradients), "references": by_name(optimizer, references)}


def load_window_(optimizer: Gluon, window: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put the gradients of an unfinished window back into `.grad` and `optimizer.reference_gradients`.

    Args:
        optimizer: The optimizer.
        window: What `save_window` returned.
    """
    for parameter, gradient in by_parameter(optimizer, window["gradients"]).items():
        parameter.grad = gradient
    optimizer.reference_gradients = by_parameter(optimizer, window["references"])


def by_name(optimizer: Gluon, tensors: Mapping[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return tensors of parameters under the parameters' names, in the optimizer's order."""
    found = {}
    for layer in optimizer.layers():
        if layer.parameter in tensors:
            found[layer.name] = tensors[layer.parameter]
    return found


def by_parameter(optimizer: Gluon, tensors: Mapping[str, Tensor]) -> dict[Tensor, Tensor]:
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
        parameter, tensor = layer.parameter, tensors.get(layer.name)
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or tensor.shape != parameter.shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"Expected what the checkpoint holds of {layer.name!r} to be a tensor of shape "
                f"{tuple(parameter.shape)}, but got {got}: it is another model's, or damaged."
            )
        found[parameter] = tensor.to(parameter.device, copy=True)
    return found
