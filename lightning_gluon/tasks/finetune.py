"""Callbacks that spare pretrained weights: short steps for early layers, a head that learns first, a pull back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_gluon.radius.radii import radius_each, stepped_by_adamw
from lightning_gluon.replay.optimizers import check_point, own_optimizers
from lightning_gluon.tasks.sharding import repeated_layers
from lightning_gluon.valid import number, whole

__all__ = ["HeadFirst", "LayerDecay", "StartDecay", "layer_depths"]


def layer_depths(module: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter: 0 before the repeated layers, then 1, 2, ..., and one more behind them.

    Args:
        module: A network.

    Returns:
        Depths by name, for parameters in the order of `named_parameters`.

    Example:
        >>> blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net = nn.ModuleDict({"stem": nn.Conv1d(1, 2, 1), "blocks": blocks, "head": nn.Linear(2, 1)})
        >>> sorted(set(layer_depths(net).items()))[::2]
        [('blocks.0.bias', 1), ('blocks.1.bias', 2), ('head.bias', 3), ('stem.bias', 0)]
    """
    inside = {}
    for depth, layer in enumerate(repeated_layers(module), start=1):
        for parameter in layer.parameters():
            inside[parameter] = depth
    deepest = max(inside.values(), default=0)
    depths = {}
    reached = 0
    for name, parameter in module.named_parameters():
        if parameter in inside:
            reached = inside[parameter]
        behind = deepest + 1 if reached == deepest else 0
        depths[name] = inside.get(parameter, behind)
    return depths


class LayerDecay(Callback):
    """Radii that fall towards the input, set once when fitting begins.

        radius[parameter] <- radius[role] * decay ** (L + 1 - depth)

    with the depth from 0 before the `L` repeated layers to `L + 1` behind them. Groups that AdamW steps have one rate
    and keep it, which a warning says.

    Shapes: parameters of any shape.

    Args:
        decay: Factor from one layer to the one before it.

    Raises:
        ValueError: If the factor is not in (0, 1].

    References:
        Layer-wise learning-rate decay: H. Bao et al., "BEiT", arXiv 2106.08254. timm's `param_groups_layer_decay`
        counts depths in the same way, but the last norm to the last block.

    Example:
        >>> LayerDecay(0.75).decay
        0.75
    """

    def __init__(self, decay: float = 0.75) -> None:
        number(0, 1, signs="< <=")("decay", decay)
        self.decay = decay

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the radii; those of a checkpoint, which come after, have it in them.

        Args:
            trainer: The Trainer.
            pl_module: The module.
        """
        depths = layer_depths(pl_module)
        last = max(depths.values())
        for group in _groups(trainer):
            if stepped_by_adamw(group):
                rank_zero_warn(f"LayerDecay leaves group '{group['name']}' as it is: AdamW steps it at one rate.")
                continue
            radii = []
            for name, radius in zip(group["param_names"], radius_each(group["radius"], group), strict=True):
                radii.append(radius * self.decay ** (last - depths[name]))
            group["radius"] = radii


class HeadFirst(Callback):
    """A head that learns alone at first, so that a new one does not pull at pretrained weights.

        X <- X    for every parameter but those of role `head`, in the first `steps` steps

    The others take no gradient meanwhile. It holds for one process; under DDP every parameter has to take one.

    Shapes: parameters of any shape.

    Args:
        steps: Optimizer steps of the head alone.

    Raises:
        ValueError: If the number of steps is negative, or the module has no head.

    References:
        A. Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
        arXiv 2202.10054.

    Example:
        >>> HeadFirst(steps=100).steps
        100
    """

    def __init__(self, steps: int) -> None:
        whole()("steps", steps)
        self.steps = steps
        self._waiting: list[nn.Parameter] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze what is no head.

        Args:
            trainer: The Trainer.
            pl_module: The module.

        Raises:
            ValueError: If the module has no head.
        """
        groups = _groups(trainer)
        if not any(group["role"] == "head" for group in groups):
            raise ValueError("Expected a module with a parameter of role 'head' for HeadFirst, but there is none.")
        others = (group["params"] for group in groups if group["role"] != "head")
        self._waiting = [parameter for parameter in chain(*others) if parameter.requires_grad]
        for parameter in self._waiting:
            parameter.requires_grad_(False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the others learn when it is time.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            batch: A batch.
            batch_idx: Its number.
        """
        if trainer.global_step >= self.steps:
            self._release()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave nothing frozen."""
        self._release()

    def _release(self) -> None:
        for parameter in self._waiting:
            parameter.requires_grad_(True)
        self._waiting = []


class StartDecay(Callback):
    """Weight decay towards the weights that fitting began with, in place of zero.

        X <- X - lr * weight (X - X_0)    after every optimizer step

    Adapters need none: the `weight_decay` of the optimizer takes them to zero, and so the sum to the pretrained
    weights. A checkpoint holds `X_0`, so that it goes on exactly.

    Shapes: parameters of any shape. `X_0` takes as much memory as the trained weights.

    Args:
        weight: Weight of the decay, in units of 1 / lr as `weight_decay` is.

    Raises:
        ValueError: If the weight is negative, or the method rebuilds a point from the weights.

    References:
        The starting point as what is decayed to: X. Li et al., "Explicit Inductive Bias for Transfer Learning with
        Convolutional Networks", arXiv 1802.01483. Decoupled from the gradient as in arXiv 1711.05101.

    Example:
        >>> StartDecay(0.1).weight
        0.1
    """

    def __init__(self, weight: float = 0.1) -> None:
        number(0)("weight", weight)
        self.weight = weight
        self._start: dict[str, Tensor] = {}
        self._steps = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights, unless a checkpoint has those of its own beginning.

        Args:
            trainer: The Trainer.
            pl_module: The module.

        Raises:
            ValueError: If the method rebuilds a point from the weights, which this moves.
        """
        for optimizer in own_optimizers(trainer):
            check_point(optimizer, "StartDecay")
        if not self._start:
            self._start = {name: weight.detach().clone() for name, weight in _stepped(trainer)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that fitting begins or goes on with."""
        self._steps = trainer.global_step
        self._start = {name: self._start[name].to(weight.device) for name, weight in _stepped(trainer)}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Pull the weights back, if a step was taken.

        Args:
            trainer: The Trainer.
            pl_module: The module.
        """
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        for group in _groups(trainer):
            starts = [self._start[name] for name in group["param_names"]]
            weights = [weight.detach() for weight in group["params"]]
            torch._foreach_lerp_(weights, starts, group["lr"] * self.weight)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the weights: another fit has its own beginning."""
        self._start = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the weights that fitting began with."""
        return {"start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them from a checkpoint."""
        self._start = dict(state_dict["start"])


def _stepped(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters that take steps, with their names."""
    for group in _groups(trainer):
        yield from zip(group["param_names"], group["params"], strict=True)


def _groups(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the groups of all optimizers."""
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
