"""Norms of 2-norms: of rows, columns, vectors and whole tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.base import MATRIX, Norm, direction, largest, length, to_wide
from lightning_gluon.norms.numerics import one_if_zero


@dataclass(frozen=True)
class RowScaling:
    """Size of a row of n entries in a direction: the same number as its length and as its RMS."""

    length: Callable[[int], float]
    rms: Callable[[int], float]


ROW_SCALINGS = {
    "rms": RowScaling(math.sqrt, lambda n: 1.0),
    "sign": RowScaling(lambda n: 1 / math.sqrt(n), lambda n: 1 / n),
    "none": RowScaling(lambda n: 1.0, lambda n: 1 / math.sqrt(n)),
}


@dataclass(frozen=True)
class RowNorm(Norm):
    """Longest row: `||X|| = max_i ||X_i|| / s`, `D_i = s G_i / ||G_i||`, dual `s sum_i ||G_i||`.

        s(n) = sqrt(n)        rms: rows of RMS 1, the 1 -> RMS norm of a lookup table (vocabulary, n)
               1 / sqrt(n)    sign: rows as long as those of `Sign`, the RMS -> inf norm of an output layer
               1              none

    A row that is zero stays zero.

    Shapes: (..., m, n).

    Args:
        scaling: `rms`, `sign` or `none`.

    Raises:
        ValueError: If `scaling` is none of them.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> import torch
        >>> RowNorm().dual_norm(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])).item()
        12.0
    """

    separable: ClassVar[tuple[int, ...]] = (-2,)
    options: ClassVar[Mapping[str, str]] = {"row_scaling": "scaling"}
    _dim: ClassVar[int] = -1

    scaling: str = "rms"

    def __post_init__(self) -> None:
        """Check the scaling."""
        if self.scaling not in ROW_SCALINGS:
            raise ValueError(
                f"Expected `scaling` of rows to be one of {', '.join(ROW_SCALINGS)}, but got {self.scaling!r}. Check "
                "the spelling."
            )

    def norm(self, x: Tensor) -> Tensor:
        """Return the largest length, in units of s."""
        x = self._read(x)
        lengths = length(x, (self._dim,))
        return lengths.amax(MATRIX) / self._root(x)

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return the sum of lengths, times s."""
        g = self._read(g)
        lengths = length(g, (self._dim,))
        return lengths.sum(MATRIX) * self._root(g)

    def lmo(self, g: Tensor) -> Tensor:
        """Return every row (column) at the length s."""
        rows = self._read(g)
        units = direction(rows, (self._dim,), self._root(rows))
        return units.view(g.shape)

    def _root(self, matrices: Tensor) -> float:
        """Return the length s of a row (column) of the direction."""
        return ROW_SCALINGS[self.scaling].length(matrices.shape[self._dim])


@dataclass(frozen=True)
class ColumnNorm(RowNorm):
    """Longest column: `RowNorm` of the transposed matrix, for tables stored (n, vocabulary).

        ||X|| = max_j ||X_j|| / s,        D_j = s G_j / ||G_j||,        ||G||_* = s sum_j ||G_j||,        s = s(m)

    Shapes: (..., m, n).

    Args:
        scaling: As in `RowNorm`.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> import torch
        >>> ColumnNorm().norm(torch.tensor([[3.0, 0.0], [3.0, 1.0]])).item()
        3.0
    """

    separable: ClassVar[tuple[int, ...]] = (-1,)
    _dim: ClassVar[int] = -2


# Of a row that is the mean row, centring leaves the rounding of some sums: lengths relative to the longest row.
CENTRING_NOISE = 16


@dataclass(frozen=True)
class CentredRow(RowNorm):
    """Rows of equal length around their mean, for maps into a softmax: `P = I - 1 1^T / m` takes the mean row away.

        D = P U,        U_i = s (P G)_i / ||(P G)_i||

    A softmax does not see a vector that is added to all rows. Up to such shifts this is the LMO of `RowNorm`:
    `<G, D> = s sum_i ||(P G)_i||`, the dual norm of the gradients that shifts do not change. `norm` and `dual_norm` are
    those of `RowNorm`, which see shifts: there D is not exactly 1 long, at most 2. One row by itself is not centred,
    as nothing would be left. It is no norm for lookup tables: rows that a batch does not read would move too.

    Shapes: (..., m, n).

    Args:
        scaling: As in `RowNorm`.

    References:
        "Symmetry-compatible" optimizers, arXiv 2605.18106.

    Example:
        >>> CentredRow("none").lmo(torch.tensor([[4.0, 1.0], [1.0, 5.0]]))
        tensor([[ 0.6000, -0.8000],
                [-0.6000,  0.8000]])
    """

    attains: ClassVar[bool] = False
    longest: ClassVar[float] = 2.0

    def lmo(self, g: Tensor) -> Tensor:
        """Return rows of the length s around the mean, without the mean of what results."""
        rows = self._read(g)
        if rows.shape[-2] == 1:
            return super().lmo(g)
        top = largest(rows, MATRIX)
        units = to_wide(rows) / one_if_zero(top)
        before = length(units, (-1,))
        longest = before.amax(-2, keepdim=True)
        _centre_(units)
        lengths = length(units, (-1,))
        rounding = torch.finfo(units.dtype).eps
        noise = CENTRING_NOISE * rounding * longest
        factors = self._root(rows) / one_if_zero(lengths)
        units.mul_(torch.where(lengths > noise, factors, 0.0))
        _centre_(units)
        return units.to(g.dtype).view(g.shape)


def _centre_(rows: Tensor) -> None:
    """Take the mean row away, in place."""
    mean = rows.mean(-2, keepdim=True)
    rows.sub_(mean)


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
