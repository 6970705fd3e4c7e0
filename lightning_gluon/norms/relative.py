"""Spectral steps whose length is relative to the Frobenius norm that a matrix starts with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.base import MATRIX, length, to_wide
from lightning_gluon.norms.needs import Context, Statistic
from lightning_gluon.norms.numerics import one_if_zero
from lightning_gluon.norms.spectral import Spectral


def _first_size(weights: Tensor) -> Tensor:
    return length(weights, MATRIX)


SPHERE = Statistic("sphere", lambda rows, columns: (1, 1), _first_size)


@dataclass(frozen=True)
class Relative(Spectral):
    """`R U V^T / ||U V^T||_F`, with the Frobenius norm `R = ||W_0||_F` that the matrix has before its first step.

    A matrix that starts at zero has no size to be relative to, and steps by `U V^T`. Lengths, dual norms and `lmo` are
    the spectral ones, without a scale.

    Shapes: (..., m, n) = (..., out, in).

    Args:
        scaling: Not read: the length is relative.
        orthogonalizer: As in `Spectral`.
        steps: As in `Spectral`.
        dtype: As in `Spectral`.

    Raises:
        ValueError: As in `Spectral`.

    References:
        Hyperball, arXiv 2606.16899.

    Example:
        >>> norm = Relative(orthogonalizer="svd")
        >>> context = Context(statistics={"sphere": torch.full((1, 1, 1), 6.0)})
        >>> norm.lmo_(torch.eye(4)[None], context).norm().item()
        6.0
    """

    options: ClassVar[Mapping[str, str]] = {
        option: name for option, name in Spectral.options.items() if option not in {"scaling"}
    }
    attains: ClassVar[bool] = False
    statistics: ClassVar[tuple[Statistic, ...]] = (SPHERE,)

    scaling: str = "none"

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        """Return the directions of the lengths `R`."""
        units = to_wide(super().lmo_(stack, context))
        radius = context.statistics["sphere"].to(units.dtype)
        factor = radius / one_if_zero(length(units, MATRIX))
        return units * torch.where(radius > 0, factor, torch.ones_like(factor))
