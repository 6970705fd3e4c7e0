"""Needs of a part of the step besides the momentum: a norm, a decay or a retraction declares them and is given them.

| declaration | what is given |
|---|---|
| `reads_weights` | the weights of a stack, as `Context.weights`; for a retraction those before the step |
| `reads_scales` | the factor of every matrix that its direction is multiplied by, as `Context.scales` |
| `reads_partner` | the other factor of a product of two parameters, before the step, as `Context.partners` |
| `statistics` | tensors of its own that persist from step to step, as `Context.statistics` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.numerics import Workspace


@dataclass(frozen=True)
class Statistic:
    """A tensor that is kept per matrix from step to step.

    Args:
        name: Its name in the optimizer's state.
        shape: Shape for a matrix of `rows` and `columns`, such as `lambda rows, columns: (rows, 1)`.
        start: First value from the weights `(batch, rows, columns)`; without it zero.

    Example:
        >>> Statistic("row_mean", lambda rows, columns: (rows, 1)).first(torch.ones(2, 3, 5)).shape
        torch.Size([2, 3, 1])
    """

    name: str
    shape: Callable[[int, int], tuple[int, ...]]
    start: Callable[[Tensor], Tensor] | None = None

    def first(self, weights: Tensor) -> Tensor:
        """Return the value before the first step.

        Args:
            weights: Matrices `(batch, rows, columns)`.

        Returns:
            `(batch, *shape)`, in fp32 or wider.
        """
        if self.start is not None:
            return self.start(weights)
        batch, rows, columns = weights.shape
        wide = torch.promote_types(weights.dtype, torch.float32)
        return weights.new_zeros((batch, *self.shape(rows, columns)), dtype=wide)


@dataclass(frozen=True)
class Partner:
    """The other factor of a product of two parameters, such as B of `s B A` for A.

    Args:
        weight: The factor, a matrix.
        gain: The factor s of the product.
        rows: Rows of the smallest map, if the product is several maps in one, such as queries, keys and values.

    Example:
        >>> Partner(torch.ones(2, 3)).gain
        1.0
    """

    weight: Tensor
    gain: float = 1.0
    rows: int | None = None


@dataclass
class Context:
    """Companions of a stack of matrices `(count, rows, columns)` in a step; only those that were declared are there.

    Args:
        workspace: Buffers to reuse between calls.
        weights: The weights of the stack.
        scales: Factors `(count, 1, 1)` that the step multiplies directions by: the norm's `scale` of each matrix.
        partners: For every matrix of the stack, the other factor of its product as it was before the step.
        statistics: Tensors `(count, *shape)` by name, to be advanced in place.
        dtype: Dtype of the weights: directions that come in it need no conversion.
        scaled: Whether the stack is scaled and rounded as its norm `rounds_to`.
    """

    workspace: Workspace = field(default_factory=Workspace)
    weights: Tensor | None = None
    partners: Sequence[Partner] = ()
    scales: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    scaled: bool = False


class Needs:
    """Declarations of a part of the step."""

    reads_weights: ClassVar[bool] = False
    reads_scales: ClassVar[bool] = False
    reads_partner: ClassVar[bool] = False
    statistics: ClassVar[tuple[Statistic, ...]] = ()
