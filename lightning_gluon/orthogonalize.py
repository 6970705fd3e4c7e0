"""How the spectral LMO is computed: `G = U S V^T -> U V^T`, by exact SVD or by matrix products only.

The axes of variation are the coefficients (`COEFFICIENTS`), the number of steps, the compute dtype and the form of
the iteration. With `A = X X^T` on the smaller side, one step of the plain form is

    X <- a X + (b A + c A^2) X

and the Gram form runs the same polynomial on `A` alone, touching `X` only at restarts. It needs fewer operations for
elongated matrices. Both start from `X / bound`, where `bound >= ||X||_2` is the Schatten-8 norm, read off the first `A^2`:
much tighter than the Frobenius norm, so small singular values start higher, at no extra matrix product.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["COEFFICIENTS", "METHODS", "Workspace", "compute_dtype", "orthogonalize", "orthogonalize_", "schedule"]

Step = tuple[float, float, float]

# K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. Maximal slope at zero; singular
# values land in [0.68, 1.20], not at 1.
JORDAN: tuple[Step, ...] = ((3.4445, -4.7750, 2.0315),)

# J. You, modded-nanogpt speedrun, 2025: five different steps.
YOU: tuple[Step, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

# N. Amsel, D. Persson, C. Musco, R. Gower, "The Polar Express", arXiv 2505.16932: minimax-optimal steps for singular
# values in [1e-3, 1], before the safety factor. The last one is the fixed point, cubic in its convergence to 1.
POLAR_EXPRESS: tuple[Step, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.875, -1.25, 0.375),
)

# Section 4.4 of arXiv 2505.16932: p(x / s) instead of p(x) keeps rounding from pushing values past the interval's end.
SAFETY = 1.01

COEFFICIENTS: dict[str, tuple[Step, ...]] = {
    "polar_express": POLAR_EXPRESS,
    "you": YOU,
    "jordan": JORDAN,
    "newton_schulz": JORDAN,  # the name Muon's users know
}
DEFAULT_STEPS = {"polar_express": 6, "you": 5, "jordan": 5, "newton_schulz": 5}
METHODS = (*COEFFICIENTS, "svd")

# Operations per restart segment of two steps: plain 8a + 4, Gram 4a + 10 (a: aspect ratio), equal at a = 1.5.
GRAM_ASPECT = 1.5
RESTART = 2  # steps between restarts; longer runs of the Gram form lose the small singular values in half precision


class Workspace:
    """Buffers kept between calls, one per slot, device and dtype, grown to the largest size asked for.

    Fresh pages cost a CPU as much as a small product. A tensor taken from a slot is valid until that slot is next taken.
    """

    def __init__(self) -> None:
        """Start without buffers."""
        self._buffers: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def take(self, slot: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return an uninitialised contiguous tensor of the given shape, with the dtype and device of `like`."""
        size = 1
        for length in shape:
            size *= length
        key = (slot, like.device, like.dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=like.dtype, device=like.device)
            self._buffers[key] = buffer
        return buffer[:size].view(tuple(shape))

    def nbytes(self) -> int:
        """Return the bytes held."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())


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


# Below this many rows fp32 products are as fast as bf16 ones on a CPU, and more accurate.
CPU_HALF_ROWS = 128


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


@functools.cache
def schedule(method: str = "polar_express", steps: int | None = None) -> tuple[Step, ...]:
    """Return the coefficients (a, b, c) of every step.

    A list shorter than `steps` is continued with its last entry. Asking for fewer Polar Express steps keeps the leading
    ones, as its authors do.

    Args:
        method: One of `COEFFICIENTS`.
        steps: Number of steps; default: 6 for `polar_express`, 5 for the others.

    Returns:
        One tuple (a, b, c) per step.

    Raises:
        ValueError: If the method is unknown or `steps` is not positive.

    Example:
        >>> schedule("jordan", 2)
        ((3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315))
    """
    if method not in COEFFICIENTS:
        raise ValueError(f"Expected `method` to be one of {', '.join(METHODS)}, but got {method!r}. Check the spelling.")
    count = DEFAULT_STEPS[method] if steps is None else steps
    if count < 1:
        raise ValueError(f"Expected `steps` to be a positive integer, but got {steps}. The default is "
                         f"{DEFAULT_STEPS[method]} for {method!r}.")  # fmt: skip
    listed = COEFFICIENTS[method]
    if method == "polar_express":
        listed = (*((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in listed[:-1]), listed[-1])
    return (*listed, *(listed[-1:] * count))[:count]


def orthogonalize(
    matrices: Tensor, method: str = "polar_express", steps: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Replace every matrix by its nearest semi-orthogonal one, `U S V^T -> U V^T`, unscaled.

    The result does not depend on the scale of each matrix, and zero gives zero.

    Shapes: `matrices` (..., m, n) -> (..., m, n); every leading index is a matrix of its own.

    Args:
        matrices: Real floating-point matrices.
        method: `polar_express`, `you`, `jordan` (also called `newton_schulz`) or `svd`.
        steps: Number of Newton-Schulz steps; default: 6 for `polar_express`, 5 for the others. Ignored by `svd`.
        dtype: Compute dtype; default: what the hardware does fast (see `compute_dtype`).

    Returns:
        The orthogonalised matrices, in the dtype and on the device of the input.

    Raises:
        ValueError: If the input has fewer than two dimensions, or `method` or `steps` is invalid.
        TypeError: If the input is complex, sparse or not floating-point.

    References:
        N. Amsel et al., "The Polar Express: Optimal Matrix Sign Methods and Their Application to the Muon Algorithm",
        arXiv 2505.16932. K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    Example:
        >>> torch.set_printoptions(precision=2, sci_mode=False)
        >>> orthogonalize(torch.tensor([[3.0, 0.0], [0.0, -1e-3]]), method="svd")
        tensor([[ 1.,  0.],
                [ 0., -1.]])
    """
    check_real(matrices)
    if matrices.ndim < 2:
        raise ValueError(f"Expected `matrices` to have shape (..., m, n), but got shape {tuple(matrices.shape)}. Reshape "
                         "vectors to one row.")  # fmt: skip
    if method != "svd":
        schedule(method, steps)  # complain before any work
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
    """Return the dtype in which to gather matrices: the compute dtype, or fp32 where its range is too small (fp16)."""
    return torch.float32 if compute == torch.float16 else compute


