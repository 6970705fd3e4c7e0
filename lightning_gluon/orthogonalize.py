"""How the spectral LMO is computed: `G = U S V^T -> U V^T`, by exact SVD or by matrix products only.

The axes of variation are the coefficients (`COEFFICIENTS`), the number of steps, the compute dtype and the form of
the iteration. With `A = X X^T` on the smaller side, one step of the plain form is

    X <- a X + (b A + c A^2) X

and the Gram form does two or three steps on `A` alone before it touches `X` again: algebraically the same, and fewer
operations for elongated matrices. Polar Express starts from `X / bound`, where `bound >= ||X||_2` is the Schatten-8
norm, read off the first `A^2`: much tighter than the Frobenius norm, so small singular values start higher, at no extra
product.
"""

from __future__ import annotations

import functools
import math
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
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.875, -1.25, 0.375),
)

COEFFICIENTS: dict[str, tuple[Step, ...]] = {
    "polar_express": POLAR_EXPRESS,
    "you": YOU,
    "jordan": JORDAN,
    "newton_schulz": JORDAN,  # the name Muon's users know
}
DEFAULT_STEPS = {"polar_express": 6, "you": 5, "jordan": 5, "newton_schulz": 5}
METHODS = (*COEFFICIENTS, "svd")

# Steps are p(x / s): beyond the interval that they are made for, their slope is steep and they diverge. s covers what
# rounding adds; more of it costs accuracy. For Polar Express; in fp32 1.005 is ample.
SAFETY = {torch.float16: 1.03, torch.bfloat16: 1.03, torch.float32: 1.005, torch.float64: 1.005}
# A run of steps is rounded as one polynomial, relative to its slope at zero (31 for the first two), while what it does
# to large singular values is near 1. So s is larger where the next run begins, by this times the unit roundoff and the
# slope: by 0.17 in bf16 after the first two. Errors are largest where singular vectors have few entries: of such
# matrices (51,200) 0.5 % diverged in bf16 with 0.02 more, 0.04 % with 0.05, none from 0.12 on. Jordan's steps are to be
# Muon's own, so they get none and are taken one by one: 9 of 172,800 matrices diverged in pairs.
ROOM = 1.4
ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}

# Only half of a symmetric product need be computed. On CPUs, in four bands of rows, where the operands have this many
# rows and entries (Zen 5, bf16, two threads, time against full products: X X^T 0.67 at 768 x 3072, 0.85 at 384 x 1536;
# A^2 0.81 at 896 rows, 0.84 at 768). Below, more is lost than gained: A^2 at 512 rows 1.2.
SYMMETRIC_ROWS = 384
SYMMETRIC_ENTRIES = 2**19
SYMMETRIC_BANDS = 4

# Steps that the Gram form takes between two touches of X. The product of their slopes at zero is the dynamic range of
# what is rounded: 31 after two Polar Express steps, 116 after three. bf16 has a gap of 7 % with a run of three at the
# end and diverges with one at the start; in fp16 runs of three diverge on one in fifty matrices whose singular vectors
# have few entries, and on three of 8,640 with a fifth more room; fp32 has a gap of 1.2 % with all six in one run.
GRAM_STEPS = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 3, torch.float64: 3}
# k steps cost (2a + 1) k one by one and 2a + 4k - 3 in Gram form (a: aspect ratio; unit: one product of the smaller
# side). Six steps: 12a + 6 plain, 6a + 15 in pairs, 4a + 18 in threes.
GRAM_ASPECT = 1.5
# At the end most eigenvalues of the Gram matrix are near 1, and what is left of them without this rounds finer: it lets
# a run of several steps come last in bf16. Largest gap and ||D|| over 24 matrices: 1.65 % and 1.016 at 0, 1.65 % and
# 1.009 at 0.5, 1.41 % and 1.006 at 0.75, 1.59 % and 1.006 at 1 (which loses the eigenvalues that are still small).
CENTRE = 0.75


