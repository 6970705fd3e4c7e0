"""The polar factor by matrix products: plain steps, or two to three on the Gram matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gluon.norms.coefficients import Step
from lightning_gluon.norms.numerics import Workspace, accumulation_dtype, one_if_zero

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


def iterate(x: Tensor, coefficients: Sequence[Step], safety: float | None, room: float, workspace: Workspace) -> Tensor:
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
    kind, wide = gram.dtype, accumulation_dtype(gram.dtype)
    # Factors of matrices are in their dtype: with others torch converts whole matrices, there and back.
    if safety is None:
        trace = one_if_zero(gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=wide))[:, None, None]
        gram.mul_(factor_in(trace.reciprocal(), kind))
        _symmetric(gram, gram, gram, poly, beta=b, alpha=c)
        return trace.rsqrt().to(kind)
    norm = torch.ones((), device=gram.device)
    if kind == torch.float16:  # of norm 1, A^2 and c / bound^2 <= c n^(1/2) are in its range
        norm = one_if_zero(torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True, dtype=wide))
        gram.mul_(factor_in(norm.reciprocal(), kind))
    _symmetric(None, gram, gram, poly)
    # Schatten-8: ||A||_2 <= ||A^2||_F^(1/2).
    squared = torch.linalg.vector_norm(poly, dim=(-2, -1), keepdim=True, dtype=wide)
    bound = one_if_zero(squared).sqrt() * safety**2
    gram.mul_(factor_in(bound.reciprocal(), kind))
    poly.mul_(factor_in(c / bound.square(), kind)).add_(gram, alpha=b)
    return (norm * bound).rsqrt().to(kind)


def factor_in(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return factors in the dtype of what they multiply, where it can hold them: one may be up to the row length."""
    return numbers if dtype == torch.float16 else numbers.to(dtype)
