"""Products of matrices whose result is symmetric; on a CPU half of each is computed, on a GPU if one asks for it."""

from __future__ import annotations

import os

import torch
from torch import Tensor

# The least size that pays, measured on a CPU: docs/primers/orthogonalization.md.
SYMMETRIC_ROWS = 384
SYMMETRIC_ENTRIES = 2**19
SYMMETRIC_BANDS = 4


def symmetric_product(
    base: Tensor | None,
    left: Tensor,
    right: Tensor,
    out: Tensor,
    *,
    beta: float = 0.0,
    alpha: float = 1.0,
) -> None:
    """Write `beta base + alpha left @ right`, known to be symmetric, to `out`, which may be `base`."""
    rows = out.shape[-1]
    entries = rows * left.shape[-1]
    small = rows < SYMMETRIC_ROWS or entries < SYMMETRIC_ENTRIES
    if not small and out.is_cuda and _has_kernel():
        from lightning_gluon.norms.triton_products import half_product_

        half_product_(base, left, right, out, beta, alpha)
        return
    if small or out.device.type != "cpu":
        _product(base, left, right, out, beta, alpha)
        return
    # One matrix at a time: batched products copy operands whose batches are not contiguous.
    for index, result in enumerate(out):
        own = None if base is None else base[index]
        _in_bands(own, left[index], right[index], result, beta, alpha)


def _has_kernel() -> bool:
    """Return whether a GPU is to take the Triton kernel: nobody has shown yet that it is faster there."""
    return os.environ.get("LIGHTNING_GLUON_SYMMETRIC") == "1" and not torch.compiler.is_compiling()


def _product(base: Tensor | None, left: Tensor, right: Tensor, out: Tensor, beta: float, alpha: float) -> None:
    if base is None and alpha == 1:
        torch.bmm(left, right, out=out)
    elif base is None:
        torch.baddbmm(out, left, right, beta=0, alpha=alpha, out=out)
    else:
        torch.baddbmm(base, left, right, beta=beta, alpha=alpha, out=out)


def _in_bands(base: Tensor | None, left: Tensor, right: Tensor, out: Tensor, beta: float, alpha: float) -> None:
    """Compute the lower bands of one product, and mirror them."""
    rows = len(out)
    edges = [rows * band // SYMMETRIC_BANDS for band in range(SYMMETRIC_BANDS + 1)]
    for band in range(SYMMETRIC_BANDS):
        start, stop = edges[band], edges[band + 1]
        low = out[start:stop, :stop]
        upper = right[:, :stop]
        if base is None and alpha == 1:
            torch.mm(left[start:stop], upper, out=low)
        elif base is None:
            torch.addmm(low, left[start:stop], upper, beta=0, alpha=alpha, out=low)
        else:
            own = base[start:stop, :stop]
            torch.addmm(own, left[start:stop], upper, beta=beta, alpha=alpha, out=low)
        mirrored = low[:, :start].mT
        out[:start, start:stop].copy_(mirrored)
