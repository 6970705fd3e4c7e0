"""Weight decay, `X <- (1 - lr wd) X`, on all entries or on some."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor


class Decay(ABC):
    """A way to shrink weights, once per step and before they move.

    `reads_units` asks for the step's directions besides the weights.
    """

    reads_units: ClassVar[bool] = False

    def share(self, group: Mapping[str, Any]) -> float | Tensor:
        """Return the share of the weights that a step takes away.

        Args:
            group: A complete group; schedulers add the `initial_lr` that they start from.
        """
        return group["lr"] * group["weight_decay"]

    @abstractmethod
    def shrink_(self, weights: list[Tensor], keep: float | Tensor, units: list[Tensor]) -> None:
        """Shrink weights in place.

        Args:
            weights: The weights, or parts of them that share their storage.
            keep: One less the share.
            units: Their directions, in the same layout; empty unless `reads_units`.
        """


class UniformDecay(Decay):
    """Decay of every entry alike."""

    def shrink_(self, weights: list[Tensor], keep: float | Tensor, units: list[Tensor]) -> None:
        """Multiply by `keep`."""
        torch._foreach_mul_(weights, keep)


class CautiousDecay(Decay):
    """Only the entries that the step makes smaller: those with `X_ij D_ij > 0`.

    References:
        "Cautious Weight Decay", as used in the records of modded-nanogpt.
    """

    reads_units: ClassVar[bool] = True

    def shrink_(self, weights: list[Tensor], keep: float | Tensor, units: list[Tensor]) -> None:
        """Multiply these entries by `keep`."""
        for weight, unit in zip(weights, units, strict=True):
            smaller = weight.sign() * unit.sign() > 0  # a product of the values could underflow
            weight.copy_(torch.where(smaller, weight * keep, weight))


class RelativeDecay(UniformDecay):
    """Decay of all entries, by a weight that follows the learning rate: `weight_decay * lr / initial_lr`."""

    def share(self, group: Mapping[str, Any]) -> float | Tensor:
        """Return `lr * weight_decay * lr / initial_lr`; without a schedule `lr * weight_decay`."""
        first = group.get("initial_lr")
        plain = super().share(group)
        return plain * (group["lr"] / first) if first else plain


DECAYS: dict[str, Decay] = {
    "plain": UniformDecay(),
    "cautious": CautiousDecay(),
    "follows_lr": RelativeDecay(),
}

DECAY_STEPS = 0.2  # share of the steps that the schedule `wsd` decays over


def read_decay(decay: float | str | None) -> tuple[float, str | None]:
    """Return the two things that an argument `decay` may mean: a share of a schedule's steps, or how weights decay.

    Args:
        decay: A number, the name of a decay, or `None`.

    Returns:
        The share, and the name if one was given.

    Raises:
        ValueError: If there is no decay of that name.

    Example:
        >>> read_decay(0.1), read_decay("cautious"), read_decay(None)
        ((0.1, None), (0.2, 'cautious'), (0.2, None))
    """
    if isinstance(decay, str):
        if decay not in DECAYS:
            raise ValueError(
                f"Expected `decay` to be a share of the steps or one of {', '.join(DECAYS)}, but got {decay!r}."
            )
        return DECAY_STEPS, decay
    return DECAY_STEPS if decay is None else decay, None
