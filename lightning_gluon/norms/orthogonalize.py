"""Computation of the spectral LMO: `G = U S V^T -> U V^T`, by exact SVD or by matrix products only.

The axes of variation are the coefficients (`ITERATIONS`), the number of steps, the compute dtype and the form of
the iteration. With `A = X X^T` on the smaller side, one step of the plain form is

    X <- a X + (b A + c A^2) X

and the Gram form does two or three steps on `A` alone before it touches `X` again: algebraically the same, and fewer
operations for elongated matrices. Polar Express starts from `X / bound`, where `bound >= ||X||_2` is the Schatten-8
norm, read off the first `A^2`: much tighter than the Frobenius norm, so small singular values start higher, at no extra
product.

In fp32 on a CPU the default is two rational steps and a cubic one, for matrices large enough: see
`lightning_gluon.norms.rational`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gluon.norms import rational
from lightning_gluon.norms.coefficients import ITERATIONS, step_coefficients
from lightning_gluon.norms.numerics import Workspace, accumulation_dtype, check_real, divisor, largest_magnitude
from lightning_gluon.norms.polar import iterate


@functools.cache
def _half_type(kind: str, index: int | None) -> torch.dtype:
    """Return the fastest accurate enough dtype of a device: one with native half-precision products, or fp32."""
    if kind == "cuda":
        if torch.version.hip is not None:
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(index) >= (7, 0) else torch.float32
    if kind == "cpu":  # avx512_bf16 or amx; without them bf16 is emulated, and slower than fp32
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        return torch.bfloat16 if native() or amx() else torch.float32
    return torch.float32


# Below this many rows fp32 products are as fast as bf16 ones on a CPU (Zen 5: 75 against 115 GFLOP/s at 32 x 32, 95
# against 420 from 384 rows on), and more accurate.
CPU_HALF_ROWS = 32


def compute_dtype(
    device: torch.device | str,
    *,
    method: str = "polar_express",
    dtype: torch.dtype = torch.float32,
    shape: Sequence[int] | None = None,
) -> torch.dtype:
    """Return the dtype in which matrices are orthogonalised by default.

    Args:
        device: Where the matrices live.
        method: Name of the method; `svd` keeps fp32 and fp64 and computes half precision in fp32.
        dtype: Dtype of the matrices.
        shape: Their shape; only the last two entries count. On a CPU small matrices are done in fp32.

    Returns:
        fp16 on CUDA devices with tensor cores (bf16 on ROCm), bf16 on CPUs with native bf16 products, fp32 elsewhere.

    Example:
        >>> compute_dtype("cpu", method="svd", dtype=torch.float64)
        torch.float64
    """
    if method == "svd":
        return torch.float64 if dtype == torch.float64 else torch.float32
    device = torch.device(device)
    if device.type == "cpu" and shape is not None and min(shape[-2:]) < CPU_HALF_ROWS:
        return torch.float32
    return _half_type(device.type, device.index)


def orthogonalize(
    matrices: Tensor, method: str = "polar_express", steps: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Replace every matrix by its nearest semi-orthogonal one, `U S V^T -> U V^T`, unscaled.

    The result does not depend on the scale of each matrix, and zero gives zero.

    Shapes: `matrices` (..., m, n) -> (..., m, n); every leading index is its own matrix.

    Args:
        matrices: Real floating-point matrices.
        method: `polar_express`, `you`, `jordan` (also called `newton_schulz`) or `svd`.
        steps: Number of Newton-Schulz steps; default: 6 for `polar_express`, 5 for the others. Ignored by `svd`. Fewer
            Polar Express steps are solved for their number: of the decrease 5 miss 0.7 % on average and up to 3 %, 4
            miss 2.5 % and up to 8 %. bf16 needs 6.
            Without a number, fp32 matrices of some 200 rows on a CPU take rational steps: as accurate, and faster.
        dtype: Compute dtype; default: what the hardware does fast (see `compute_dtype`).

    Returns:
        The orthogonalised matrices, in the dtype and on the device of the input.

    Raises:
        ValueError: If the input has fewer than two dimensions, or `method` or `steps` is invalid; a complex, sparse or
            integer input is a `TypeError`.

    References:
        N. Amsel et al., "The Polar Express: Optimal Matrix Sign Methods and Their Application to the Muon Algorithm",
        arXiv 2505.16932. K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    Example:
        >>> q = orthogonalize(torch.tensor([[3.0, 0.0], [0.0, -1e-3]]), method="svd")
        >>> q.diagonal().round(decimals=5).tolist()
        [1.0, -1.0]
    """
    check_real(matrices)
    if matrices.ndim < 2:
        raise ValueError(
            f"Expected `matrices` to have shape (..., m, n), but got shape {tuple(matrices.shape)}. "
            "Reshape a vector to one row."
        )
    if method != "svd":
        step_coefficients(method, steps)  # complain before any work
    if matrices.numel() == 0:
        return matrices.clone()
    rows, columns = matrices.shape[-2:]
    compute = dtype or compute_dtype(matrices.device, method=method, dtype=matrices.dtype, shape=matrices.shape)
    stack = matrices.detach().reshape(-1, rows, columns)
    if rows > columns:
        stack = stack.mT
    stack = stack.to(staging_dtype(compute), copy=True, memory_format=torch.contiguous_format)
    result = orthogonalize_(stack, method=method, steps=steps, dtype=compute)
    if rows > columns:
        result = result.mT
    return result.reshape(matrices.shape).to(matrices.dtype)


