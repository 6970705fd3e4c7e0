"""Norms, sums and maxima of whole tensors from the pieces of their ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gluon.ranks.groups import ONE_RANK, Ranks
from lightning_gluon.ranks.layout import Layout


@dataclass(frozen=True)
class WholeNorms:
    """2-norms of whole tensors, by one all-reduce over each set of ranks that holds some together.

    Args:
        layouts: Layout of every tensor.
    """

    layouts: Sequence[Layout]

    def __call__(
        self,
        pieces: Sequence[Tensor],
    ) -> list[Tensor]:
        """Return one norm per tensor, the same on all ranks.

        Args:
            pieces: This rank's piece of every tensor.
        """
        norms = torch.stack(list(torch._foreach_norm(list(pieces))))
        squares = norms.double().square()
        for group in {layout.shards.group: None for layout in self.layouts}:
            if group is None:
                continue
            held = [index for index, layout in enumerate(self.layouts) if layout.shards.group is group]
            own = squares[held]
            dist.all_reduce(own, group=group)
            squares[held] = own
        return list(squares.sqrt().to(norms.dtype).unbind())


@dataclass(frozen=True)
class RowSums:
    """Sums and maxima over the rows of matrices that ranks hold some rows of each.

    Args:
        ranks: The ranks; one rank has all rows.
        rows: Rows of the whole matrices; `None` for those that are given.
    """

    ranks: Ranks = ONE_RANK
    rows: int | None = None

    def height(
        self,
        matrices: Tensor,
    ) -> int:
        """Return the rows of the whole matrices.

        Args:
            matrices: This rank's rows.
        """
        return matrices.shape[-2] if self.rows is None else self.rows

    def sum(
        self,
        own: Tensor,
    ) -> Tensor:
        """Return sums over all rows, the same on all ranks, in place.

        Args:
            own: Those over this rank's rows.
        """
        return self._reduced(own, dist.ReduceOp.SUM)

    def largest(
        self,
        own: Tensor,
    ) -> Tensor:
        """Return maxima over all rows, the same on all ranks, in place.

        Args:
            own: Those over this rank's rows.
        """
        return self._reduced(own, dist.ReduceOp.MAX)

    def _reduced(self, own: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.ranks.group is not None:
            dist.all_reduce(own, operation, self.ranks.group)
        return own


ALL_ROWS = RowSums()
