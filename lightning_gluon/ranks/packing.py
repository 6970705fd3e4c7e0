"""Tensors of several shapes and dtypes as one buffer of bytes, for one collective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes: every tensor can be viewed in its own dtype, and is read at full width


@dataclass(frozen=True)
class TensorForm:
    """Shape and dtype of a tensor that is to come.

    Args:
        shape: Its shape.
        dtype: Its dtype.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorForm:
        """Return the form of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def room(self) -> int:
        """Bytes it takes in a buffer."""
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT

    @property
    def nbytes(self) -> int:
        """Bytes of its entries."""
        return math.prod(self.shape) * self.dtype.itemsize


def total_room(forms: Iterable[TensorForm]) -> int:
    """Return the bytes that tensors take together."""
    return sum(form.room for form in forms)


def tensors_in(buffer: Tensor, forms: Sequence[TensorForm]) -> list[Tensor]:
    """Return the tensors that lie one after the other in a buffer, sharing its storage.

    Args:
        buffer: Bytes.
        forms: Shapes and dtypes.

    Example:
        >>> buffer = torch.zeros(32, dtype=torch.uint8)
        >>> first, second = tensors_in(buffer, [TensorForm((2,), torch.float32), TensorForm((1,), torch.float64)])
        >>> write_packed(buffer, [torch.ones(2), torch.tensor([2.0], dtype=torch.float64)])
        >>> first.tolist(), second.tolist()
        ([1.0, 1.0], [2.0])
    """
    found = []
    start = 0
    for form in forms:
        part = buffer[start : start + form.nbytes]
        found.append(part.view(form.dtype).view(form.shape))
        start += form.room
    return found


def write_packed(buffer: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write tensors to a buffer, one after the other.

    Args:
        buffer: Bytes.
        tensors: Tensors of any layout.
    """
    if tensors:
        torch._foreach_copy_(tensors_in(buffer, [TensorForm.of(tensor) for tensor in tensors]), list(tensors))