def staging_dtype(compute: torch.dtype) -> torch.dtype:
    """Return the dtype in which to gather matrices: fp32, or fp64 for computing in fp64.

    The scale is divided out before rounding to the compute dtype: otherwise it would decide how every entry rounds.

    Args:
        compute: The compute dtype.

    Returns:
        The dtype of the stack for `orthogonalize_`.
    """
    return accumulation_dtype(compute)


@torch.no_grad()
def orthogonalize_(
    stack: Tensor,
    *,
    method: str = "polar_express",
    steps: int | None = None,
    dtype: torch.dtype | None = None,
    workspace: Workspace | None = None,
    out_dtype: torch.dtype | None = None,
    scaled: bool = False,
) -> Tensor:
    """Orthogonalise a stack of oriented matrices: no checks, no host synchronisation.

    Args:
        stack: (B, m, n) with m <= n, contiguous or the transposes of contiguous matrices, in `staging_dtype` of the
            compute dtype. If that is its own dtype, its contents are lost; else it is only read.
        method: As in `orthogonalize`; `svd` may synchronise.
        steps: As in `orthogonalize`.
        dtype: Compute dtype; default: that of `stack`.
        workspace: Buffers to reuse between calls; default: fresh ones.
        out_dtype: Dtype that the result is wanted in. A GPU writes its last product in fp32 at no cost.
        scaled: Whether `stack` is divided by its `operand_scale` and rounded already; its contents are lost then.

    Returns:
        (B, m, n) in the compute dtype, or in `out_dtype` where that was free. May share memory with `stack` or
        `workspace`: use it before the next call.
    """
    workspace = workspace or Workspace()
    if not scaled:
        scale = operand_scale(largest_magnitude(stack, (-2, -1)), stack.shape[-1])
        if dtype is None or dtype == stack.dtype:
            stack.div_(scale)
        elif torch.compiler.is_compiling():  # a compiler chooses the memory, and knows no `out` of another order
            stack = torch.div(stack, scale).to(dtype).contiguous()
        else:
            stack = torch.div(stack, scale, out=workspace.take_like("x", stack, dtype))
    if method == "svd":
        return _svd(stack)
    if steps is None and ITERATIONS[method].rational and rational.pays(stack):
        return _rational(stack, method, workspace)
    return _polynomial(stack, method, steps, workspace, out_dtype)


def operand_scale(largest: Tensor, columns: int) -> Tensor:
    """Return what matrices are divided by first: rows then have at most unit length, and fp16 can hold `X X^T`.

    Ranks that hold parts of a matrix agree on its maximum, bit for bit.

    Args:
        largest: Largest magnitude of every matrix.
        columns: Their columns.
    """
    return divisor(largest) * math.sqrt(columns)


def _polynomial(
    stack: Tensor, method: str, steps: int | None, workspace: Workspace, out_dtype: torch.dtype | None = None
) -> Tensor:
    iteration = ITERATIONS[method]
    coefficients = step_coefficients(method, steps)
    wide = out_dtype == torch.float32
    return iterate(stack, coefficients, workspace, tight=iteration.tight, runs=iteration.runs, wide=wide)


def _rational(stack: Tensor, method: str, workspace: Workspace) -> Tensor:
    """Return the result of rational steps, and of polynomial ones where a decomposition failed."""
    result, failed = rational.rational_factor(stack, workspace)
    if failed.any():  # matrices that are not finite, above all
        result[failed] = _polynomial(stack[failed], method, None, Workspace())
    return result


def _svd(stack: Tensor) -> Tensor:
    """Return U V^T, without the directions whose singular value is rounding noise."""
    left, values, right = thin_svd(stack)
    eps = torch.finfo(values.dtype).eps
    noise = 4 * eps * max(stack.shape[-2:]) ** 0.5 * values[..., :1]
    kept = (values > noise).to(values.dtype)
    return (left * kept.unsqueeze(-2)) @ right


def thin_svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S and V^T of every matrix; U is NaN for one that is not finite, where torch would raise for all."""
    finite = matrices.isfinite().all(-1).all(-1)
    finite = finite[..., None, None]
    left, values, right = torch.linalg.svd(matrices.where(finite, 0.0), full_matrices=False)
    return left.where(finite, math.nan), values, right
