"""Compressors: short messages that stand for a tensor `x` of `d` entries, with E ||C(x) - x||^2 <= (1 - alpha) ||x||^2.

| row | message | bytes in fp32 | alpha |
|---|---|---|---|
| `identity` | all entries | `4 d` | 1 |
| `bf16` | all entries, rounded | `2 d` | 1 - 2^-16 |
| `natural` | signs and exponents, rounded up or down at random | `d + 4` | 7 / 8 |
| `top-k` | the `k` largest entries and their places | `8 k` | k / d |
| `random-k` | `k` entries at places that both sides draw | `4 k` | k / d |
| `rank-r` | the leading factors of a matrix | `4 r (m + n)` | r / min(m, n), of an exact truncation |

`k` is a share of `d`. What `rank-r` cannot shorten, such as a vector, it sends whole.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from lightning_gluon.estimators.low_rank import compress

__all__ = ["COMPRESSORS", "IN_FULL", "Compressor", "Message", "compressor_of"]

Message: TypeAlias = list[Tensor]
Stream: TypeAlias = Callable[[], torch.Generator]  # makes the same random stream on both sides


class Compressor(ABC):
    """A map from a tensor to a message, and back to a tensor that stands for it."""

    options: ClassVar[tuple[str, ...]] = ()  # of the group, as fields

    @abstractmethod
    def pack(self, x: Tensor, draw: Stream) -> Message:
        """Return the message.

        Args:
            x: A tensor of any shape, in fp32 or fp64.
            draw: Makes the random stream of this message.
        """

    @abstractmethod
    def unpack(self, message: Message, like: Tensor, draw: Stream) -> Tensor:
        """Return what a message stands for.

        Args:
            message: Result of `pack`.
            like: A tensor of the shape and dtype that was packed.
            draw: As it was for `pack`.
        """


class EveryEntry(Compressor):
    """The tensor as it is."""

    def pack(self, x: Tensor, draw: Stream) -> Message:
        """Return the tensor itself."""
        return [x]

    def unpack(self, message: Message, like: Tensor, draw: Stream) -> Tensor:
        """Return the tensor itself."""
        return message[0]


class Rounded(Compressor):
    """Rounding of every entry to bfloat16."""

    def pack(self, x: Tensor, draw: Stream) -> Message:
        """Return the rounded tensor."""
        return [x.bfloat16()]

    def unpack(self, message: Message, like: Tensor, draw: Stream) -> Tensor:
        """Return it in the dtype that was packed."""
        return message[0].to(like.dtype)


class Natural(Compressor):
    """Powers of two, rounded up or down at random so that the mean is the entry; below 2^-127 of the largest: zero.

    References:
        S. Horvath et al., "Natural Compression for Distributed Deep Learning", arXiv 1905.10988.
    """

    codes: ClassVar[int] = 127  # exponents that a signed byte tells apart

    def pack(self, x: Tensor, draw: Stream) -> Message:
        """Return a signed byte per entry, and the largest exponent."""
        mantissa, exponent = torch.frexp(x)
        share = mantissa.abs().mul_(2).sub_(1)  # of the way from the lower power to the upper one
        up = torch.rand(x.shape, generator=draw(), device=x.device, dtype=x.dtype) < share
        power = (exponent - 1 + up.to(exponent.dtype)).clamp_max_(_top_exponent(x.dtype))
        power = torch.where(x == 0, torch.full_like(power, -(2**20)), power)
        top = power.amax()
        codes = (power - top + self.codes).clamp_min_(0) * x.sign().to(power.dtype)
        return [codes.to(torch.int8), top]

    def unpack(self, message: Message, like: Tensor, draw: Stream) -> Tensor:
        """Return the powers of two with their signs."""
        codes, top = message
        power = codes.abs().to(top.dtype) + (top - self.codes)
        signs = codes.sign().to(like.dtype)
        return torch.ldexp(signs, torch.where(codes == 0, torch.zeros_like(power), power))


def _top_exponent(dtype: torch.dtype) -> int:
    """Return the exponent of the largest power of two of a dtype."""
    _, exponent = math.frexp(torch.finfo(dtype).max)
    return exponent - 1


@dataclass(frozen=True)
class _Sparse(Compressor):
    """Some entries, the others zero."""

    options: ClassVar[tuple[str, ...]] = ("compressor_share",)
    compressor_share: float

    def count(self, x: Tensor) -> int:
        """Return how many entries are sent."""
        return max(1, round(self.compressor_share * x.numel()))

    @staticmethod
    def spread(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
        """Return zeros with values at places."""
        flat = like.new_zeros(like.numel())
        flat[places.long()] = values
        return flat.view(like.shape)


class TopK(_Sparse):
    """The entries of the largest magnitudes."""

    def pack(self, x: Tensor, draw: Stream) -> Message:
        """Return values and places."""
        flat = x.flatten()
        places = flat.abs().topk(self.count(x), sorted=False).indices
        narrow = torch.int32 if x.numel() < 2**31 else torch.int64
        return [flat[places], places.to(narrow)]

    def unpack(self, message: Message, like: Tensor, draw: Stream) -> Tensor:
        """Return the values at their places."""
        values, places = message
        return self.spread(values, places, like)


class RandomK(_Sparse):
    """Entries at random places, as they are: a contraction, not the unbiased form that scales them up."""

    def pack(self, x: Tensor, draw: Stream) -> Message:
        """Return the values."""
        return [x.flatten()[self._places(x, draw)]]

    def unpack(self, message: Message, like: Tensor, draw: Stream) -> Tensor:
        """Return the values at their places."""
        return self.spread(message[0], self._places(like, draw), like)

    def _places(self, x: Tensor, draw: Stream) -> Tensor:
        order = torch.rand(x.numel(), generator=draw(), device=x.device)
        return order.topk(self.count(x), sorted=False).indices


@dataclass(frozen=True)
class RankR(Compressor):
    """The leading factors of a matrix, by a randomised SVD; further dimensions count as columns."""

    options: ClassVar[tuple[str, ...]] = ("compressor_rank",)
    compressor_rank: int

    def pack(self, x: Tensor, draw: Stream) -> Message:
        """Return `U S` and `V`, or the tensor itself if that is no longer."""
        if not self._shortens(x):
            return [x]
        left, values, right = compress(x.reshape(1, len(x), -1), rank=self.compressor_rank, generator=draw())
        return [left * values.unsqueeze(-2), right]

    def unpack(self, message: Message, like: Tensor, draw: Stream) -> Tensor:
        """Return the product of the factors."""
        if len(message) == 1:
            return message[0]
        left, right = message
        return (left @ right.mT).view(like.shape)

    def _shortens(self, x: Tensor) -> bool:
        if x.ndim < 2:
            return False
        rows = len(x)
        columns = x.numel() // rows
        return self.compressor_rank * (rows + columns) < rows * columns


IN_FULL = EveryEntry()  # for the first message
COMPRESSORS: dict[str, type[Compressor]] = {
    "identity": EveryEntry,
    "bf16": Rounded,
    "natural": Natural,
    "top-k": TopK,
    "random-k": RandomK,
    "rank-r": RankR,
}


def compressor_of(group: Mapping[str, Any]) -> Compressor:
    """Return the compressor of a group.

    Example:
        >>> compressor_of({"compressor": "top-k", "compressor_share": 0.1})
        TopK(compressor_share=0.1)
    """
    kind = COMPRESSORS[group["compressor"]]
    return kind(**{option: group[option] for option in kind.options})
