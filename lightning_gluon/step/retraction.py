"""Retractions: sets that weights are brought back to after the step, such as a sphere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.base import MATRIX, length
from lightning_gluon.norms.needs import Context, Needs, Statistic
from lightning_gluon.norms.numerics import one_if_zero
from lightning_gluon.norms.relative import SPHERE


class Retraction(Needs, ABC):
    """Brings the matrices of a stack back to a set.

    Example:
        >>> class UnitRows(Retraction):
        ...     def retract_(self, weights, context):
        ...         weights.div_(weights.norm(dim=-1, keepdim=True))
    """

    @abstractmethod
    def retract_(self, weights: Tensor, context: Context) -> None:
        """Bring weights back, in place.

        Args:
            weights: Matrices `(count, rows, columns)` after the step, in fp32 or wider.
            context: The statistics that the retraction declares.
        """


class SphereRetraction(Retraction):
    """`W <- R W / ||W||_F`, with the Frobenius norm `R = ||W_0||_F`; a matrix that starts at zero is left alone.

    References:
        Hyperball, arXiv 2606.16899.
    """

    statistics: ClassVar[tuple[Statistic, ...]] = (SPHERE,)

    def retract_(self, weights: Tensor, context: Context) -> None:
        """Bring the matrices back to their spheres."""
        radius = context.statistics["sphere"]
        factor = radius / one_if_zero(length(weights, MATRIX))
        weights.mul_(torch.where(factor > 0, factor, torch.ones_like(factor)))


RETRACTIONS: dict[str, Retraction] = {"sphere": SphereRetraction()}
