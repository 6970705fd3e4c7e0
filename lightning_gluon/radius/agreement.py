"""Agreement of a gradient with the last step: the measurement behind the rule `calibrate`.

With `T_i = (1 - lr wd) X_i^{k-1} - X_i^k` the last step of matrix i without the decay, and `g_i` a fresh gradient,

    a = sum_i <g_i, T_i> / sum_i ||g_i|| ||T_i||        in [-1, 1], Euclidean norms
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_gluon.optimizer import Gluon
from lightning_gluon.options import Group
from lightning_gluon.radius.observe import Fields, Measurement, StepRecord
from lightning_gluon.radius.radii import peak_lr, stepped_by_adamw
from lightning_gluon.radius.saved import Saved, SavedState
from lightning_gluon.roles import ROLES
from lightning_gluon.smoothness.readings import gather_wide, inner
from lightning_gluon.valid import number

Family: TypeAlias = list[tuple[Group, float]]


class Agreement(Measurement):
    """Keep the weights before the last step, and measure how far gradients agree with it.

        a = sum_i <g_i, T_i> / sum_i ||g_i|| ||T_i||,        T_i = (1 - lr wd) X_i^{k-1} - X_i^k

    It fills `agreement`, `reference_agreement`, `adamw_agreement`, `loss` and `warming_up` of the `Observation`. Only
    matrices count, if there are any: vectors, with few entries per unit of norm, turn negative by noise first.

    Shapes: gradients and weights of any shape, in matching pairs; `agreement` gives two sums, shape (2,).

    Args:
        optimizer: The optimizer.

    Attributes:
        before: Copies of the weights before the last step, by parameter; none of those that the method keeps itself.
        lr: `lr` of the first group in the last step.
        decay: Share of the weights that decayed in the last step, by group; empty before the first step.

    References:
        `docs/primers/radius.md`.

    Example:
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> optimizer = Gluon(layer, lr=0.1)
        >>> measurement = Agreement(optimizer)
        >>> layer.weight.grad = torch.eye(2)
        >>> measurement.remember()
        >>> optimizer.step()
        >>> product, bound = measurement.agreement({layer.weight: torch.eye(2)})
        >>> round(float(product / bound), 2), measurement.warming_up(), len(measurement.families())
        (1.0, 1.0, 1)
        >>> round(measurement.observe(StepRecord(torch.tensor(0.5)))["agreement"], 2)
        1.0
        >>> measurement.forget()
    """

    def __init__(self, optimizer: Gluon) -> None:
        super().__init__(optimizer)
        self.before: dict[Tensor, Tensor] = {}
        self.lr = math.inf
        self.decay: list[float] = []

    @torch.no_grad()
    def remember(self) -> None:
        """Note the step about to be taken, and copy the weights that the method does not keep itself."""
        groups = self.optimizer.param_groups
        self.lr = float(groups[0]["lr"])  # a tensor would change with the schedule
        self.decay = []
        for group in groups:
            lr = float(group["lr"])
            self.decay.append(lr * group["weight_decay"])
        for parameter in self._copied():
            if parameter in self.before:
                self.before[parameter].copy_(parameter)
            else:
                weights = parameter.detach()
                self.before[parameter] = weights.clone()

    def _copied(self) -> Iterator[Tensor]:
        """Yield the parameters whose previous weights nobody else keeps."""
        kept = _keeps_previous(self.optimizer)
        for family in self.families():
            for group, _ in family:
                if not kept or stepped_by_adamw(group):
                    yield from group["params"]

    def observe(self, record: StepRecord) -> Fields:
        """Return the agreements and the loss; waits for the device once."""
        fields: Fields = {}
        fields["warming_up"] = self.warming_up()
        if not self.decay:  # no step was remembered
            return fields
        sums = self._sums()
        largest = {name: both[1] for name, both in sums.items()}
        largest["reference_agreement"] = largest["agreement"]  # over the same norms
        loss = torch.as_tensor(record.loss)
        loss = loss.to(largest["agreement"])
        values = []
        for name, (product, _) in sums.items():
            unit = largest[name]
            unit = unit.where(unit > 0, 1.0)
            share = product / unit
            values.append(share.to(loss.device))
        names = [*sums, "loss"]
        values.append(loss)
        means = record.mean(torch.stack(values))
        fields.update(zip(names, means, strict=True))
        return fields

    def _sums(self) -> dict[str, Tensor]:
        optimizer = self.optimizer
        gradients = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                gradients[parameter] = parameter.grad
        sums = {"agreement": self.agreement(gradients)}
        if optimizer.reference_point == "previous" and optimizer.reference_gradients:
            sums["reference_agreement"] = self.agreement(optimizer.reference_gradients)
        if len(self.families()) > 1:
            sums["adamw_agreement"] = self.agreement(gradients, family=1)
        return sums

    @torch.no_grad()
    def agreement(self, gradients: Mapping[Tensor, Tensor | None], family: int = 0) -> Tensor:
        """Return `sum_i <g_i, T_i>` and its largest possible value `sum_i ||g_i|| ||T_i||`, the decay left out.

        Args:
            gradients: Mapping[Tensor, Tensor | None] by parameter.
            family: Which of `families`.

        Returns:
            Both sums, shape (2,); nobody has waited for them.
        """
        products, bounds = [], []
        members = self.families()[family]
        for parameter, decay in _members(members):
            gradient = gradients.get(parameter)
            before = self._before(parameter)
            if gradient is None or before is None:
                continue
            step = _last_step(before, parameter, decay)
            gradient = gather_wide(gradient)
            product = inner(step, gradient)
            bound = step.norm() * gradient.norm()
            products.append(product.float())
            bounds.append(bound.float())
        if not products:
            return torch.zeros(2)
        return torch.stack([_sum(products), _sum(bounds)])

    def families(self) -> list[Family]:
        """Return groups with their decay: the matrices that an LMO steps, and those that AdamW steps next to it.

        If there is only one kind of these, it is alone. If there are no matrices, all groups are one family.
        """
        lmo, adamw, vectors = [], [], []
        groups = self.optimizer.param_groups
        for group, decay in zip(groups, self.decay, strict=False):
            if not ROLES[group["role"]].matrices:
                vectors.append((group, decay))
            elif stepped_by_adamw(group):
                adamw.append((group, decay))
            else:
                lmo.append((group, decay))
        if lmo and adamw:
            return [lmo, adamw]
        return [lmo or adamw or vectors]

    def _before(self, parameter: Tensor) -> Tensor | None:
        if parameter in self.before:
            return self.before[parameter]
        own = self.optimizer.state.get(parameter, {})
        return own.get("previous")

    def warming_up(self) -> float:
        """Return the share of its peak that `lr` has reached, if it is rising; else 1."""
        group = self.optimizer.param_groups[0]
        peak = peak_lr(group)
        lr = group["lr"]
        if lr > self.lr and peak:
            return min(1.0, lr / peak)
        return 1.0

    def forget(self) -> None:
        """Let go of the copies."""
        self.before = {}

    def state_dict(self) -> SavedState:
        """Return plain values, and the copies by parameter name."""
        before = {}
        for layer in self.optimizer.layers():
            if layer.parameter in self.before:
                copy = self.before[layer.parameter]
                before[layer.name] = copy.clone()
        return {
            "lr": self.lr,
            "decay": list(self.decay),
            "before": before,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore them, or raise a `ValueError` before anything has changed."""
        saved = Saved(state, "RadiusScheduler.measurements.Agreement")
        infinite_too = number(signs="<= <=")  # before the first step
        lr = saved.number("lr", infinite_too)
        decay = saved.numbers("decay")
        known = {}
        for layer in self.optimizer.layers():
            known[layer.name] = layer.parameter
        self.before = saved.tensors("before", known)
        self.lr, self.decay = lr, decay


def _keeps_previous(optimizer: Gluon) -> bool:
    """Return whether the method keeps the previous weights exactly."""
    first = optimizer.param_groups[0]
    exact = first.get("reference", "copy") == "copy"
    return exact and optimizer.reference_point == "previous"


def _members(family: Family) -> Iterator[tuple[Tensor, float]]:
    for group, decay in family:
        for parameter in group["params"]:
            yield parameter, decay


def _last_step(before: Tensor, parameter: Tensor, decay: float) -> Tensor:
    """Return the last step of a parameter, the decay left out."""
    start = gather_wide(before)
    if decay:
        start = (1 - decay) * start
    return start - gather_wide(parameter)


def _sum(values: Sequence[Tensor]) -> Tensor:
    device = values[0].device
    together = [value.to(device) for value in values]
    return torch.stack(together).sum()
