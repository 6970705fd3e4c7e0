"""A product of matrices with a symmetric result as one Triton kernel: tiles below the diagonal, and their mirrors.

Nothing imports this module unless the environment variable `LIGHTNING_GLUON_SYMMETRIC` is 1. No GPU has shown yet that
it is faster than a full product.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["half_product_"]

TILE = 64
INNER_TILE = 32


@triton.jit
def _tiles(  # type: ignore[no-untyped-def]
    left,
    right,
    base,
    out,
    rows,
    inner,
    left_batch,
    left_row,
    left_column,
    right_batch,
    right_row,
    right_column,
    beta,
    alpha,
    has_base: tl.constexpr,
    tile: tl.constexpr,
    depth: tl.constexpr,
):
    """Compute one tile of `beta base + alpha left right`, and mirror it; `base` and `out` are contiguous."""
    row = tl.program_id(0)
    column = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    if column <= row:
        down = row * tile + tl.arange(0, tile)
        across = column * tile + tl.arange(0, tile)
        total = tl.full((tile, tile), 0.0, tl.float32)
        for start in range(0, inner, depth):
            along = start + tl.arange(0, depth)
            one = left + batch * left_batch + down[:, None] * left_row + along[None, :] * left_column
            other = right + batch * right_batch + along[:, None] * right_row + across[None, :] * right_column
            a = tl.load(one, mask=(down[:, None] < rows) & (along[None, :] < inner), other=0.0)
            b = tl.load(other, mask=(along[:, None] < inner) & (across[None, :] < rows), other=0.0)
            total += tl.dot(a, b)
        total *= alpha
        inside = (down[:, None] < rows) & (across[None, :] < rows)
        place = batch * rows * rows + down[:, None] * rows + across[None, :]
        if has_base:
            total += beta * tl.load(base + place, mask=inside, other=0.0).to(tl.float32)
        result = total.to(out.dtype.element_ty)
        tl.store(out + place, result, mask=inside)
        if column < row:
            mirrored = batch * rows * rows + across[None, :] * rows + down[:, None]
            tl.store(out + mirrored, result, mask=inside)


def half_product_(
    base: Tensor | None,
    left: Tensor,
    right: Tensor,
    out: Tensor,
    beta: float,
    alpha: float,
) -> None:
    """Write `beta base + alpha left @ right`, known to be symmetric, to `out`, which may be `base`.

    Args:
        base: (B, m, m), contiguous; `None` for none.
        left: (B, m, k), in any order.
        right: (B, k, m), in any order.
        out: (B, m, m), contiguous, neither `left` nor `right`.
        beta: Factor of the base.
        alpha: Factor of the product.
    """
    count, rows, inner = left.shape
    side = -(-rows // TILE)
    _tiles[(side, side, count)](
        left,
        right,
        out if base is None else base,
        out,
        rows,
        inner,
        *left.stride(),
        *right.stride(),
        beta,
        alpha,
        has_base=base is not None,
        tile=TILE,
        depth=INNER_TILE,
    )
