"""The last iterate and its gradients, kept for one step, and the same sample's gradient there: what estimates need.

A probe is the second pass of `VarianceReduction` taken once in a while: after the backward pass of every micro-batch of
one window, the weights are exchanged with a copy of the last iterate, and the micro-batch is run again without a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.replay import Replay
from lightning_gluon.smoothness.readings import Pair
from lightning_gluon.step.layers import Layer

__all__ = ["Probe", "listen", "own_optimizer", "unscaled", "unwrapped"]

Listener = Callable[[Callable, tuple, dict], None]


def own_optimizer(trainer: Any) -> Gluon:
    """Return the `Gluon` optimizer of a Trainer, or raise where there is none or its gradients cannot be seen."""
    own = [optimizer for optimizer in map(unwrapped, trainer.optimizers) if isinstance(optimizer, Gluon)]
    if len(own) > 1:
        rank_zero_warn(
            f"The Trainer has {len(own)} optimizers of `lightning_gluon`: only the first is measured, and only its "
            "radii are set. The others keep theirs, `lr='auto'` or not."
        )
    if own:
        if own[0].folds:
            raise ValueError(
                "With `fold` both gradients lie mixed in `.grad` and cannot be measured. Set `fold=False`."
            )
        return own[0]
    found = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers) or "none"
    raise TypeError(
        f"Expected an optimizer of `lightning_gluon`, whose layers know their norm, but got {found}. Build it with "
        "`lightning_gluon.configure_optimizers`; method='adamw' monitors AdamW."
    )


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside a `LightningOptimizer`."""
    return getattr(optimizer, "optimizer", optimizer)


def listen(strategy: Any, listener: Listener) -> Callable[[], None]:
    """Call `listener(training_step, args, kwargs)` at the entry of every `training_step`.

    Args:
        strategy: The Trainer's strategy.
        listener: Called before the step, with the strategy's own `training_step`.

    Returns:
        A function that ends it. Listeners share one wrapper, so they may come and go in any order.
    """
    outer = vars(strategy).get("training_step")
    wrapper = outer if hasattr(outer, "listeners") else _wrap(strategy, outer)
    wrapper.listeners.append(listener)

    def end() -> None:
        if listener in wrapper.listeners:
            wrapper.listeners.remove(listener)
        if not wrapper.listeners and vars(strategy).get("training_step") is wrapper:
            if outer is None or outer is wrapper:
                del strategy.training_step
            else:
                strategy.training_step = outer

    return end


def _wrap(strategy: Any, outer: Callable | None) -> Any:
    inner = partial(
        type(strategy).training_step, strategy
    )  # without the wrappers of others, so that it can be repeated
    outer = outer or inner

    def training_step(*args: Any, **kwargs: Any) -> Any:
        for listener in list(training_step.listeners):  # type: ignore[attr-defined]
            listener(inner, args, kwargs)
        return outer(*args, **kwargs)

    training_step.listeners = []  # type: ignore[attr-defined]
    strategy.training_step = training_step
    return training_step


class _Elsewhere:
    """Stands in for the optimizer in a `Replay`: its reference point is a copy of earlier weights."""

    folds = False

    def __init__(self, optimizer: Gluon, weights: dict[Tensor, Tensor]) -> None:
        self.param_groups = optimizer.param_groups
        self.weights = weights

    @contextmanager
    def at_reference(self) -> Iterator[None]:
        """Exchange the weights in place, and restore them bit for bit."""
        self._exchange_()
        try:
            yield
        finally:
            self._exchange_()

    @torch.no_grad()
    def _exchange_(self) -> None:
        for parameter, other in self.weights.items():
            held = parameter.clone()
            parameter.copy_(other)
            other.copy_(held)


