"""The noise of a batch, told from its parts: the micro-batches of an accumulation window, on every rank.

Of `P` parts on `R` ranks, `x_p` is the gradient of part `p` or its difference `c_new - c_old`, as it is added up. With
their sum averaged over the ranks, `S = 1/R sum_p x_p`,

    power     ||S||^2
    signal    P / (P - 1) (||S||^2 - 1/R^2 sum_p ||x_p||^2)
    noise     power - signal

Noise of two parts is independent, so the signal has no bias: it is `||E S||^2`. Of two halves it is `<x_A, x_B>` of
their means, of more parts the mean of that over all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_gluon.options import Group

__all__ = ["BatchParts", "PartReadings", "Spread"]

ByParameter: TypeAlias = Mapping[Tensor, Tensor]
OverRanks: TypeAlias = Callable[[Tensor], Tensor]  # a mean
PER_GROUP = 3  # numbers that are summed over the parts: the squares of differences and of gradients, and their count


class Spread(NamedTuple):
    """The squared length of a sum of parts, and the share of it that is not noise, in the same units."""

    power: float
    signal: float

    @property
    def noise(self) -> float:
        """The rest; below zero by chance."""
        return self.power - self.signal

    @classmethod
    def of(cls, power: float, squares: float, parts: float, ranks: int) -> Spread:
        """Return what parts tell.

        Args:
            power: `||S||^2`.
            squares: `sum_p ||x_p||^2`, averaged over the ranks.
            parts: Their number in all, two or more.
            ranks: Ranks.

        Returns:
            Power and signal.

        Example:
            >>> Spread.of(power=1.0, squares=0.5, parts=2, ranks=1)  # 1/2 and 1/2, at a right angle
            Spread(power=1.0, signal=1.0)
        """
        return cls(power, parts / (parts - 1) * (power - squares / ranks))


class PartReading(NamedTuple):
    """The spread of a group's difference and of its gradient in one step."""

    difference: Spread
    gradient: Spread


@dataclass
class PartReadings:
    """Readings of all groups in one step, on the device until somebody reads them.

    Args:
        names: Names of the groups.
        values: `(groups, 5)`: what is summed over the parts, averaged over the ranks, then the powers of differences
            and gradients.
        ranks: Ranks.
    """

    names: Sequence[str]
    values: Tensor
    ranks: int
    _read: dict[str, PartReading] | None = None

    def read(self) -> dict[str, PartReading]:
        """Return the reading of every group with two parts or more, waiting for the device."""
        if self._read is None:
            rows = zip(self.names, self.values.tolist(), strict=True)
            found = {name: self._reading(*row) for name, row in rows}
            self._read = {name: reading for name, reading in found.items() if reading is not None}
        return self._read

    def _reading(
        self, differences: float, gradients: float, count: float, moved: float, length: float
    ) -> PartReading | None:
        parts = round(count * self.ranks)
        if parts < 2:
            return None
        difference = Spread.of(moved, differences, parts, self.ranks)
        return PartReading(difference, Spread.of(length, gradients, parts, self.ranks))


