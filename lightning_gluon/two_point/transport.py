"""Points beside the weights where a method takes its only gradient: how far they are, and what is kept to know it.

    last step      Y = X + lookahead b / (1 - b) (X - X_prev)                     implicit gradient transport
    average step   Y = X + r m,    X <- Y - lr radius D,    m <- c m + (1 - c) (X - X_prev)          EMA-Nesterov
    anchor         Y = X + r (X - e),                       e <- c e + (1 - c) X                     anchor gradient

Of the average step `r` is the lookahead times `lr / lr_max`. For the anchor it grows from 0 to the lookahead at the
training's end. `c = a / (1 + a)` with a mean age of `a` steps, a share of the training.

References:
    LMO-IGT, arXiv 2605.05577. EMA-Nesterov and the anchor gradient: entries of the speed run of `modded-nanogpt`, track
    3 (numbers 39 and 377).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from lightning_gluon.options import Group
from lightning_gluon.ranks.pieces import meta_like

__all__ = ["TRANSPORTS", "Transport"]

MutableEntries: TypeAlias = MutableMapping[str, Tensor]
RATE = 0.01  # of an average in a group that does not use it


class Transport(Protocol):
    """A point beside the weights."""

    key: str  # what is kept, by its name in the state

    def layout(self, parameter: Tensor) -> Tensor:
        """Return what is kept of one parameter, as a tensor on the meta device."""

    def reach(self, group: Group) -> float:
        """Return how far the point is in the coming step, in units of what is kept; 0 if it is the weights."""

    def ahead(self, state: Mapping[str, Tensor], here: Tensor) -> Tensor:
        """Return the way of one unit from the weights to the point."""

    def begin_(self, group: Group, state: MutableEntries, parameter: Tensor) -> None:
        """Move weights to where their step begins."""

    def record_(self, group: Group, state: MutableEntries, parameter: Tensor, before: Tensor) -> None:
        """Keep what the next step needs, given the weights before this one."""


class LastStep:
    """Implicit gradient transport: ahead along the last step, as far as the momentum looks back."""

    key = "previous"

    def layout(self, parameter: Tensor) -> Tensor:
        """Return a copy."""
        return meta_like(parameter)

    def reach(self, group: Group) -> float:
        """Return the share of the way times `b / (1 - b)`."""
        return group.get("lookahead", 1.0) * (group["momentum"] / (1 - group["momentum"]))

    def ahead(self, state: Mapping[str, Tensor], here: Tensor) -> Tensor:
        """Return the last step."""
        return here - state["previous"]

    def begin_(self, group: Group, state: MutableEntries, parameter: Tensor) -> None:
        """Stay: the step begins at the weights."""

    def record_(self, group: Group, state: MutableEntries, parameter: Tensor, before: Tensor) -> None:
        """Keep the weights before the step."""
        if "previous" in state:
            state["previous"].copy_(before)
        else:
            state["previous"] = before.clone()


class AverageStep:
    """EMA-Nesterov: ahead along the average step, from where the step itself begins."""

    key = "average_step"

    def layout(self, parameter: Tensor) -> Tensor:
        """Return an average in fp32 or wider: at small rates bf16 would not move."""
        return _average_like(parameter)

    def reach(self, group: Group) -> float:
        """Return the lookahead, as far down as the learning rate is."""
        lr = float(group["lr"])
        top = max(lr, float(group.get("initial_lr", lr)), float(group.get("max_lr", lr)))
        return group["lookahead"] * lr / top if top else 0.0

    def ahead(self, state: Mapping[str, Tensor], here: Tensor) -> Tensor:
        """Return the average step."""
        return state[self.key].to(here.dtype)

    def begin_(self, group: Group, state: MutableEntries, parameter: Tensor) -> None:
        """Go to the point."""
        if self.key in state:
            parameter.add_(self.ahead(state, parameter), alpha=self.reach(group))

    def record_(self, group: Group, state: MutableEntries, parameter: Tensor, before: Tensor) -> None:
        """Average the way that the weights went, the look-ahead included."""
        if self.key not in state:
            state[self.key] = torch.zeros_like(parameter, dtype=_average_dtype(parameter), requires_grad=False)
        average = state[self.key]
        average.lerp_(parameter.to(average.dtype) - before, rate(group))


class Anchor:
    """The anchor gradient: away from an average of the weights, towards the end of the training."""

    key = "anchor"

    def layout(self, parameter: Tensor) -> Tensor:
        """Return an average in fp32 or wider."""
        return _average_like(parameter)

    def reach(self, group: Group) -> float:
        """Return the lookahead, as far up as the ramp is."""
        done, ramp = group["steps"] / group["total_steps"], group["ramp"]
        return group["lookahead"] * min(1.0, max(0.0, (done - (1 - ramp)) / ramp)) if ramp else group["lookahead"]

    def ahead(self, state: Mapping[str, Tensor], here: Tensor) -> Tensor:
        """Return the way from the anchor."""
        return (here - state[self.key]).to(here.dtype)

    def begin_(self, group: Group, state: MutableEntries, parameter: Tensor) -> None:
        """Stay: the step begins at the weights."""

    def record_(self, group: Group, state: MutableEntries, parameter: Tensor, before: Tensor) -> None:
        """Average the weights, from the first ones on."""
        if self.key not in state:
            state[self.key] = before.to(_average_dtype(parameter), copy=True)
        anchor = state[self.key]
        anchor.lerp_(parameter.to(anchor.dtype), rate(group))


def rate(group: Group) -> float:
    """Return the weight of what is new in an average whose mean age is a share of the training.

    Example:
        >>> rate({"average_age": 0.099, "total_steps": 1000})
        0.01
    """
    if "average_age" not in group:
        return RATE
    return 1 / (1 + group["average_age"] * group["total_steps"])


def _average_like(parameter: Tensor) -> Tensor:
    return meta_like(parameter).to(_average_dtype(parameter))


def _average_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


# By the name of the point, see `Estimator.reference`.
TRANSPORTS: dict[str, Transport] = {"transported": LastStep(), "averaged": AverageStep(), "anchored": Anchor()}
