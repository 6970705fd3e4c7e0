"""Norms of 2-norms: of rows, columns, vectors and whole tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_gluon.norms.base import MATRIX, Norm, direction, length


@dataclass(frozen=True)
class RowNorm(Norm):
    """Largest row RMS: `||X|| = max_i ||X_i|| / sqrt(n)`, `D_i = sqrt(n) G_i / ||G_i||`, dual `sqrt(n) sum_i ||G_i||`.

    The 1 -> RMS norm of a lookup table (vocabulary, n). A row that is zero stays zero.

    Shapes: (..., m, n).

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> import torch
        >>> RowNorm().dual_norm(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])).item()
        12.0
    """

    separable: ClassVar[tuple[int, ...]] = (-2,)
    _dim: ClassVar[int] = -1

    def norm(self, x: Tensor) -> Tensor:
        """Return the largest RMS."""
        x = self._read(x)
        lengths = length(x, (self._dim,))
        return lengths.amax(MATRIX) / self._root(x)

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return the scaled sum of lengths."""
        g = self._read(g)
        lengths = length(g, (self._dim,))
        return lengths.sum(MATRIX) * self._root(g)

    def lmo(self, g: Tensor) -> Tensor:
        """Return every row (column) scaled to RMS 1."""
        rows = self._read(g)
        units = direction(rows, (self._dim,), self._root(rows))
        return units.view(g.shape)

    def _root(self, matrices: Tensor) -> float:
        """Return the length of a row (column) of RMS 1."""
        return math.sqrt(matrices.shape[self._dim])


@dataclass(frozen=True)
class ColumnNorm(RowNorm):
    """Largest column RMS: `RowNorm` of the transposed matrix, for tables stored (n, vocabulary).

        ||X|| = max_j ||X_j|| / sqrt(m),        D_j = sqrt(m) G_j / ||G_j||,        ||G||_* = sqrt(m) sum_j ||G_j||

    Shapes: (..., m, n).

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> import torch
        >>> ColumnNorm().norm(torch.tensor([[3.0, 0.0], [3.0, 1.0]])).item()
        3.0
    """

    separable: ClassVar[tuple[int, ...]] = (-1,)
    _dim: ClassVar[int] = -2


@dataclass(frozen=True)
class RMSVector(Norm):
    """Root mean square of a vector: `||x|| = ||x||_2 / sqrt(d)`, `D = sqrt(d) g / ||g||_2`, dual `sqrt(d) ||g||_2`.

    Shapes: (..., d): every vector along the last dimension is its own point.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> import torch
        >>> RMSVector().lmo(torch.tensor([3.0, 0.0, 4.0, 0.0]))
        tensor([1.2000, 0.0000, 1.6000, 0.0000])
    """

    rank: ClassVar[int] = 1
    matrices: ClassVar[bool] = False
    guarded: ClassVar[bool] = True

    def norm(self, x: Tensor) -> Tensor:
        """Return the root mean square."""
        lengths = length(self._read(x), (-1,))
        return lengths.squeeze(-1) / math.sqrt(x.shape[-1])

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return `sqrt(d) ||g||`."""
        lengths = length(self._read(g), (-1,))
        return lengths.squeeze(-1) * math.sqrt(g.shape[-1])

    def lmo(self, g: Tensor) -> Tensor:
        """Return `g` scaled to RMS 1."""
        return direction(self._read(g), (-1,), math.sqrt(g.shape[-1]))


@dataclass(frozen=True)
class Euclidean(Norm):
    """Frobenius norm, its own dual: `D = G / ||G||_F` (normalised gradient descent).

    Shapes: (..., m, n); a 1-D input is one vector.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> import torch
        >>> Euclidean().lmo(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """

    matrices: ClassVar[bool] = False
    guarded: ClassVar[bool] = True

    def norm(self, x: Tensor) -> Tensor:
        """Return the Frobenius norm."""
        lengths = length(self._read(x), MATRIX)
        return lengths.squeeze(MATRIX)

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return the Frobenius norm."""
        return self.norm(g)

    def lmo(self, g: Tensor) -> Tensor:
        """Return `g / ||g||_F`."""
        unit = direction(self._read(g), MATRIX, 1.0)
        return unit.view(g.shape)


@dataclass(frozen=True)
class Identity(Euclidean):
    """No oracle: `D = G`, the momentum itself (SGD, AdamW). Lengths are measured in the Frobenius norm.

    Shapes: (..., m, n); a 1-D input is one vector.

    References:
        H. Robbins and S. Monro, "A Stochastic Approximation Method", 1951.

    Example:
        >>> import torch
        >>> Identity().lmo(torch.tensor([3.0, 4.0]))
        tensor([3., 4.])
    """

    guarded: ClassVar[bool] = False
    stacks: ClassVar[bool] = False

    def lmo(self, g: Tensor) -> Tensor:
        """Return `g`."""
        return g
