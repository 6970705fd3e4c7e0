"""Rows of a bounded length whose entries are bounded too: between signs and rows of equal length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.base import largest, to_wide
from lightning_gluon.norms.numerics import one_if_zero
from lightning_gluon.norms.slices import ROW_SCALINGS, RowNorm

# Entries that are sorted at a time: a sort takes ten times their memory, and tables are large.
SORTED_ENTRIES = 2**22


@dataclass(frozen=True)
class ClippedRow(RowNorm):
    """The larger of a row's RMS and its largest entry over c: `||X|| = max_i max(rms(X_i), max_j |X_ij| / c) / r`.

        D_ij = r sign(G_ij) min(c, tau_i |G_ij|),    tau_i such that rms(D_i) = r, or all entries of the row are at r c

    c = 1 is `Sign` and a large c is `RowNorm`, in the units of `scaling`: r is the RMS of a row of the length that
    `RowNorm` gives it. A row of few entries that are not zero gets shorter than r. tau is exact: it is found by one
    sort. A row that is zero stays zero.

    Shapes: (..., m, n).

    Args:
        scaling: As in `RowNorm`; the default has the length of `Sign`.
        clip: The bound c on an entry, relative to the row's RMS; at least 1.

    References:
        AF-Muon's tables, c = 3: as compared by their authors with Muon and signs, 2026.

    Example:
        >>> ClippedRow("rms", clip=1.5).lmo(torch.tensor([3.0, 1.0, -1.0, 0.0])).round(decimals=3)
        tensor([ 1.5000,  0.9350, -0.9350,  0.0000])
    """

    separable: ClassVar[tuple[int, ...]] = (-2,)
    options: ClassVar[Mapping[str, str]] = {**RowNorm.options, "row_clip": "clip"}

    scaling: str = "sign"
    clip: float = 3.0

    def norm(self, x: Tensor) -> Tensor:
        """Return the largest bound that a row reaches."""
        entries = largest(self._read(x), (-1,)).amax((-2, -1)) / (self.clip * self._rms(x))
        return torch.maximum(super().norm(x), entries)

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return `<G, D(G)>`."""
        wide = to_wide(self._read(g))
        return (wide * self.lmo(wide)).sum((-2, -1))

    def lmo(self, g: Tensor) -> Tensor:
        """Return every row stretched until its entries or its length reach their bounds."""
        rows = self._read(g)
        wide = to_wide(rows)
        if self.clip == 1:
            found = wide.sign()
        else:
            top = largest(wide, (-1,))
            found = self._stretched(wide / one_if_zero(top))
        found.mul_(self._rms(rows))
        return found.to(g.dtype).view(g.shape)

    def _rms(self, matrices: Tensor) -> float:
        """Return the RMS of a row of the length that `scaling` gives it."""
        return ROW_SCALINGS[self.scaling].rms(matrices.shape[-1])

    def _stretched(self, unit: Tensor) -> Tensor:
        """Return `sign(x) min(c, tau |x|)`, of RMS 1 where c allows; overwrites x."""
        columns = unit.shape[-1]
        full = unit.sign().mul_(self.clip)
        few = max(1, SORTED_ENTRIES // columns)
        factors = []
        for part in unit.reshape(-1, columns).split(few):
            factors.append(self._factors(part.abs()))
        tau = torch.cat(factors).view(*unit.shape[:-1], 1)
        unit.mul_(tau)
        unit.clamp_(-self.clip, self.clip)
        return torch.where(tau > 0, unit, full)

    def _factors(self, sizes: Tensor) -> Tensor:
        """Return tau of every row of magnitudes; 0 if all of its entries are at the bound."""
        columns = sizes.shape[-1]
        bound = self.clip**2
        order = sizes.sort(dim=-1, descending=True)
        squares = order.values.square_()
        sums = squares.flip(-1).cumsum(-1)
        rest = sums.flip(-1)  # of the entries from the k-th on
        number = torch.arange(columns, device=sizes.device, dtype=sizes.dtype)
        left = columns - bound * number
        # With k entries at c, tau = sqrt(left_k / rest_k): right for the first k whose next entry stays below c.
        below = left * squares < bound * rest
        count = below.to(torch.uint8).argmax(-1, keepdim=True)
        wanted = left[count].clamp_min(0)
        present = rest.gather(-1, count)
        tau = (wanted / one_if_zero(present)).sqrt_()
        free = below.any(-1, keepdim=True)
        return tau * free
