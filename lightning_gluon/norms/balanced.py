"""The spectral LMO of a momentum whose rows or columns are balanced before it, or after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_gluon.norms.base import MATRIX, direction, largest, length, to_wide
from lightning_gluon.norms.needs import Context, Statistic
from lightning_gluon.norms.numerics import one_if_zero
from lightning_gluon.norms.spectral import Spectral

Polar = Callable[[Tensor], Tensor]  # a stack -> `U V^T` of every matrix; may overwrite the stack

ALONG_ROWS = -1  # the dimension that lengths of rows are taken over
ALONG_COLUMNS = -2


def _equilibrate_none(stack: Tensor, polar: Polar) -> Tensor:
    return polar(stack)


def _equilibrate_rows(stack: Tensor, polar: Polar) -> Tensor:
    rows = direction(stack, (ALONG_ROWS,), 1.0)
    return polar(rows)


def _equilibrate_columns(stack: Tensor, polar: Polar) -> Tensor:
    columns = direction(stack, (ALONG_COLUMNS,), 1.0)
    return polar(columns)


def _equilibrate_both(stack: Tensor, polar: Polar) -> Tensor:
    """Divide by the lengths of rows and columns, both of the matrix as it came."""
    unit = stack / one_if_zero(largest(stack, MATRIX))  # or the second division could overflow
    rows = one_if_zero(length(unit, (ALONG_ROWS,)))
    columns = one_if_zero(length(unit, (ALONG_COLUMNS,)))
    return polar(unit / rows / columns)


def _equilibrate_twice(stack: Tensor, polar: Polar) -> Tensor:
    """Equilibrate the longer side, and once more by the lengths that `U V^T` of that has."""
    rows, columns = stack.shape[-2:]
    if rows == columns:
        return polar(stack)
    if rows < columns:
        return _equilibrate_twice(stack.mT, polar).mT
    first = direction(stack, (ALONG_ROWS,), 1.0)
    lengths = length(polar(first.clone()), (ALONG_ROWS,))
    even = (columns / rows) ** 0.5
    second = first * (even / one_if_zero(lengths))
    return polar(second.to(stack.dtype))


EQUILIBRATIONS: dict[str | None, Callable[[Tensor, Polar], Tensor]] = {
    None: _equilibrate_none,
    "rows": _equilibrate_rows,
    "columns": _equilibrate_columns,
    "both": _equilibrate_both,
    "aurora": _equilibrate_twice,
}

# The dimension that squares are averaged over, for a matrix of rows and columns.
BALANCES: dict[str, Callable[[int, int], int]] = {
    "rows": lambda rows, columns: ALONG_ROWS,
    "columns": lambda rows, columns: ALONG_COLUMNS,
    "longer": lambda rows, columns: ALONG_ROWS if rows >= columns else ALONG_COLUMNS,
}


@dataclass(frozen=True)
class Balanced(Spectral):
    """`s U V^T` with rows or columns balanced: of the momentum before it (MuonEq, Aurora), or of `U V^T` (NorMuon).

        equilibrate    rows      G_i / ||G_i||
                       columns   G_j / ||G_j||
                       both      G_ij / (||G_i|| ||G_j||)
                       aurora    D = 1 / ||G_i||, U = polar(D G), D <- D sqrt((n / m) / ||U_i||^2), if m > n;
                                 the same for columns if m < n; a square matrix stays as it is
        balance        v <- b v + (1 - b) mean_j(O_ij^2),   O = polar(G);   O_ij / sqrt(v_i), of the length ||O||_F

    `balance` averages along rows, along columns, or so that one statistic belongs to each index of the `longer` side.
    Without either it is `Spectral`. Lengths and dual norms are the spectral ones, and a direction does not attain them:
    an equilibrated one has length 1, one that is balanced afterwards may be longer. The papers add an epsilon to
    squares; here zero stays zero, and there is none.

    Shapes: (..., m, n) = (..., out, in); v is (m, 1) or (1, n).

    Args:
        scaling: As in `Spectral`.
        orthogonalizer: As in `Spectral`.
        steps: As in `Spectral`.
        dtype: As in `Spectral`.
        equilibrate: `rows`, `columns`, `both`, `aurora`, or `None`.
        balance: `rows`, `columns`, `longer`, or `None`.
        balance_momentum: The weight b on the old statistic, .95 in NorMuon.

    Raises:
        ValueError: As in `Spectral`.

    References:
        MuonEq, arXiv 2603.28254. NorMuon, arXiv 2510.05491. Aurora: as compared in arXiv 2609.39114.

    Example:
        >>> import torch
        >>> norm = Balanced("none", "svd", equilibrate="rows")
        >>> norm.lmo(torch.tensor([[3.0, 0.0], [3.0, 4.0]])).square().sum().item()
        2.0
    """

    options: ClassVar[Mapping[str, str]] = {
        **Spectral.options,
        "equilibrate": "equilibrate",
        "balance": "balance",
        "balance_momentum": "balance_momentum",
    }
    turns: ClassVar[bool] = False  # rows of a matrix are columns of its transpose
    attains: ClassVar[bool] = False

    equilibrate: str | None = None
    balance: str | None = None
    balance_momentum: float = 0.95

    @property
    def statistics(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The mean squares v, for a norm that balances."""
        if self.balance is None:
            return ()
        return (Statistic("mean_square", self._statistic_shape),)

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        """Return the balanced direction of every matrix, up to the scale."""

        def polar(matrices: Tensor) -> Tensor:
            tall = matrices.shape[-2] > matrices.shape[-1]
            wide = matrices.mT if tall else matrices
            units = super(Balanced, self).lmo_(wide.contiguous(), context)
            return units.mT if tall else units

        if self.balance is None:
            return EQUILIBRATIONS[self.equilibrate](stack, polar)
        dimension = BALANCES[self.balance](*stack.shape[-2:])
        # Of a row of zeros a decomposition makes noise, which would be scaled up.
        alive = largest(stack, (dimension,)) > 0
        units = EQUILIBRATIONS[self.equilibrate](stack, polar)
        return self._balanced(units * alive, context.statistics["mean_square"], dimension)

    def lmo(self, g: Tensor) -> Tensor:
        """Return the scaled direction, as at a first step."""
        matrices, scale = self._matrices(g)
        stack = matrices.reshape(-1, *matrices.shape[-2:])
        norm = self.on(stack, stack.shape)
        staged = stack.to(norm.staging_dtype(stack), copy=True)
        context = Context(statistics={own.name: own.first(staged) for own in norm.statistics})
        units = norm.lmo_(staged, context)
        return (units * scale).to(g.dtype).reshape(g.shape)

    def _statistic_shape(self, rows: int, columns: int) -> tuple[int, int]:
        assert self.balance is not None
        shape = [rows, columns]
        shape[BALANCES[self.balance](rows, columns)] = 1
        return shape[0], shape[1]

    def _balanced(self, units: Tensor, square: Tensor, dimension: int) -> Tensor:
        """Advance the mean squares, and divide by their root without changing the Frobenius norm."""
        wide = to_wide(units)
        mean = wide.square().mean(dimension, keepdim=True)
        square.lerp_(mean.to(square.dtype), 1 - self.balance_momentum)
        even = wide / one_if_zero(square).sqrt()
        restored = length(wide, MATRIX) / one_if_zero(length(even, MATRIX))
        return even * restored
