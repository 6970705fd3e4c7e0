"""Numbers that neither overflow nor divide by zero, and buffers that are used again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor


def largest_magnitude(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the largest magnitude over `dims` (kept)."""
    if tensor.is_cuda:  # one reading in place of two
        return torch.linalg.vector_norm(tensor, ord=math.inf, dim=dims, keepdim=True)
    # On CPUs that takes 25 times as long.
    highest = tensor.amax(dims, keepdim=True)
    lowest = tensor.amin(dims, keepdim=True)
    return torch.maximum(highest, lowest.neg())


def one_if_zero(tensor: Tensor) -> Tensor:
    """Replace zeros by ones, to divide by."""
    return torch.where(tensor > 0, tensor, torch.ones_like(tensor))


def divisor(largest: Tensor) -> Tensor:
    """Return magnitudes to divide by what they bound; zero gives zero then."""
    if largest.is_cuda:  # one kernel in place of three; a CPU may be set to flush such numbers to zero
        return largest.clamp_min(torch.finfo(largest.dtype).tiny * torch.finfo(largest.dtype).eps)
    return one_if_zero(largest)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to accumulate norms in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_real(tensor: Tensor) -> None:
    """Raise unless the tensor is dense, real and floating-point."""
    if tensor.layout != torch.strided:
        raise TypeError(
            f"Expected a dense tensor, but got layout {tensor.layout} with shape {tuple(tensor.shape)}. "
            "Call `.to_dense()` first."
        )
    if not tensor.is_floating_point():
        raise TypeError(
            f"Expected a real floating-point tensor, but got {tensor.dtype} with shape {tuple(tensor.shape)}. "
            "Cast it, or view a complex tensor as real."
        )


class Workspace:
    """Buffers kept between calls, one per slot, device and dtype, grown to the largest size asked for.

    Fresh pages cost a CPU as much as a small product. A tensor taken from a slot is valid until the slot is next taken.
    Views of a buffer are made once, since making thousands of them is most of what a step costs the host.
    """

    def __init__(self) -> None:
        """Start without buffers."""
        self._buffers: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self._views: dict[tuple[tuple, tuple[int, ...]], Tensor] = {}
        # By owner, which goes with its plan, and by the identity of a view, which `_views` holds.
        self._parts: WeakKeyDictionary[object, dict[int, list[Tensor]]] = WeakKeyDictionary()

    def take(self, slot: str, shape: Sequence[int], like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialised contiguous tensor on the device of `like`, in its dtype or the given one."""
        size = math.prod(shape)
        key = (slot, like.device, dtype or like.dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype or like.dtype, device=like.device)
            self._buffers[key] = buffer
            self._views.clear()
            self._parts.clear()
        if torch.compiler.is_compiling():
            return buffer[:size].view(tuple(shape))
        place = (key, tuple(shape))
        if place not in self._views:
            self._views[place] = buffer[:size].view(tuple(shape))
        return self._views[place]

    def parts(self, view: Tensor, owner: object, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return views of a tensor, made once if it was taken from here.

        Args:
            view: The tensor.
            owner: Whoever asks for them, always in the same way; the views are forgotten with it.
            make: Makes them.
        """
        if torch.compiler.is_compiling():
            return make()
        known = self._parts.get(owner, {})
        if id(view) in known:
            return known[id(view)]
        made = make()
        if any(view is own for own in self._views.values()):
            self._parts.setdefault(owner, {})[id(view)] = made
        return made

    def take_like(self, slot: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialised tensor like another, its last two dimensions in the same order in memory.

        A compiled graph has no `out` in another order than the plain one, and a compiler chooses the order by itself.
        """
        plain = like.is_contiguous() or not like.mT.is_contiguous()
        if plain or torch.compiler.is_compiling():
            return self.take(slot, like.shape, like, dtype=dtype)
        return self.take(slot, like.mT.shape, like, dtype=dtype).mT

    def nbytes(self) -> int:
        """Return the bytes held."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())
