"""Numbers in 8 or 4 bits, block by block along the rows of matrices: what truncation drops is kept like this.

    q = round(x / s),    s = max |x| / top over a block,    |x - s q| <= s / 2         top: 127 in 8 bits, 7 in 4

Two numbers of 4 bits share a byte, the first of each pair in the low half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["QUANTIZERS", "Quantizer"]

BLOCK = 128  # entries that share a scale of 4 bytes, at most


@dataclass(frozen=True)
class Quantizer:
    """Rounding to equally spaced numbers, symmetric around zero.

    Args:
        top: The largest of them, in steps.
        per_byte: Codes that share a byte.

    Example:
        >>> matrices = torch.tensor([[[0.0, 1.0, -2.0, 3.5]]])
        >>> codes, scales = QUANTIZERS["int4"].quantize(matrices)
        >>> codes.nbytes, QUANTIZERS["int4"].restore(codes, scales, matrices).tolist()
        (2, [[[0.0, 1.0, -2.0, 3.5]]])
    """

    top: int
    per_byte: int

    def layout(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Return codes and scales of matrices `(batch, m, n)`, as tensors on the meta device.

        Args:
            shape: Shape of the matrices.

        Returns:
            uint8 `(batch, m, blocks, block bytes)` and fp32 `(batch, m, blocks, 1)`.
        """
        batch, rows, columns = shape
        blocks, block = self._blocks(columns)
        codes = torch.empty(batch, rows, blocks, block // self.per_byte, dtype=torch.uint8, device="meta")
        return codes, torch.empty(batch, rows, blocks, 1, dtype=torch.float32, device="meta")

    def quantize(self, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes and scales of matrices.

        Args:
            matrices: `(batch, m, n)` in fp32 or fp64.

        Returns:
            As `layout` says.
        """
        columns = matrices.shape[-1]
        blocks, block = self._blocks(columns)
        padded = torch.nn.functional.pad(matrices, (0, blocks * block - columns))
        parts = padded.unflatten(-1, (blocks, block))
        scales = (parts.abs().amax(-1, keepdim=True) / self.top).float()
        steps = scales.to(matrices.dtype)
        steps = torch.where(steps > 0, steps, torch.ones_like(steps))
        codes = (parts / steps).round_().clamp_(-self.top, self.top).add_(self.top).to(torch.uint8)
        return self._pack(codes), scales

    def restore(self, codes: Tensor, scales: Tensor, like: Tensor) -> Tensor:
        """Return the matrices that codes and scales stand for.

        Args:
            codes: What `quantize` returned.
            scales: What it returned beside them.
            like: Matrices of the wanted shape and dtype.

        Returns:
            `(batch, m, n)`.
        """
        whole = self._unpack(codes).to(like.dtype).sub_(self.top)
        return whole.mul_(scales.to(like.dtype)).flatten(-2)[..., : like.shape[-1]]

    def _blocks(self, columns: int) -> tuple[int, int]:
        """Return the number of blocks of a row and their length: nearly equal, so that little is padding."""
        blocks = math.ceil(columns / BLOCK)
        block = math.ceil(columns / blocks / self.per_byte) * self.per_byte
        return blocks, block

    def _pack(self, codes: Tensor) -> Tensor:
        if self.per_byte == 1:
            return codes
        low, high = codes.unflatten(-1, (-1, 2)).unbind(-1)
        return low | (high << 4)

    def _unpack(self, codes: Tensor) -> Tensor:
        if self.per_byte == 1:
            return codes
        return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)


QUANTIZERS = {"int8": Quantizer(127, 1), "int4": Quantizer(7, 2)}