class Workspace:
    """Buffers kept between calls, one per slot, device and dtype, grown to the largest size asked for.

    Fresh pages cost a CPU as much as a small product. A tensor taken from a slot is valid until the slot is next taken.
    """

    def __init__(self) -> None:
        """Start without buffers."""
        self._buffers: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def take(self, slot: str, shape: Sequence[int], like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialised contiguous tensor on the device of `like`, in its dtype or the given one."""
        size = math.prod(shape)
        key = (slot, like.device, dtype or like.dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype or like.dtype, device=like.device)
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
        raise ValueError(
            f"Expected `method` to be one of {', '.join(METHODS)}, but got {method!r}. Check the spelling."
        )
    count = DEFAULT_STEPS[method] if steps is None else steps
    if count < 1:
        raise ValueError(
            f"Expected `steps` to be a positive integer, but got {steps}. The default for {method!r} is "
            f"{DEFAULT_STEPS[method]}."
        )
    listed = COEFFICIENTS[method]
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
        ValueError: If the input has fewer than two dimensions, or `method` or `steps` is invalid; a complex, sparse or
            integer input is a `TypeError`.

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
        raise ValueError(
            f"Expected `matrices` to have shape (..., m, n), but got shape {tuple(matrices.shape)}. "
            "Reshape a vector to one row."
        )
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
    """Return the dtype in which to gather matrices: fp32, or fp64 for computing in fp64.

    The scale is divided out before rounding to the compute dtype: otherwise it would decide how every entry rounds.

    Args:
        compute: The compute dtype.

    Returns:
        The dtype of the stack for `orthogonalize_`.
    """
    return _wide(compute)


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
    amax = largest_magnitude(stack, (-2, -1))
    scale = _one_if_zero(amax) * math.sqrt(stack.shape[-1])  # rows of at most unit length: fp16 can hold X X^T
    workspace = workspace or Workspace()
    if dtype is None or dtype == stack.dtype:
        stack.div_(scale)
    else:
        stack = torch.div(stack, scale, out=workspace.take("x", stack.shape, stack, dtype=dtype))
    if method == "svd":
        return _svd(stack)
    safety = SAFETY[stack.dtype] if method == "polar_express" else None
    room = 0.0 if COEFFICIENTS[method] is JORDAN else ROOM * ROUNDOFF[stack.dtype]
    return _iterate(stack, schedule(method, steps), safety, room, workspace)


def _svd(stack: Tensor) -> Tensor:
    """Return U V^T, without the directions whose singular value is rounding noise."""
    left, values, right = thin_svd(stack)
    noise = 4 * torch.finfo(values.dtype).eps * max(stack.shape[-2:]) ** 0.5 * values[..., :1]
    return (left * (values > noise).to(values.dtype).unsqueeze(-2)) @ right


def thin_svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S and V^T of every matrix; U is NaN for one that is not finite, where torch would raise for all."""
    finite = matrices.isfinite().all(-1).all(-1)[..., None, None]
    left, values, right = torch.linalg.svd(matrices.where(finite, 0.0), full_matrices=False)
    return left.where(finite, math.nan), values, right


def _segments(steps: int, dtype: torch.dtype, aspect: float) -> list[int]:
    """Split the steps into runs that touch X once, a shorter one last: after it singular values may be 2, not 1."""
    longest = GRAM_STEPS[dtype] if aspect > GRAM_ASPECT else 1
    rest = steps % longest
    return [longest] * (steps // longest) + [rest] * (rest > 0)


def _with_room(coefficients: Sequence[Step], segments: Sequence[int], safety: float, room: float) -> list[Step]:
    """Return steps `p(x / s)`, with `s` as `SAFETY` and `ROOM` say; the last one, a fixed point, stays as it is."""
    factors, start = [safety] * len(coefficients), 0
    for length in segments[:-1]:
        slope = math.prod([a for a, _, _ in coefficients[start : start + length]])
        start += length
        factors[start] += room * slope
    factors[-1] = 1.0
    return [(a / s, b / s**3, c / s**5) for (a, b, c), s in zip(coefficients, factors, strict=True)]


def _iterate(
    x: Tensor, coefficients: Sequence[Step], safety: float | None, room: float, workspace: Workspace
) -> Tensor:
    """Run the iteration on (B, m, n), m <= n, with entries of at most 1; `safety` None: Frobenius normalisation."""
    batch, rows, columns = x.shape
    y = workspace.take("y", x.shape, x)
    gram, factor, matrix, work = (
        workspace.take(slot, (batch, rows, rows), x) for slot in ("gram", "factor", "matrix", "work")
    )
    segments = _segments(len(coefficients), x.dtype, columns / rows if room else 1.0)
    coefficients = _with_room(coefficients, segments, safety or 1.0, room)
    index = 0
    for number, length in enumerate(segments):
        steps = coefficients[index : index + length]
        last = length > 1 and 0 < number == len(segments) - 1
        if last:
            identity = torch.eye(rows, dtype=x.dtype, device=x.device).expand(batch, rows, rows)
            _symmetric(identity, x, x.mT, gram, beta=-CENTRE)
        else:
            _symmetric(None, x, x.mT, gram)
        if index == 0:
            x.mul_(_normalize_(gram, matrix, steps[0], safety))
        centre = CENTRE if last else 0.0
        poly, constant = _run(gram, factor, matrix, work, steps, centre=centre, started=index == 0)
        torch.baddbmm(x, poly, x, beta=constant, out=y)
        x, y = y, x
        index += length
    return x


def _run(
    gram: Tensor, factor: Tensor, matrix: Tensor, work: Tensor, steps: Sequence[Step], *, centre: float, started: bool
) -> tuple[Tensor, float]:
    """Return a matrix P and a number k with `Q_r ... Q_1 = k + P`, for steps `Q = a + b A + c A^2`, `A <- Q A Q`.

    With `A = z + E` (E: `gram`, z: `centre`), `Q = s + F` and `Q A = s z + S`,

        F = (b + 2 c z) E + c E^2        s = a + b z + c z^2
        P <- s P + k F + F P             k <- s k
        S = s E + z F + F E
        E <- s S + s z F + S F           z <- s^2 z

    The constants stay out of the matrices: bf16 would round them, on the diagonal, by more than what is beside them.
    `started`: `matrix` holds the first F.
    """
    constant = 1.0
    for number, (a, b, c) in enumerate(steps):
        scale = a + b * centre + c * centre**2
        f = factor if number else matrix
        if number or not started:
            _symmetric(gram, gram, gram, f, beta=b + 2 * c * centre, alpha=c)
        if number:
            torch.add(f, matrix, alpha=scale / constant, out=work)
            _symmetric(work, f, matrix, work, beta=constant)
            matrix, work = work, matrix
        constant *= scale
        if number == len(steps) - 1:
            break
        if centre:
            torch.add(gram, f, alpha=centre / scale, out=work)
        _symmetric(work if centre else gram, f, gram, work, beta=scale)
        if centre:
            torch.add(work, f, alpha=centre, out=gram)
        _symmetric(gram if centre else work, work, f, gram, beta=scale)
        centre *= scale**2
    return matrix, constant


def _symmetric(
    base: Tensor | None, left: Tensor, right: Tensor, out: Tensor, *, beta: float = 0.0, alpha: float = 1.0
) -> None:
    """Write `beta base + alpha left @ right`, known to be symmetric, to `out`, which may be `base`."""
    rows = out.shape[-1]
    if out.device.type != "cpu" or rows < SYMMETRIC_ROWS or rows * left.shape[-1] < SYMMETRIC_ENTRIES:
        if base is None:
            torch.bmm(left, right, out=out)
        else:
            torch.baddbmm(base, left, right, beta=beta, alpha=alpha, out=out)
        return
    # One matrix at a time: batched products copy operands whose batches are not contiguous.
    bands = [(rows * band // SYMMETRIC_BANDS, rows * (band + 1) // SYMMETRIC_BANDS) for band in range(SYMMETRIC_BANDS)]
    for matrix in range(out.shape[0]):
        for start, stop in bands:
            low, a, b = out[matrix, start:stop, :stop], left[matrix, start:stop], right[matrix, :, :stop]
            if base is None:
                torch.mm(a, b, out=low)
            else:
                torch.addmm(base[matrix, start:stop, :stop], a, b, beta=beta, alpha=alpha, out=low)
            out[matrix, :start, start:stop].copy_(low[:, :start].mT)


def _normalize_(gram: Tensor, poly: Tensor, step: Step, safety: float | None) -> Tensor:
    """Scale `gram = X X^T` in place so that `||X||_2 <= 1`, write `b gram + c gram^2` to `poly`, return X's factor."""
    _, b, c = step
    kind, wide = gram.dtype, _wide(gram.dtype)
    # Factors of matrices are in their dtype: with others torch converts whole matrices, there and back.
    if safety is None:
        trace = _one_if_zero(gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=wide))[:, None, None]
        gram.mul_(_factor(trace.reciprocal(), kind))
        _symmetric(gram, gram, gram, poly, beta=b, alpha=c)
        return trace.rsqrt().to(kind)
    norm = torch.ones((), device=gram.device)
    if kind == torch.float16:  # of norm 1, A^2 and c / bound^2 <= c n^(1/2) are in its range
        norm = _one_if_zero(torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True, dtype=wide))
        gram.mul_(_factor(norm.reciprocal(), kind))
    _symmetric(None, gram, gram, poly)
    # Schatten-8: ||A||_2 <= ||A^2||_F^(1/2).
    squared = torch.linalg.vector_norm(poly, dim=(-2, -1), keepdim=True, dtype=wide)
    bound = _one_if_zero(squared).sqrt() * safety**2
    gram.mul_(_factor(bound.reciprocal(), kind))
    poly.mul_(_factor(c / bound.square(), kind)).add_(gram, alpha=b)
    return (norm * bound).rsqrt().to(kind)


def _factor(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return factors in the dtype of what they multiply, where it can hold them: one may be up to the row length."""
    return numbers if dtype == torch.float16 else numbers.to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to accumulate norms in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _one_if_zero(tensor: Tensor) -> Tensor:
    """Replace zeros by ones, to divide by."""
    return torch.where(tensor > 0, tensor, torch.ones_like(tensor))


def largest_magnitude(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the largest magnitude over `dims` (kept)."""
    # torch.linalg.vector_norm(ord=inf) takes 25 times as long on CPUs.
    return torch.maximum(tensor.amax(dims, keepdim=True), tensor.amin(dims, keepdim=True).neg())


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