class Probe:
    """Layers at two neighbouring iterates, every so many steps.

    Call `remember` at the end of the step before, `arm` at the entry of each micro-batch of the step itself, `run`
    after its backward pass, and `pairs` when its gradients are complete.

    Args:
        optimizer: The optimizer.
        layers: The layers to look at.
        same_sample: Whether to take the second gradient by a probe where the method does not give it.
    """

    def __init__(self, optimizer: Gluon, layers: list[Layer], *, same_sample: bool) -> None:
        self.optimizer = optimizer
        self.layers = layers
        point = optimizer.reference_point
        self.probing = same_sample and point != "previous"
        self.transported = point == "transported"
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.weights: dict[Tensor, Tensor] = {}
        self.gradients: dict[Tensor, Tensor] = {}
        self.begin()
        self.replay: Replay | None = None
        self.whole_window = False

    def begin(self) -> None:
        """Begin a window: its first micro-batch is about to be seen."""
        self.old: dict[Tensor, Tensor] = {}
        self.new: dict[Tensor, Tensor] = {}
        self.whole_window = True

    @property
    def ready(self) -> bool:
        """True between `remember` and `pairs`."""
        return bool(self.weights)

    @torch.no_grad()
    def remember(self) -> None:
        """Copy the weights and gradients of the step about to be taken."""
        chosen = [layer.parameter for layer in self.layers]
        moving = [p for group in self.optimizer.param_groups for p in group["params"]] if self.probing else chosen
        self.weights = {parameter: parameter.detach().clone() for parameter in moving}
        self.gradients = {p: p.grad.detach().clone() for p in chosen if p.grad is not None}

    def arm(self, trainer: Any, training_step: Callable, args: tuple, kwargs: dict, moving: set[Tensor]) -> None:
        """Keep the arguments and the random state of a micro-batch."""
        due = self.probing and self.ready
        self.replay = Replay(trainer, training_step, args, kwargs, moving) if due else None

    def run(self) -> None:
        """Take the micro-batch's gradient at the last iterate; with transported gradients, also at this one."""
        replay, self.replay = self.replay, None
        if replay is None:
            return
        self.old = replay.gradients(_Elsewhere(self.optimizer, self.weights), self.old)  # type: ignore[arg-type]
        if self.transported:
            self.new = replay.gradients(_Elsewhere(self.optimizer, {}), self.new)  # type: ignore[arg-type]

    def pairs(self, scale: float = 1.0) -> list[Pair]:
        """Return the layers at both iterates, and let go of the copies.

        Args:
            scale: Loss scale of the probe's gradients.

        Returns:
            One pair per layer that has a gradient and whose weights were remembered.
        """
        free = self.optimizer.reference_point == "previous"
        old = dict(self.optimizer.reference_gradients) if free else unscaled(self.old, scale)
        new = unscaled(self.new, scale)
        if self.probing and not self.whole_window:  # resumed inside the window: the sums lack its first micro-batches
            old, new = {}, {}
        found = [
            Pair(
                layer,
                layer.parameter.grad,
                self.weights[layer.parameter],
                self.gradients.get(layer.parameter),
                new.get(layer.parameter),
                old.get(layer.parameter),
            )
            for layer in self.layers
            if layer.parameter.grad is not None and layer.parameter in self.weights
        ]
        self.clear()
        return found

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the copies by parameter name; empty between samples."""
        names = _names(self.optimizer)
        return {
            "weights": {names[p]: value.clone() for p, value in self.weights.items()},
            "gradients": {names[p]: value.clone() for p, value in self.gradients.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the copies."""
        params = {name: parameter for parameter, name in _names(self.optimizer).items()}
        for key in ("weights", "gradients"):
            held = {params[n]: v.to(params[n].device, copy=True) for n, v in state[key].items() if n in params}
            setattr(self, key, held)


def unscaled(gradients: dict[Tensor, Tensor], scale: float) -> dict[Tensor, Tensor]:
    """Return gradients with the loss scale taken out."""
    return gradients if scale == 1.0 else {p: gradient / scale for p, gradient in gradients.items()}


def _names(optimizer: Gluon) -> dict[Tensor, str]:
    return {
        parameter: name
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
