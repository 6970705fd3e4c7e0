"""The last step, and how a gradient agrees with it: what the rule `calibrate` measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.radius.radii import first_radius, peak_lr
from lightning_gluon.smoothness.readings import inner, whole

__all__ = ["LastStep"]

# Vectors, with few entries per unit of norm, turn negative by noise first. They count where there is nothing else.
MATRICES = ("hidden", "input", "embedding", "head")


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
            copy: Copy all weights, also those that the method keeps or that `agreement` does not count.
        """
        groups = self.optimizer.param_groups
        pairs = [(first_radius(group["radius"]), first_radius(base[group["name"]])) for group in groups]
        scale = next((radius / initial for radius, initial in pairs if initial), 1.0)
        peak = peak_lr(groups[0])
        self.factor = scale * (groups[0]["lr"] / peak if peak else 1.0) or 1.0
        self.lr = groups[0]["lr"]
        self.decay = [group["lr"] * group["weight_decay"] for group in groups]
        kept = self.optimizer.reference_point == "previous" and groups[0].get("reference", "copy") == "copy"
        chosen = groups if copy else [group for family in self.families() for group, _ in family]
        if kept and not copy:
            chosen = [group for group in chosen if group["estimator"] == "adamw"]  # nothing is kept of these
            self.before = {p: self.before[p] for group in chosen for p in group["params"] if p in self.before}
        for parameter in (parameter for group in chosen for parameter in group["params"]):
            if parameter in self.before:
                self.before[parameter].copy_(parameter)
            else:
                self.before[parameter] = parameter.detach().clone()

    def unit_step(self) -> dict[Tensor, Tensor]:
        """Return `X^{k-1} - X^k` per unit of the factor."""
        return {p: (before - p.detach()).div_(self.factor) for p, before in self.before.items()}

    @torch.no_grad()
    def agreement(self, gradients: Mapping[Tensor, Tensor | None], family: int = 0) -> Tensor:
        """Return `sum_i <g_i, T_i>` and its largest possible value `sum_i ||g_i|| ||T_i||`, the decay left out.

        Args:
            gradients: Gradients by parameter.
            family: Which of `families`.

        Returns:
            Both sums; nobody has waited for them.
        """
        terms, largest = [], []
        for group, decay in self.families()[family]:
            for parameter in group["params"]:
                gradient, before = gradients.get(parameter), self._before(parameter)
                if gradient is not None and before is not None:
                    step = ((1 - decay) * whole(before) if decay else whole(before)) - whole(parameter)
                    gradient = whole(gradient)
                    terms.append(inner(step, gradient).float())
                    largest.append((step.norm() * gradient.norm()).float())
        if not terms:
            return torch.zeros(2)
        total = [torch.stack([value.to(values[0].device) for value in values]).sum() for values in (terms, largest)]
        return torch.stack(total)

    def families(self) -> list[list[tuple[dict[str, Any], float]]]:
        """Return groups with their decay: the matrices that an LMO steps, and those that AdamW steps beside it.

        Where there is only one kind of these it is alone, and where there are no matrices all groups are.
        """
        pairs = list(zip(self.optimizer.param_groups, self.decay, strict=False))
        matrices = [(group, decay) for group, decay in pairs if group["role"] in MATRICES]
        lmo = [pair for pair in matrices if pair[0]["estimator"] != "adamw"]
        adamw = [pair for pair in matrices if pair[0]["estimator"] == "adamw"]
        return [lmo, adamw] if lmo and adamw else [matrices or pairs]

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
