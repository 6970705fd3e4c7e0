"""The last step, and how a gradient agrees with it: what the rule `calibrate` measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.radii import first_radius, peak_lr
from lightning_gluon.readings import inner, whole

__all__ = ["LastStep"]

# Vectors have few entries per unit of norm: theirs turn negative by noise first. They count where there is nothing
# else.
MATRICES = ("hidden", "embedding", "head")


class LastStep:
    """The weights before the last step: a copy, or the method's own where it keeps the previous iterate exactly.

    Args:
        optimizer: The optimizer.

    Attributes:
        before: The copies, by parameter.
        factor: Factor on all radii of the last step, times the share of its peak that `lr` had.
        lr: `lr` of the first group in the last step.
        decay: Share of the weights that decayed in the last step, by group.
    """

    def __init__(self, optimizer: Gluon) -> None:
        self.optimizer = optimizer
        self.before: dict[Tensor, Tensor] = {}
        self.factor = 1.0
        self.lr = math.inf
        self.decay: list[float] = []

    @torch.no_grad()
    def remember(self, base: Mapping[str, Any], *, copy: bool) -> None:
        """Note the step about to be taken.

        Args:
            base: Initial radii by group name.
            copy: Copy the weights even where the method keeps them.
        """
        groups = self.optimizer.param_groups
        pairs = [(first_radius(group["radius"]), first_radius(base[group["name"]])) for group in groups]
        scale = next((radius / initial for radius, initial in pairs if initial), 1.0)
        peak = peak_lr(groups[0])
        self.factor = scale * (groups[0]["lr"] / peak if peak else 1.0) or 1.0
        self.lr = groups[0]["lr"]
        self.decay = [group["lr"] * group["weight_decay"] for group in groups]
        kept = self.optimizer.reference_point == "previous" and groups[0].get("reference", "copy") == "copy"
        if kept and not copy:
            self.before = {}
            return
        for parameter in (parameter for group in groups for parameter in group["params"]):
            if parameter in self.before:
                self.before[parameter].copy_(parameter)
            else:
                self.before[parameter] = parameter.detach().clone()

    def unit_step(self) -> dict[Tensor, Tensor]:
        """Return `X^{k-1} - X^k` per unit of the factor."""
        return {p: (before - p.detach()).div_(self.factor) for p, before in self.before.items()}

    @torch.no_grad()
    def agreement(self, gradients: Mapping[Tensor, Tensor | None]) -> float:
        """Return `sum_i u_i <g_i, D_i>` over the matrices, the decay left out: loss per unit of the factor.

        Args:
            gradients: Gradients by parameter.

        Returns:
            The sum; 0 where nothing has moved.
        """
        terms = []
        groups = self.optimizer.param_groups
        matrices = [group["role"] in MATRICES for group in groups]
        for group, decay, counts in zip(groups, self.decay, matrices, strict=False):
            for parameter in group["params"] if counts or not any(matrices) else ():
                gradient, before = gradients.get(parameter), self._before(parameter)
                if gradient is not None and before is not None:
                    origin = (1 - decay) * whole(before) if decay else whole(before)
                    terms.append(inner(origin - whole(parameter), whole(gradient)).float())
        return (
            math.fsum(torch.stack([term.to(terms[0].device) for term in terms]).tolist()) / self.factor
            if terms
            else 0.0
        )

    def _before(self, parameter: Tensor) -> Tensor | None:
        if parameter in self.before:
            return self.before[parameter]
        return self.optimizer.state.get(parameter, {}).get("previous")

    def warming_up(self) -> float:
        """Return the share of its peak that `lr` has reached, if it is rising; else 1."""
        group = self.optimizer.param_groups[0]
        return min(1.0, group["lr"] / peak_lr(group)) if group["lr"] > self.lr and peak_lr(group) else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, and the copies by parameter name."""
        names = {layer.parameter: layer.name for layer in self.optimizer.layers()}
        before = {names[parameter]: value.clone() for parameter, value in self.before.items()}
        return {"factor": self.factor, "lr": self.lr, "decay": list(self.decay), "before": before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.factor, self.lr, self.decay = state["factor"], state["lr"], list(state["decay"])
        for layer in self.optimizer.layers():
            if layer.name in state["before"]:
                self.before[layer.parameter] = state["before"][layer.name].to(layer.parameter.device, copy=True)
