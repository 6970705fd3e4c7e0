"""Views of one stored parameter as the matrices `(out, in)` that it really is.

A fused `qkv` weight is three maps, GPT-2's `Conv1D` is stored transposed, a stack of experts is a batch of maps.
A `MatrixView` says so in plain integers, so that a parameter group that carries it can be saved in any checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from torch import Tensor

__all__ = ["MatrixView", "covers"]


@dataclass(frozen=True)
class MatrixView:
    """One block of a parameter, read as a batch of matrices.

        block  = parameter.narrow(dim, start, stop - start)      (groups > 1: `dim` is split into groups first)
        tensor = block.reshape(split).permute(permute)            (only splits dimensions: never a copy)
        result = tensor.reshape(batch, out, in)

    Args:
        dim: Dimension along which the block is cut out of the parameter.
        start: First index of the block along `dim`.
        stop: One past the last index of the block along `dim`.
        split: Shape the block is reshaped to; its product is the block's size.
        permute: Order of the dimensions of `split` that brings batch, then out, then in to the front.
        matrix: The resulting shape `(batch, out, in)`.
        kernel: Number of taps of a convolution kernel folded into `in`; 1 for a linear map.
        groups: Number of groups `dim` is split into; `start` and `stop` then count within each group.

    Example:
        >>> import torch
        >>> q, k, v = MatrixView.blocks((6, 4), sizes=(2, 2, 2))
        >>> k.matrix, k.gather(torch.arange(24.).view(6, 4))[0, 0].tolist()
        ((1, 2, 4), [8.0, 9.0, 10.0, 11.0])
    """

    dim: int
    start: int
    stop: int
    split: tuple[int, ...]
    permute: tuple[int, ...]
    matrix: tuple[int, int, int]
    kernel: int = 1
    groups: int = 1

    @classmethod
    def whole(cls, shape: tuple[int, ...], *, transposed: bool = False) -> MatrixView:
        """Read the last two dimensions as one matrix (`transposed`: stored `(in, out)`), leading ones as a batch."""
        *batch, rows, columns = shape
        count = math.prod(batch)
        order = list(range(len(shape)))
        matrix = (count, rows, columns)
        if transposed:
            order[-2], order[-1] = order[-1], order[-2]
            matrix = (count, columns, rows)
        return cls._of_all(shape, tuple(shape), order, matrix)

    @classmethod
    def flat(cls, shape: tuple[int, ...]) -> MatrixView:
        """Read a parameter as one row."""
        return cls._of_all(shape, shape, list(range(len(shape))), (1, 1, math.prod(shape)))

    @classmethod
    def conv(cls, shape: tuple[int, ...], *, transposed: bool = False, groups: int = 1) -> MatrixView:
        """Read a kernel `(out, in, *k)` as `(out, in * k)`; `transposed` kernels are stored `(in, out, *k)`.

        A convolution in `groups` is that many maps side by side: its first dimension runs over the groups.

        Returns:
            One view, with a batch of as many matrices as there are groups.
        """
        if groups > 1:
            one = (shape[0] // groups, *shape[1:])
            inner = cls.conv(one, transposed=transposed)
            order = [0, *(dim + 1 for dim in inner.permute)]
            _, rows, columns = inner.matrix
            return cls._of_all(shape, (groups, *inner.split), order, (groups, rows, columns), inner.kernel)
        out, fan_in, *taps = shape
        order = list(range(len(shape)))
        if transposed:
            out, fan_in = fan_in, out
            order[0], order[1] = 1, 0
        kernel = math.prod(taps)
        return cls._of_all(shape, tuple(shape), order, (1, out, fan_in * kernel), kernel)

    @classmethod
    def _of_all(
        cls,
        shape: tuple[int, ...],
        split: tuple[int, ...],
        order: list[int],
        matrix: tuple[int, int, int],
        kernel: int = 1,
    ) -> MatrixView:
        """Read a whole parameter, without cutting a block out."""
        return cls(
            dim=0,
            start=0,
            stop=shape[0],
            split=split,
            permute=tuple(order),
            matrix=matrix,
            kernel=kernel,
        )

    @classmethod
    def blocks(
        cls, shape: tuple[int, ...], *, sizes: tuple[int, ...], transposed: bool = False
    ) -> tuple[MatrixView, ...]:
        """Cut the out dimension of `(..., out, in)` (`transposed`: `(..., in, out)`) into blocks of the given sizes."""
        dim = len(shape) - 1 if transposed else len(shape) - 2
        views = []
        start = 0
        for size in sizes:
            block = list(shape)
            block[dim] = size
            inner = cls.whole(tuple(block), transposed=transposed)
            views.append(replace(inner, dim=dim, start=start, stop=start + size))
            start += size
        return tuple(views)

    @classmethod
    def grouped(
        cls,
        shape: tuple[int, ...],
        *,
        sizes: tuple[int, ...],
        groups: int = 1,
        transposed: bool = False,
        kernel_dims: int = 0,
    ) -> tuple[MatrixView, ...]:
        """Read an out dimension laid out `(groups, sum(sizes))` as one matrix of `groups * size` rows per part.

        `groups` = key heads with unequal parts is Falcon's grouped queries; one group is `blocks`. A convolution
        `(out, in, *k)` has as many `kernel_dims` as its kernel, and no leading batch.

        Returns:
            One view per size.
        """
        lead = len(shape) - 2 - kernel_dims
        batch = shape[:lead]
        columns = shape[lead : lead + 1] if transposed else shape[lead + 1 :]
        views = []
        start = 0
        for size in sizes:
            rows = (groups, size) if groups > 1 else (size,)
            split = (*batch, *columns, *rows) if transposed else (*batch, *rows, *columns)
            order = list(range(len(split)))
            if transposed:
                order.append(order.pop(lead))
            view = cls(
                dim=lead + 1 if transposed else lead,
                start=start,
                stop=start + size,
                split=split,
                permute=tuple(order),
                matrix=(math.prod(batch), groups * size, math.prod(columns)),
                kernel=math.prod(columns[1:]),
                groups=groups,
            )
            views.append(view)
            start += size
        return tuple(views)

    @classmethod
    def interleaved(
        cls, shape: tuple[int, ...], *, groups: int, parts: int, transposed: bool = False
    ) -> tuple[MatrixView, ...]:
        """Read an out dimension laid out `(groups, parts, size)` as `parts` matrices of `groups * size` rows.

        `groups` = heads and `parts` = 3 is a `query_key_value` fused per head (BLOOM, GPT-NeoX);
        `groups` = rows and `parts` = 2 is a gate-up pair stored alternately (gpt-oss).

        Returns:
            One view, with a batch of `parts` matrices.
        """
        *batch, rows, columns = shape
        if transposed:
            rows, columns = columns, rows
        size = rows // (groups * parts)
        lead = len(batch)
        if transposed:  # (*batch, in, groups, parts, size) -> (*batch, parts, groups, size, in)
            split = (*batch, columns, groups, parts, size)
            tail = [lead + 2, lead + 1, lead + 3, lead]
        else:  # (*batch, groups, parts, size, in) -> (*batch, parts, groups, size, in)
            split = (*batch, groups, parts, size, columns)
            tail = [lead + 1, lead, lead + 2, lead + 3]
        order = [*range(lead), *tail]
        matrix = (math.prod(batch) * parts, groups * size, columns)
        return (cls._of_all(shape, split, order, matrix),)

    def by_rows(self, size: int) -> MatrixView:
        """Read every matrix as several of `size` rows, such as one per head; `size` divides its rows."""
        batch, rows, columns = self.matrix
        return replace(self, matrix=(batch * (rows // size), size, columns))

    @property
    def is_plain(self) -> bool:
        """True when nothing is reordered: gathering is a plain reshape of the block."""
        return self.groups == 1 and self.permute == tuple(range(len(self.split)))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The matrices of this view as a list of `(out, in)`."""
        return [self.matrix[1:]] * self.matrix[0]

    def of(self, tensor: Tensor) -> Tensor:
        """Return the view of `tensor` before its dimensions are merged: shape `split` permuted, sharing storage."""
        dim = self.dim
        if self.groups > 1:
            tensor = tensor.unflatten(dim, (self.groups, -1))
            dim += 1
        size = self.stop - self.start
        if tensor.shape[dim] != size:
            tensor = tensor.narrow(dim, self.start, size)
        return tensor.reshape(self.split).permute(self.permute)

    def unfold(self, matrices: Tensor) -> Tensor:
        """Reshape contiguous `(batch, out, in)` matrices to the layout that `of` returns."""
        return matrices.reshape([self.split[d] for d in self.permute])

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the matrices `(batch, out, in)` of a tensor laid out like the parameter (a view if possible)."""
        return self.of(tensor).reshape(self.matrix)

    def scatter_(self, tensor: Tensor, matrices: Tensor) -> None:
        """Write matrices `(batch, out, in)` into a tensor laid out like the parameter."""
        self.of(tensor).copy_(self.unfold(matrices))

    def astuple(self) -> tuple[int | tuple[int, ...], ...]:
        """Return plain nested tuples, for a parameter group; `MatrixView(*astuple)` restores the view."""
        return tuple(getattr(self, own.name) for own in fields(self))


def covers(views: tuple[MatrixView, ...], shape: tuple[int, ...]) -> bool:
    """Tell whether the views hold as many entries as a parameter of that shape."""
    entries = sum(math.prod(view.matrix) for view in views)
    return entries == math.prod(shape)
