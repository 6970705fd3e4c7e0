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
            context: The statistics and the weights before the step, if the retraction declares them.
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


class BrakeRetraction(Retraction):
    """Half of the way outward: the step's outward part along W counts half, and the norm grows by that part alone.

        T = W_new - W,   r = <T, W> / ||W||_F,   r' = r / 2 if r > 0 else r,   rho = ||W||_F + r'
        W <- rho N(W + T - (r - r') W / ||W||_F),        N(X) = X / ||X||_F

    `W` are the weights after the decay. A step along a sphere leaves it too, by the root of the sum of the squares:
    the rescaling takes that away. A matrix of zeros is left alone.

    References:
        The radial brake of `modded-nanogpt`, track 3. That `rho` is its "intended norm" is our reading.
    """

    reads_weights: ClassVar[bool] = True
    outward: ClassVar[float] = 0.5

    def retract_(self, weights: Tensor, context: Context) -> None:
        """Shorten the outward part and set the norm."""
        assert context.weights is not None
        before = context.weights
        size = length(before, MATRIX)
        axis = before / one_if_zero(size)
        radial = ((weights - before) * axis).sum(MATRIX, keepdim=True)
        braked = torch.where(radial > 0, self.outward * radial, radial)
        moved = weights - (radial - braked) * axis
        wanted = (size + braked).abs()
        factor = wanted / one_if_zero(length(moved, MATRIX))
        weights.copy_(torch.where(size > 0, moved * factor, weights))


RETRACTIONS: dict[str, Retraction] = {"sphere": SphereRetraction(), "brake": BrakeRetraction()}
