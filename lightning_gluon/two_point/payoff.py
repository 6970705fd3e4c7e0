"""Two readings that tell whether a second gradient can pay, from the parts of every batch.

    sd_to_sigma   sqrt(noise of c_new - c_old / noise of c_new)
    turning       1 - ||mean g||^2 / mean ||g||^2 of the true gradients g of the last 1 / (1 - b) steps

The recursion of a second gradient sums the noise of differences, so it needs a small `sd_to_sigma`. `turning` is the
share of the gradient that turns round within the memory of the momentum: a momentum close to the present gradient has
it, and an average does not.

Both means are exponential, with the momentum `b`, and noise is taken out of both:

    G <- b G + (1 - b) c_new,     n <- b^2 n + (1 - b)^2 noise,     s <- b s + (1 - b) signal
    turning = 1 - (||G||^2 - n) / s
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_gluon.options import Group
from lightning_gluon.two_point.parts import PartReading, PartReadings, square

__all__ = ["PayOff"]


@dataclass
class GroupAverages:
    """Averages of one group over the steps so far.

    Args:
        mean: `G`, by parameter.
        variance: `n`, the noise in it.
        signal: `s`.
        difference: Noise of the difference.
        gradient: Noise of the gradient.
    """

    mean: dict[Tensor, Tensor] = field(default_factory=dict)
    variance: float = 0.0
    signal: float = 0.0
    difference: float = 0.0
    gradient: float = 0.0

    def add(self, group: Group, reading: PartReading) -> None:
        """Add a step, its gradients in `.grad`; the first one is the average itself."""
        kept = group["momentum"] if self.mean else 0.0
        for parameter in group["params"]:
            if parameter.grad is not None:
                wide = parameter.grad.to(torch.promote_types(parameter.grad.dtype, torch.float32))
                mean = self.mean.setdefault(parameter, torch.zeros_like(wide))
                mean.lerp_(wide, 1 - kept)
        new = 1 - kept
        self.variance = kept**2 * self.variance + new**2 * reading.gradient.noise
        self.signal = kept * self.signal + new * reading.gradient.signal
        self.difference = kept * self.difference + new * reading.difference.noise
        self.gradient = kept * self.gradient + new * reading.gradient.noise

    def sd_to_sigma(self) -> float:
        """Return it; NaN while chance makes a noise negative."""
        if self.gradient <= 0 or self.difference < 0:
            return math.nan
        return math.sqrt(self.difference / self.gradient)

    def turning(self) -> float:
        """Return it; NaN while chance makes the signal negative."""
        means = list(self.mean.values())
        if self.signal <= 0 or not means:
            return math.nan
        return 1 - (square(means, means[0].device).item() - self.variance) / self.signal


@dataclass
class PayOff:
    """The readings of all groups.

    Args:
        averages: What they come from, by group name: one more copy of the gradients.

    Example:
        >>> PayOff().values()
        {}
    """

    averages: dict[str, GroupAverages] = field(default_factory=dict)

    @torch.no_grad()
    def observe(self, groups: Sequence[Group], readings: PartReadings) -> None:
        """Add a step, waiting for the device.

        Args:
            groups: The groups, their gradients in `.grad`.
            readings: What the parts of this step tell.
        """
        found = readings.read()
        if not all(math.isfinite(reading.gradient.power) for reading in found.values()):
            return  # an overflowing loss scale: this step is not taken
        for group in groups:
            if group["name"] in found:
                self.averages.setdefault(group["name"], GroupAverages()).add(group, found[group["name"]])

    def values(self) -> dict[str, float]:
        """Return `sd_to_sigma/<group>` and `turning/<group>`, as far as they are known."""
        found = {}
        for name, own in self.averages.items():
            found[f"sd_to_sigma/{name}"] = own.sd_to_sigma()
            found[f"turning/{name}"] = own.turning()
        return {key: value for key, value in found.items() if math.isfinite(value)}
