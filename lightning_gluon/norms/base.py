"""The norm as an interface: what it says of itself, its dual norm, its linear minimisation oracle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.numerics import Workspace, check_real, largest_magnitude, one_if_zero

MATRIX = (-2, -1)


class Norm(ABC):
    """A norm, its dual and its LMO; `rank` trailing dimensions hold one point, leading ones are a batch.

    A 1-D input of a matrix norm is read as one row.
    """

    rank: ClassVar[int] = 2
    matrices: ClassVar[bool] = True  # reads a parameter as the matrices it holds, else as one flat vector
    turns: ClassVar[bool] = False  # does not care which side is longer: tall matrices may be turned
    guarded: ClassVar[bool] = False  # of vectors: a gradient that is rounding noise is kept from becoming a step

    def scale(self, rows: int, columns: int, kernel: int = 1) -> float:
        """Return the factor that makes what `lmo_` returns a point of the unit sphere."""
        return 1.0

    def lmo_(self, stack: Tensor, workspace: Workspace) -> Tensor:
        """Return the directions of a stack `(count, m, n)`, up to their `scale`; the stack may be overwritten."""
        return self.lmo(stack)

    @abstractmethod
    def norm(self, x: Tensor) -> Tensor:
        """Return `||x||` of every point: the batch shape, in fp32 or wider."""

    @abstractmethod
    def dual_norm(self, g: Tensor) -> Tensor:
        """Return `max_{||D|| <= 1} <g, D>` of every point: the batch shape, in fp32 or wider."""

    @abstractmethod
    def lmo(self, g: Tensor) -> Tensor:
        """Return the maximiser `D` for every point: the shape, dtype and device of `g`."""

    def _read(self, tensor: Tensor) -> Tensor:
        """Check the input and give a vector its row dimension."""
        check_real(tensor)
        if tensor.ndim == 1 and self.rank == 2:
            return tensor.unsqueeze(0)
        if tensor.ndim < self.rank:
            raise ValueError(
                f"Expected `{type(self).__name__}` input to have at least {self.rank} dimension(s), but got shape "
                f"{tuple(tensor.shape)}. Reshape it to (..., {'out, in' if self.rank == 2 else 'd'})."
            )
        return tensor


def to_wide(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32 or wider."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def largest(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the largest magnitude over `dims` (kept), in fp32 or wider."""
    return to_wide(largest_magnitude(tensor, dims))


def length(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the 2-norm over `dims` (kept), safe against under- and overflow of the squares."""
    top = largest(tensor, dims)
    return top * torch.linalg.vector_norm(to_wide(tensor) / one_if_zero(top), dim=dims, keepdim=True)


def direction(tensor: Tensor, dims: tuple[int, ...], length: float) -> Tensor:
    """Scale to the given 2-norm over `dims`; zero stays zero."""
    unit = to_wide(tensor) / one_if_zero(largest(tensor, dims))
    size = torch.linalg.vector_norm(unit, dim=dims, keepdim=True)
    return unit.mul_(length / one_if_zero(size)).to(tensor.dtype)
