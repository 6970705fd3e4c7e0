"""The same micro-batch once more, at the previous iterate: what the callback `VarianceReduction` runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import ExitStack, suppress
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.ranks import anywhere, averaged
from lightning_gluon.replay.snapshot import Moment, untouched

__all__ = ["Replay", "copy_batch", "exchanged_gradients"]


class Replay:
    """One call of `training_step`, remembered at its entry so that it can be repeated exactly.

    Args:
        trainer: The Trainer.
        training_step: The strategy's own `training_step`.
        args: Its arguments, which are copied: a step may write to its batch, or pop entries from it.
        kwargs: Its keyword arguments.
        moving: Frozen parameters that steps were seen to write to, which is added to.
    """

    def __init__(
        self, trainer: Any, training_step: Callable, args: tuple, kwargs: Mapping[str, Any], moving: set[Tensor]
    ) -> None:
        self.trainer = trainer
        self.training_step = training_step
        self.args, self.kwargs = copy_batch(args), copy_batch(dict(kwargs))
        self.start = Moment(trainer.lightning_module, moving)

    def gradients(self, optimizer: Gluon, so_far: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Repeat the step and its backward pass at the reference point; all else comes out as it was.

        Args:
            optimizer: The optimizer, which knows the reference point.
            so_far: Gradients of the earlier micro-batches of this window, which these are added to.

        Returns:
            The sums, for every parameter that has a gradient; nothing where they are folded into `.grad`.
        """
        module = self.trainer.lightning_module
        params = list(dict.fromkeys(chain(module.parameters(), *(group["params"] for group in optimizer.param_groups))))
        # DDP may let gradients live in its buckets, which the next backward pass overwrites
        shared = getattr(self.trainer.strategy.model, "gradient_as_bucket_view", False)
        apart = getattr(self.trainer.strategy.model, "find_unused_parameters", False) and so_far and not optimizer.folds
        used: set[Tensor] = set()
        collect: Any = optimizer.folding() if optimizer.folds else exchanged_gradients(params, so_far, clone=shared)
        with ExitStack() as hooks, collect as exchanged:
            for parameter in params:
                if apart and parameter.requires_grad:
                    hooks.callback(parameter.register_post_accumulate_grad_hook(used.add).remove)
            with optimizer.at_reference():
                taken = self._run(module, optimizer)
            if not taken:  # the step skips this micro-batch there: `c_old = c_new` is plain momentum
                self._run(module, optimizer)
        if optimizer.folds:
            return {}
        return self._complete(params, exchanged.taken, used) if apart else exchanged.taken

    def _complete(
        self, params: list[Tensor], gradients: dict[Tensor, Tensor], used: set[Tensor]
    ) -> dict[Tensor, Tensor]:
        """Average what DDP has left as it was, having no memory of the second passes of earlier micro-batches.

        In the pass that ends a window DDP averages the gradients of the parameters used since it last did so, which was
        in the first pass of the same micro-batch. Those of the others are still those of one rank.

        Args:
            params: All parameters.
            gradients: Their gradients, summed over the window.
            used: Those that this rank's last micro-batch used.

        Returns:
            The gradients, averaged at the end of a window.
        """
        if not self.trainer.strategy.model.require_backward_grad_sync:
            return gradients
        seen = anywhere(self.trainer, [parameter in used for parameter in params])
        left = [parameter for parameter, here in zip(params, seen, strict=True) if not here]
        return {**gradients, **averaged(self.trainer, left, gradients)}

    def loss(self) -> Tensor | None:
        """Return what the step returns as its loss; call it within `untouched`."""
        output = self.training_step(*copy_batch(self.args), **copy_batch(self.kwargs))
        return output["loss"] if isinstance(output, Mapping) else output

    def _run(self, module: Any, optimizer: Gluon) -> bool:
        """Do what Lightning's closure does between `training_step` and `backward`, without its hooks."""
        with untouched(self.trainer, module, self.start), torch.enable_grad():
            loss = self.loss()
            if loss is None:
                return False
            plugin = self.trainer.precision_plugin
            loss = loss / self.trainer.accumulate_grad_batches
            if getattr(plugin, "scaler", None) is not None:
                loss = plugin.scaler.scale(loss)
            plugin.backward(loss, module, optimizer)
        return True


