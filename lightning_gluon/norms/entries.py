"""Norms of entries: the largest one, plain (signSGD) and in the units of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.base import MATRIX, Norm, largest, to_wide
from lightning_gluon.norms.needs import Context


@dataclass(frozen=True)
class Max(Norm):
    """Largest entry: `||X|| = max |X_ij|`, `D = sign(G)`, dual norm `sum |G_ij|` (signSGD).

    Shapes: (..., m, n); a 1-D input is one vector.

    References:
        SignSGD, arXiv 2605.06615.

    Example:
        >>> Max().lmo(torch.tensor([0.5, -2.0, 0.0]))
        tensor([ 1., -1.,  0.])
    """

    matrices: ClassVar[bool] = False
    guarded: ClassVar[bool] = True
    separable: ClassVar[tuple[int, ...]] = MATRIX

    def norm(self, x: Tensor) -> Tensor:
        """Return the largest magnitude."""
        x = self._read(x)
        return largest(x, MATRIX).squeeze(MATRIX) * self._width(x)

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return the (scaled) sum of magnitudes."""
        g = self._read(g)
        return torch.linalg.vector_norm(to_wide(g), ord=1, dim=MATRIX) / self._width(g)

    def lmo(self, g: Tensor) -> Tensor:
        """Return the (scaled) signs."""
        self._read(g)
        return torch.sign(g)

    def _width(self, tensor: Tensor) -> int:
        return 1


@dataclass(frozen=True)
class Sign(Max):
    """The 1 -> inf operator norm in the units of a table of width n: `||X|| = n max |X_ij|`, `D = sign(G) / n`.

    Shapes: (..., m, n); n is the last dimension: the model width of a (vocabulary, n) embedding or head.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> Sign().lmo(torch.tensor([[3.0, -1.0], [0.0, 2.0]]))
        tensor([[ 0.5000, -0.5000],
                [ 0.0000,  0.5000]])
    """

    matrices: ClassVar[bool] = True
    guarded: ClassVar[bool] = False
    separable: ClassVar[tuple[int, ...]] = (-2,)  # a piece of a row does not know the width

    def lmo(self, g: Tensor) -> Tensor:
        """Return `sign(g) / n`."""
        return torch.sign(self._read(g)).div_(g.shape[-1]).view(g.shape)

    def on(self, like: Tensor, shape: Sequence[int]) -> Norm:
        """Return, on a GPU, the signs alone: the length of the step takes the division then."""
        return TableSigns() if like.is_cuda and type(self).lmo is Sign.lmo else self

    def _width(self, tensor: Tensor) -> int:
        return tensor.shape[-1]


@dataclass(frozen=True)
class TableSigns(Max):
    """Directions of `Sign` as `sign(G)`, with the `1 / n` as their scale."""

    matrices: ClassVar[bool] = True

    def scale(self, rows: int, columns: int, kernel: int = 1) -> float:
        """Return `1 / n`."""
        return 1 / columns

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        """Return the signs."""
        return torch.sign(stack)
