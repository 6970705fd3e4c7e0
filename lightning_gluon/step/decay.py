"""Weight decay, `X <- (1 - lr wd) X`, on all entries or on some."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Decay(ABC):
    """A way to shrink weights, once per step and before they move.

    `reads_units` asks for the step's directions besides the weights.
    """

    reads_units: ClassVar[bool] = False

    @abstractmethod
    def shrink_(self, weights: list[Tensor], keep: float | Tensor, units: list[Tensor]) -> None:
        """Shrink weights in place.

        Args:
            weights: The weights, or parts of them that share their storage.
            keep: `1 - lr * weight_decay`.
            units: Their directions, in the same layout; empty unless `reads_units`.
        """


class UniformDecay(Decay):
    """Decay of every entry alike."""

    def shrink_(self, weights: list[Tensor], keep: float | Tensor, units: list[Tensor]) -> None:
        """Multiply by `keep`."""
        torch._foreach_mul_(weights, keep)


DECAYS: dict[str, Decay] = {"plain": UniformDecay()}