class exchanged_gradients:
    """Give parameters other gradients for a while, and keep what has become of those.

    Args:
        params: The parameters.
        gradients: What their `.grad` is to be inside; `None` where there is none.
        clone: Copy gradients on both ways, where they live in memory that is written to by others.

    Attributes:
        taken: After leaving, the gradients they had at the end.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.ones(2)
        >>> with exchanged_gradients([weight], {}) as exchanged:
        ...     (3 * weight).sum().backward()
        >>> weight.grad.tolist(), exchanged.taken[weight].tolist()
        ([1.0, 1.0], [3.0, 3.0])
    """

    def __init__(self, params: Iterable[Tensor], gradients: Mapping[Tensor, Tensor], *, clone: bool = False) -> None:
        self.params = list(params)
        self.gradients = gradients
        self.clone = clone
        self.taken: dict[Tensor, Tensor] = {}

    def __enter__(self) -> exchanged_gradients:
        """Put the other gradients in place."""
        self.held = self._present()
        for parameter in self.params:
            parameter.grad = self.gradients.get(parameter)
        return self

    def __exit__(self, *error: object) -> None:
        """Put the first ones back."""
        self.taken = self._present()
        for parameter in self.params:
            parameter.grad = self.held.get(parameter)

    def _present(self) -> dict[Tensor, Tensor]:
        present = {parameter: parameter.grad for parameter in self.params if parameter.grad is not None}
        return {parameter: gradient.clone() for parameter, gradient in present.items()} if self.clone else present


def copy_batch(batch: Any, memo: dict[int, Any] | None = None) -> Any:
    """Return a copy of a batch down to its tensors: tuples, lists, mappings and dataclasses are followed.

    Args:
        batch: Anything a data loader may give.
        memo: Copies made so far, so that what is the same object twice stays one.

    Returns:
        The copy. Objects that can be moved to a device, such as graphs, are copied whole; others are the same objects.

    Example:
        >>> batch = {"x": torch.zeros(1), "name": "a"}
        >>> other = copy_batch(batch)
        >>> _ = batch.pop("name"), batch["x"].add_(1)
        >>> other
        {'x': tensor([0.]), 'name': 'a'}
    """
    memo = {} if memo is None else memo
    if id(batch) not in memo:
        memo[id(batch)] = _copy(batch, memo)
        memo.setdefault(id(memo), []).append(batch)  # as `deepcopy` does: an object let go of would lend out its id
    return memo[id(batch)]


def _copy(batch: Any, memo: dict[int, Any]) -> Any:
    if isinstance(batch, Tensor):
        return batch.detach().clone().requires_grad_(batch.requires_grad)
    if isinstance(batch, tuple):
        items = [copy_batch(item, memo) for item in batch]
        if all(one is other for one, other in zip(items, batch, strict=True)):
            return batch
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, list):
        items = copy.copy(batch)
        items[:] = [copy_batch(item, memo) for item in batch]
        return items
    if isinstance(batch, MutableMapping):
        other = copy.copy(batch)
        for key, value in batch.items():
            other[key] = copy_batch(value, memo)
        return other
    if is_dataclass(batch) and not isinstance(batch, type):
        twin = copy.copy(batch)
        for field in fields(batch):
            object.__setattr__(twin, field.name, copy_batch(getattr(batch, field.name), memo))
        return twin
    if callable(getattr(batch, "to", None)) and not isinstance(batch, (type, Module)):
        with suppress(TypeError, RuntimeError):  # what cannot be copied stays the same object
            return copy.deepcopy(batch, memo)
    return batch
