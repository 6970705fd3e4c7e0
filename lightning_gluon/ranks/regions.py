"""Regions: the boxes of a parameter that the ranks of a mesh hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class MeshCut:
    """One dimension of a mesh that cuts one dimension of a tensor.

    Args:
        dim: Dimension of the tensor.
        parts: Ranks along the dimension of the mesh.
        strided: Whether it cuts what all others have left: FSDP cuts the pieces of tensor parallelism once more, though
            its dimension of the mesh comes first.
    """

    dim: int
    parts: int
    strided: bool = False


@dataclass(frozen=True)
class Region:
    """A box of a tensor.

    Args:
        offset: First index along every dimension.
        size: Length along every dimension; 0 in a piece without entries.

    Example:
        >>> import torch
        >>> region = Region.whole((5, 4)).part(0, 2, 1)
        >>> region, region.of(torch.arange(20).view(5, 4))[:, 0].tolist()
        (Region(offset=(3, 0), size=(2, 4)), [12, 16])
    """

    offset: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        """Return the region of all entries."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.size)

    def part(self, dim: int, parts: int, place: int) -> Region:
        """Return one of several parts along a dimension, of equal size but for the last: as torch chunks."""
        size = self.size[dim]
        step = -(-size // parts)
        start = min(place * step, size)
        offset = list(self.offset)
        sizes = list(self.size)
        offset[dim] += start
        sizes[dim] = min(step, size - start)
        return replace(self, offset=tuple(offset), size=tuple(sizes))

    def of(self, tensor: Tensor) -> Tensor:
        """Return this region of a whole tensor, sharing storage."""
        for dim, (start, size) in enumerate(zip(self.offset, self.size, strict=True)):
            if size != tensor.shape[dim]:
                tensor = tensor.narrow(dim, start, size)
        return tensor


def region_at(shape: Sequence[int], cuts: Iterable[MeshCut], places: Iterable[int]) -> Region:
    """Return the region that one rank of a mesh holds.

    Args:
        shape: Shape of the whole tensor.
        cuts: Dimensions of the mesh that cut it, in the order of the mesh.
        places: The rank's coordinates along them.

    Example:
        >>> region_at((5, 4), [MeshCut(0, 2, strided=True), MeshCut(0, 2)], [1, 0])
        Region(offset=(2, 0), size=(1, 4))
    """
    region = Region.whole(shape)
    pairs = list(zip(cuts, places, strict=True))
    for strided in (False, True):
        for cut, place in pairs:
            if cut.strided == strided:
                region = region.part(cut.dim, cut.parts, place)
    return region
