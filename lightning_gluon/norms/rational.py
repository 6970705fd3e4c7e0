"""The polar factor by Cholesky decompositions: two rational steps and a cubic one, all on the Gram matrix.

A rational step squares its way to the polar factor much faster than a polynomial of the same cost, where an inverse is
cheap: on a CPU, in fp32. What was measured stands in `docs/primers/orthogonalization.md`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gluon.norms.numerics import Workspace, one_if_zero
from lightning_gluon.norms.products import symmetric_product


@dataclass(frozen=True)
class RationalStep:
    """A step `x <- x (k + w / (x^2 + s))` on singular values.

    Args:
        constant: `k`.
        weight: `w`.
        shift: `s`.
    """

    constant: float
    weight: float
    shift: float


def dynamic_halley(low: float, steps: int) -> list[RationalStep]:
    """Return the steps of dynamically weighted Halley, best for singular values in `[low, 1]`.

        f(x) = x (a + b x^2) / (1 + c x^2)
        a = sqrt(1 + d) + sqrt(8 - 4 d + 8 (2 - l^2) / (l^2 sqrt(1 + d))) / 2,   d = (4 (1 - l^2) / l^4)^(1/3)
        b = (a - 1)^2 / 4,   c = a + b - 1,   l <- f(l)

    Of all such f it has the largest minimum over `[l, 1]` with `f <= 1` there. As a partial fraction `k = b / c`,
    `w = (a - b / c) / c` and `s = 1 / c`.

    Args:
        low: The smallest singular value `l` that counts, relative to the largest.
        steps: How many.

    Returns:
        One step after the other.

    References:
        Y. Nakatsukasa, Z. Bai, F. Gygi, "Optimizing Halley's iteration for computing the matrix polar decomposition",
        SIAM J. Matrix Anal. Appl. 31 (2010).

    Example:
        >>> first, second = dynamic_halley(0.002, 2)
        >>> round(first.constant, 4), round(first.weight, 4), round(second.shift, 4)
        (0.9753, 0.0247, 0.095)
    """
    found = []
    for _ in range(steps):
        square = low**2
        d = (4 * (1 - square) / square**2) ** (1 / 3)
        root = math.sqrt(1 + d)
        inner = 8 - 4 * d + 8 * (2 - square) / (square * root)
        a = root + math.sqrt(inner) / 2
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        constant = b / c
        found.append(RationalStep(constant, weight=(a - constant) / c, shift=1 / c))
        low *= (a + b * square) / (1 + c * square)
    return found


# With a smaller start the first inverse is of a matrix that fp32 does not hold: at 0.001 ||D|| reaches 1.02.
STEPS = dynamic_halley(0.002, 2)
# The Gram matrix has norm 1 up to rounding: a singular value above 1 would come out above 1.
ROOM = 1.0001
# (least aspect ratio, least rows) from which it was faster than six polynomial steps, first match; one thread.
LEAST_ROWS = ((2.0, 128), (1.0, 192))


def pays(stack: Tensor) -> bool:
    """Return whether the rational steps are faster than polynomial ones here: a matter of dtype, device and shape.

    The number of matrices does not count. A matrix has the same direction alone as in a stack. A compiled graph takes
    polynomials, since it cannot turn to them where a decomposition fails.
    """
    rows, columns = stack.shape[-2:]
    fits = stack.device.type == "cpu" and stack.dtype == torch.float32
    if not fits or torch.compiler.is_compiling():
        return False
    aspect = columns / rows
    least = next(least for bound, least in LEAST_ROWS if aspect >= bound)
    return rows >= least


def rational_factor(x: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """Return the polar factors of a stack, and which of them failed.

    With `A = X X^T / ||X X^T||_F`, a step `Q = k + w (A + s)^-1` needs no product for `Q A`:

        Q A = k (A + s) - w s (A + s)^-1 + (w - k s)
        A <- Q (Q A)        P <- Q P

    The last step is the cubic `P <- (3 - A) P / 2`, and `D = P X`. Every factor k is left to the end.

    Args:
        x: fp32 (B, m, n), m <= n, with entries of at most 1; left as it is.
        workspace: Buffers to reuse.

    Returns:
        (B, m, n), in a buffer of the workspace, and a mask (B,) of matrices whose decomposition failed.
    """
    batch, rows, _ = x.shape
    shape = (batch, rows, rows)
    gram = workspace.take("gram", shape, x)
    image = workspace.take("factor", shape, x)
    poly = workspace.take("poly", shape, x)
    other = workspace.take("work", shape, x)
    symmetric_product(None, x, x.mT, gram)
    norm = torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True)
    scale = one_if_zero(norm) * ROOM
    gram.div_(scale)
    factor = scale.rsqrt()
    failed = torch.zeros(batch, dtype=torch.bool)
    for number, step in enumerate(STEPS):
        inverse, info = _halley(step, gram, image)
        failed |= info != 0
        symmetric_product(None, inverse, image, gram)
        factor /= step.constant
        if number:
            symmetric_product(None, inverse, poly, other)
            poly, other = other, poly
        else:
            poly.copy_(inverse)
    cubic = gram.mul_(-0.5 * factor)
    cubic.diagonal(dim1=-2, dim2=-1).add_(1.5 * factor[..., 0])
    symmetric_product(None, cubic, poly, other)
    result = workspace.take("y", x.shape, x)
    torch.bmm(other, x, out=result)
    return result, failed


def _halley(step: RationalStep, gram: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return `k Q` and LAPACK's verdict, and write `Q A / k` to `image`; `gram` is lost."""
    k, w, s = step.constant, step.weight, step.shift
    gram.diagonal(dim1=-2, dim2=-1).add_(s)
    lower, info = torch.linalg.cholesky_ex(gram)
    inverse = torch.cholesky_inverse(lower)
    torch.add(gram, inverse, alpha=-w * s / k, out=image)
    image.diagonal(dim1=-2, dim2=-1).add_(w / k - s)
    inverse.mul_(k * w)
    inverse.diagonal(dim1=-2, dim2=-1).add_(k**2)
    return inverse, info