@dataclass
class BatchParts:
    """The parts of the window in progress.

    Args:
        sums: What is summed over its parts so far, by group name.
        held: The difference of the part in progress: one more copy of its gradients.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    held: dict[Tensor, Tensor] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin a window."""
        self.sums = {}
        self.held = {}

    @contextmanager
    def first(self, groups: Iterable[Group]) -> Iterator[None]:
        """Hold the gradients of a part that a backward pass gives at the weights.

        Args:
            groups: The groups.

        Yields:
            Nothing; run the backward pass inside, or after `first` was entered and before it is left.
        """
        self.held = {}
        with _hooks(_params(groups), partial(self._add, sign=1)):
            yield

    @contextmanager
    def second(self, groups: Sequence[Group]) -> Iterator[None]:
        """Subtract those of the backward pass inside, at the previous iterate, and end the part.

        Args:
            groups: The groups.

        Yields:
            Nothing.
        """
        lengths = {group["name"]: self._square(group) for group in groups}
        with _hooks(_params(groups), partial(self._add, sign=-1)):
            yield
        for group in groups:
            name, length = group["name"], lengths[group["name"]]
            part = torch.stack((self._square(group), length, torch.ones_like(length)))
            self.sums[name] = self.sums[name] + part if name in self.sums else part
        self.held = {}

    def _add(self, parameter: Tensor, gradient: Tensor, sign: int) -> None:
        if parameter in self.held:
            self.held[parameter].add_(gradient, alpha=sign)
        else:
            self.held[parameter] = gradient * sign

    def _square(self, group: Group) -> Tensor:
        own = [self.held[parameter] for parameter in group["params"] if parameter in self.held]
        return square(own, group["params"][0].device)

    def end(
        self,
        groups: Sequence[Group],
        references: ByParameter,
        scale: float,
        mean: OverRanks,
        ranks: int,
    ) -> PartReadings:
        """Return what the window tells, and begin the next one.

        Args:
            groups: The groups, their gradients in `.grad`, as they were added up and without a loss scale.
            references: Those at the previous iterate.
            scale: The loss scale that gradients had in the backward passes.
            mean: Averages a tensor over the ranks.
            ranks: Ranks.

        Returns:
            The readings.
        """
        device = groups[0]["params"][0].device
        sums = mean(torch.stack([self._summed(group).to(device) for group in groups]))
        sums[:, :2] /= scale**2
        powers = [_powers(group, references).to(device) for group in groups]
        values = torch.cat((sums, torch.stack(powers)), dim=1)
        self.begin()
        return PartReadings([group["name"] for group in groups], values, ranks)

    def saved(self, groups: Sequence[Group], mean: OverRanks) -> dict[str, Tensor]:
        """Return the sums of an unfinished window for a checkpoint, averaged over the ranks, by group name."""
        return {group["name"]: mean(self._summed(group)) for group in groups}

    def load(self, groups: Sequence[Group], saved: Mapping[str, Tensor]) -> None:
        """Continue a window that a checkpoint was taken in.

        Args:
            groups: The groups.
            saved: Result of `saved`.

        Raises:
            ValueError: If an entry is not three numbers.
        """
        self.begin()
        for group in groups:
            own = saved.get(group["name"])
            if own is None:
                continue
            if not isinstance(own, Tensor) or own.shape != (PER_GROUP,):
                raise ValueError(
                    f"Expected `parts` of group {group['name']!r} in the saved state of the optimizer to be "
                    f"{PER_GROUP} numbers: the checkpoint is damaged."
                )
            self.sums[group["name"]] = own.to(group["params"][0].device, copy=True)

    def _summed(self, group: Group) -> Tensor:
        """Return a copy of what is summed of a group."""
        if group["name"] not in self.sums:
            return torch.zeros(PER_GROUP, device=group["params"][0].device)
        return self.sums[group["name"]].clone()


def _params(groups: Iterable[Group]) -> list[Tensor]:
    return [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]


def square(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Return the squared length of tensors together, in fp32 or wider."""
    if not tensors:
        return torch.zeros((), device=device)
    wide = reduce(torch.promote_types, [tensor.dtype for tensor in tensors], torch.float32)
    norms = [norm.to(device) for norm in torch._foreach_norm(tensors, 2, dtype=wide)]
    return torch.stack(norms).square().sum()


def _powers(group: Group, references: ByParameter) -> Tensor:
    """Return the squared lengths of difference and gradient of a group."""
    params = [parameter for parameter in group["params"] if parameter.grad is not None]
    gradients = [parameter.grad for parameter in params]
    differences = []
    for parameter, gradient in zip(params, gradients, strict=True):
        differences.append(gradient - references[parameter] if parameter in references else gradient)
    device = group["params"][0].device
    return torch.stack((square(differences, device), square(gradients, device)))


@contextmanager
def _hooks(params: Iterable[Tensor], add: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Hand on the gradients of a backward pass, before they are added up or averaged over ranks."""
    with ExitStack() as hooks:
        for parameter in params:
            handle = parameter.register_hook(partial(add, parameter))
            hooks.callback(handle.remove)
        yield
