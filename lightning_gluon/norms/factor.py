"""Spectral steps of a product: each factor of a low-rank change moves the product, not itself, by its radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.base import to_wide
from lightning_gluon.norms.needs import Context, Partner, Statistic
from lightning_gluon.norms.numerics import one_if_zero
from lightning_gluon.norms.orthogonalize import orthogonalize
from lightning_gluon.norms.spectral import SCALINGS, Spectral

# Mean square of a row of the first factor before the first step: the second one usually starts at zero.
ROW_SQUARE = Statistic("row_square", lambda rows, columns: (1, 1))
# Smallest damping, in units of fp32's rounding: the decomposition of a Gram matrix needs it.
LEAST_DAMPING = 16


def is_first(shape: Sequence[int], partner: Sequence[int]) -> bool:
    """Return whether a factor of that shape is A of `B A`, and its partner B.

    Args:
        shape: Its rows and columns.
        partner: Those of its partner.

    Example:
        >>> is_first((4, 32), (64, 4)), is_first((64, 4), (4, 32)), is_first((4, 32), (32, 4))
        (True, False, True)
    """
    rows, columns = shape[-2:]
    inner = partner[1] == rows
    outer = partner[0] == columns
    return inner and (not outer or rows < columns)


@dataclass(frozen=True)
class Factor(Spectral):
    """One factor of a change `W = s B A` of rank r, measured by the step of `W` that it makes.

        ||dA|| = (2 s / c) ||L^T dA||_2,    D_A = c / (2 s) L^-T polar(L^-1 G),    L L^T = B^T B + d I
        ||dB|| = (2 s / c) ||dB L||_2,      D_B = c / (2 s) polar(G L^-T) L^-1,    L L^T = A A^T + d I

    with the scale `c` of `Spectral` for a map `(out, in)` and `d = damping ||A_0||_F^2 / r`. Both read the other factor
    as it was before the step, so `||s (D_B A + B D_A)||_2 <= c`: one radius means the same with and without an adapter.
    The polar factor of `S^(-1/2) G` gives the same directions, since `S^(-1/2) L` is orthogonal.

    Where one product is several maps, as in fused attention, every map keeps to that bound.

    Lengths, dual norms and `lmo` without a partner are those of an unscaled spectral norm.

    Shapes: A is (r, in) and B is (out, r).

    Args:
        scaling: As in `Spectral`, for the map.
        orthogonalizer: As in `Spectral`.
        steps: As in `Spectral`.
        dtype: As in `Spectral`.
        damping: Share of the first factor's mean square of a row that is added to the Gram matrix of the other one.

    Raises:
        ValueError: As in `Spectral`.

    References:
        LoRA-Muon, arXiv 2606.12921.

    Example:
        >>> norm = Factor(orthogonalizer="svd", damping=0.0)
        >>> context = Context(weights=torch.zeros(1, 2, 3), partners=[Partner(2 * torch.eye(2))])
        >>> context.statistics = {"row_square": torch.zeros(1, 1, 1)}
        >>> first = norm.lmo_(torch.eye(2, 3)[None], context)[0]
        >>> [round(value, 3) for value in torch.linalg.svdvals(2 * torch.eye(2) @ first).tolist()]
        [0.408, 0.408]
    """

    options: ClassVar[Mapping[str, str]] = {**Spectral.options, "damping": "damping"}
    turns: ClassVar[bool] = False
    overwrites: ClassVar[bool] = False
    attains: ClassVar[bool] = False
    reads_weights: ClassVar[bool] = True
    reads_partner: ClassVar[bool] = True
    statistics: ClassVar[tuple[Statistic, ...]] = (ROW_SQUARE,)

    damping: float = 0.01

    def scale(self, rows: int, columns: int, kernel: int = 1) -> float:
        """Return 1: `lmo_` knows both factors, and gives steps of their own length."""
        return 1.0

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        """Return the directions, each for its partner."""
        assert context.weights is not None
        units = torch.zeros_like(to_wide(stack))
        sides = [is_first(stack.shape, partner.weight.shape) for partner in context.partners]
        for side in dict.fromkeys(sides):
            where = [index for index, own in enumerate(sides) if own is side]
            members = _Side(side, [context.partners[index] for index in where], stack.shape)
            squares = context.statistics["row_square"]
            present = members.row_squares(to_wide(context.weights[where]))
            kept = squares[where]
            squares[where] = torch.where(kept > 0, kept, present.to(kept.dtype))
            units[where] = self._directions(stack[where], members, squares[where])
        return units

    def _directions(self, stack: Tensor, members: _Side, squares: Tensor) -> Tensor:
        """Return the directions of factors that stand on one side."""
        wide = to_wide(stack)
        gram = members.grams().to(wide.dtype)
        square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        damped = self.damping * squares.to(wide.dtype) + LEAST_DAMPING * torch.finfo(torch.float32).eps * square
        gram.diagonal(dim1=-2, dim2=-1).add_(one_if_zero(damped)[..., 0])
        lower, _ = torch.linalg.cholesky_ex(gram)
        inner = torch.linalg.solve_triangular(lower, members.turn(wide), upper=False)
        polar = orthogonalize(inner, self.orthogonalizer, self.steps, self._dtype).to(wide.dtype)
        units = members.turn(torch.linalg.solve_triangular(lower.mT, polar, upper=True))
        lengths = [SCALINGS[self.scaling](*shape, 1) / (2 * gain) for shape, gain in members.maps()]
        return units * units.new_tensor(lengths)[:, None, None]


@dataclass(frozen=True)
class _Side:
    """Factors of one shape that all stand on the same side of their products.

    Args:
        first: Whether they are A of `B A`.
        partners: The other factors.
        shape: Shape of their stack.
    """

    first: bool
    partners: list[Partner]
    shape: Sequence[int]

    def turn(self, stack: Tensor) -> Tensor:
        """Return a stack so that the rank is its number of rows, or such a stack as it was."""
        return stack if self.first else stack.mT

    def grams(self) -> Tensor:
        """Return the Gram matrices `(count, r, r)` of the partners."""
        found = []
        for partner in self.partners:
            weight = to_wide(partner.weight)
            found.append(weight.mT @ weight if self.first else weight @ weight.mT)
        return torch.stack(found)

    def row_squares(self, weights: Tensor) -> Tensor:
        """Return the mean square of a row of every first factor, `(count, 1, 1)`.

        Args:
            weights: The factors themselves.
        """
        firsts = weights if self.first else [to_wide(partner.weight) for partner in self.partners]
        return torch.stack([matrix.square().sum(-1).mean() for matrix in firsts])[:, None, None]

    def maps(self) -> list[tuple[tuple[int, int], float]]:
        """Return `(out, in)` and `s` of every product."""
        found = []
        for partner in self.partners:
            rows, columns = partner.weight.shape
            shape = (partner.rows or rows, self.shape[-1]) if self.first else (self.shape[-2], columns)
            found.append((shape, partner.gain))
        return found
