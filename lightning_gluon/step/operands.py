"""Operands of an LMO that rounds them to 16 bits: pieces are scaled and rounded before they travel.

    X = G / (max |G| sqrt(n)), rounded          n: columns of the matrix

Entry by entry that is what the LMO does with whole matrices. The ranks agree on every maximum, which is exact in any
order, so the owner gets the operand of one rank bit for bit, at half the traffic. The maxima travel with the pieces of
the trip before. Those of the first trip are brought together by an all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gluon.norms.base import Norm
from lightning_gluon.norms.orthogonalize import operand_scale
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.ranks.layout import Layout
from lightning_gluon.ranks.regions import Region


@dataclass
class Operand:
    """A direction, of which this rank has a piece.

    Args:
        piece: The piece.
        views: The matrices of the whole parameter.
        layout: Its layout.
        norm: The norm of the step.
        dtype: The dtype to which it rounds.
    """

    piece: Tensor
    views: Sequence[MatrixView]
    layout: Layout
    norm: Norm
    dtype: torch.dtype

    def parts(self, tensor: Tensor) -> list[list[Tensor]]:
        """Return the entries of every matrix in a tensor of the shape of the piece, those without any left out."""
        found = []
        for view in self.views:
            runs = runs_of(view, self.layout.shape, self.layout.own)
            places = [tensor.narrow(view.dim, start, size) for start, size in runs]
            found.append([place for place in places if place.numel()])
        return found

    def columns(self) -> list[int]:
        """Return the columns of every matrix as it lies in the LMO."""
        turns = self.norm.turns
        return [max(view.matrix[1:]) if turns else view.matrix[2] for view in self.views]


def operand_dtype(norm: Norm, like: Tensor, views: Iterable[MatrixView]) -> torch.dtype | None:
    """Return the dtype in which a parameter's direction may travel; `None` if its owner needs it as it is.

    Args:
        norm: The norm of the step.
        like: A tensor of the device and dtype of the directions.
        views: The matrices of the whole parameter.
    """
    found = set()
    for view in views:
        sides = sorted(view.matrix[1:]) if norm.turns else view.matrix[1:]
        alone = view.matrix[0] == 1  # a piece of a batch would hold parts of several matrices
        found.add(norm.on(like, (1, *sides)).rounds_to if alone else None)
    return found.pop() if len(found) == 1 else None


class Rounding:
    """Pieces that are rounded as the LMO rounds whole matrices, once the ranks know the largest entries.

    Args:
        operands: What is to travel.

    Attributes:
        tops: The largest magnitude that this rank has of every matrix.
    """

    def __init__(self, operands: Sequence[Operand]) -> None:
        self.operands = operands
        self.wide = [one.piece.to(one.norm.staging_dtype(one.piece)) for one in operands]
        self.parts = [one.parts(piece) for one, piece in zip(operands, self.wide, strict=True)]
        flat = [part for lists in self.parts for part in lists]
        self.tops = torch.stack([_top_of(part, self.wide[0]) for part in flat])

    def reduced(self) -> Tensor:
        """Return the largest magnitude of every matrix, by an all-reduce."""
        largest = self.tops.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.operands[0].layout.shards.group)
        return largest

    def pieces(self, largest: Tensor) -> list[Tensor]:
        """Return the rounded pieces.

        Args:
            largest: The largest magnitude of every matrix.
        """
        of_matrix = iter(largest.unbind())
        found = []
        for one, piece, lists in zip(self.operands, self.wide, self.parts, strict=True):
            out = torch.empty_like(piece, dtype=one.dtype)
            for sources, places, columns in zip(lists, one.parts(out), one.columns(), strict=True):
                scale = operand_scale(next(of_matrix), columns)
                for source, place in zip(sources, places, strict=True):
                    torch.div(source, scale, out=place)
            found.append(out)
        return found


def _top_of(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the largest magnitude in parts of a matrix; 0 if this rank has none of it."""
    if not parts:
        return like.new_zeros(())
    norms = torch._foreach_norm(list(parts), ord=math.inf)
    return norms[0] if len(norms) == 1 else torch.stack(list(norms)).amax()


def runs_of(
    view: MatrixView,
    shape: Sequence[int],
    region: Region,
) -> list[tuple[int, int]]:
    """Return where a piece holds rows of a view, along the dimension that the view cuts: starts and lengths.

    Args:
        view: The view.
        shape: Shape of the whole parameter.
        region: The piece.

    Example:
        >>> views = MatrixView.blocks((6, 4), sizes=(2, 4))
        >>> [runs_of(view, (6, 4), Region((1, 0), (3, 4))) for view in views]
        [[(0, 1)], [(1, 2)]]
    """
    first, length = region.offset[view.dim], region.size[view.dim]
    block = shape[view.dim] // view.groups
    found = []
    for group in range(view.groups):
        start = max(group * block + view.start, first)
        stop = min(group * block + view.stop, first + length)
        if start < stop:
            found.append((start - first, stop - start))
    return found