@torch.no_grad()
def orthogonalize_(
    stack: Tensor,
    *,
    method: str = "polar_express",
    steps: int | None = None,
    dtype: torch.dtype | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Orthogonalise a stack of oriented matrices, overwriting it: no checks, no copies, no host synchronisation.

    Args:
        stack: Contiguous (B, m, n) with m <= n, in `staging_dtype` of the compute dtype; its contents are lost.
        method: As in `orthogonalize`; `svd` may synchronise.
        steps: As in `orthogonalize`.
        dtype: Compute dtype; default: that of `stack`.
        workspace: Buffers to reuse between calls; default: fresh ones.

    Returns:
        (B, m, n) in the compute dtype. May share memory with `stack` or `workspace`: use it before the next call.
    """
    amax = torch.linalg.vector_norm(stack, ord=float("inf"), dim=(-2, -1), keepdim=True)
    amax = torch.where(amax > 0, amax, torch.ones_like(amax))
    stack = stack.div_(amax)
    if dtype is not None and stack.dtype != dtype:
        stack = stack.to(dtype)
    if method == "svd":
        return _svd(stack)
    coefficients = schedule(method, steps)
    workspace = workspace or Workspace()
    rows, columns = stack.shape[-2:]
    if columns > GRAM_ASPECT * rows:
        return _gram_form(stack, coefficients, workspace)
    return _plain_form(stack, coefficients, workspace)


def _svd(stack: Tensor) -> Tensor:
    """Return U V^T, without the directions whose singular value is rounding noise."""
    left, values, right = torch.linalg.svd(stack, full_matrices=False)
    noise = torch.finfo(values.dtype).eps * max(stack.shape[-2:]) * values[..., :1]
    return (left * (values > noise).to(values.dtype).unsqueeze(-2)) @ right


def _first_polynomial(gram: Tensor, step: Step, square: Tensor) -> Tensor:
    """Scale `gram = X X^T` in place to norm at most 1, write `b gram + c gram^2` to `square`, return the factor for X.

    `||A||_2 <= ||A^2||_F^(1/2)`. Dividing by `||A||_F` first keeps `A^2` within the range of fp16.
    """
    _, b, c = step
    frobenius = _frobenius(gram)
    gram.div_(frobenius)
    torch.bmm(gram, gram, out=square)
    bound = _frobenius(square).sqrt()
    square.mul_(c / bound.square()).add_(gram.div_(bound), alpha=b)
    return (frobenius * bound).rsqrt()


def _frobenius(matrices: Tensor) -> Tensor:
    """Return the Frobenius norm (B, 1, 1) in fp32 or wider, 1 for zero matrices."""
    wide = torch.float64 if matrices.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=wide)
    return torch.where(norm > 0, norm, torch.ones_like(norm))


def _plain_form(x: Tensor, coefficients: Sequence[Step], workspace: Workspace) -> Tensor:
    """Run X <- a X + (b A + c A^2) X, A = X X^T."""
    batch, rows, _ = x.shape
    gram, poly = (workspace.take(slot, (batch, rows, rows), x) for slot in ("gram", "poly"))
    y = workspace.take("wide", x.shape, x)
    for index, (a, b, c) in enumerate(coefficients):
        torch.bmm(x, x.mT, out=gram)
        if index == 0:
            x.mul_(_first_polynomial(gram, coefficients[0], poly))
        else:
            torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=poly)
        torch.baddbmm(x, poly, x, beta=a, out=y)
        x, y = y, x
    return x


def _gram_form(x: Tensor, coefficients: Sequence[Step], workspace: Workspace) -> Tensor:
    """Run the same iteration on A = X X^T, with X <- Q X every `RESTART` steps."""
    batch, rows, _ = x.shape
    gram, poly, q, spare = (workspace.take(slot, (batch, rows, rows), x) for slot in ("gram", "poly", "q", "spare"))
    y = workspace.take("wide", x.shape, x)
    for start in range(0, len(coefficients), RESTART):
        segment = coefficients[start : start + RESTART]
        torch.bmm(x, x.mT, out=gram)
        for index, (a, b, c) in enumerate(segment):
            if start == index == 0:
                factor = _first_polynomial(gram, segment[0], poly)
            else:
                torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=poly)
            if index == 0:
                q.copy_(poly).diagonal(dim1=-2, dim2=-1).add_(a)
            else:
                torch.baddbmm(q, q, poly, beta=a, out=spare)
                q, spare = spare, q
            if index + 1 < len(segment):  # A <- p(A) A p(A)
                torch.baddbmm(gram, gram, poly, beta=a, out=spare)
                torch.baddbmm(spare, poly, spare, beta=a, out=gram)
        if start == 0:
            q.mul_(factor)
        torch.bmm(q, x, out=y)
        x, y = y, x
    return x


def check_real(tensor: Tensor) -> None:
    """Raise unless the tensor is dense, real and floating-point."""
    if tensor.layout != torch.strided:
        raise TypeError(f"Expected a dense tensor, but got layout {tensor.layout} with shape {tuple(tensor.shape)}. "
                        "Call `.to_dense()` first.")  # fmt: skip
    if not tensor.is_floating_point():
        raise TypeError(f"Expected a real floating-point tensor, but got {tensor.dtype} with shape "
                        f"{tuple(tensor.shape)}. Cast it, or view a complex tensor as real.")  # fmt: skip
