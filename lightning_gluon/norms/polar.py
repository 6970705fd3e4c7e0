"""The polar factor by matrix products: plain steps, or two to three on the Gram matrix at a time.

`docs/primers/orthogonalization.md` holds the measurements behind the constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gluon.norms.coefficients import Step
from lightning_gluon.norms.numerics import Workspace, accumulation_dtype, one_if_zero
from lightning_gluon.norms.products import symmetric_product


@dataclass(frozen=True)
class Precision:
    """Allowance of the iteration for a compute dtype.

    Args:
        safety: Factor `s` of a step `p(x / s)` that covers rounding, for Polar Express.
        roundoff: Unit roundoff.
        run: Steps on the Gram matrix between two touches of X.
        joined: Keep constants of the polynomial and the scale of X in the small matrices. That saves two passes over X
            and two over each of them, and rounds the constants: too coarse in bf16.
    """

    safety: float
    roundoff: float
    run: int
    joined: bool = False


PRECISIONS = {
    torch.float16: Precision(1.03, 2.0**-11, 2, joined=True),
    torch.bfloat16: Precision(1.03, 2.0**-8, 2),
    torch.float32: Precision(1.005, 2.0**-24, 3),
    torch.float64: Precision(1.005, 2.0**-53, 3),
}
# Where a run begins, s is larger by this times the unit roundoff and the slope at zero of the run before.
HEADROOM = 1.4
# The Gram form has fewer products above this aspect ratio.
GRAM_ASPECT = 1.5
# Up to this many columns the scale of X, times the constant of a run, is in the range of fp16: 1,700 times 35.
JOINED_COLUMNS = 2**16
# The last run rounds the Gram matrix without this multiple of the identity: most eigenvalues are near 1 there.
GRAM_SHIFT = 0.75


@dataclass(frozen=True)
class Squares:
    """Square matrices (B, m, m) that the iteration works in."""

    gram: Tensor
    factor: Tensor
    poly: Tensor
    work: Tensor

    @classmethod
    def take(cls, workspace: Workspace, x: Tensor) -> Squares:
        """Take them from a workspace for a stack (B, m, n), m <= n."""
        batch, rows, _ = x.shape
        shape = (batch, rows, rows)
        return cls(
            gram=workspace.take("gram", shape, x),
            factor=workspace.take("factor", shape, x),
            poly=workspace.take("poly", shape, x),
            work=workspace.take("work", shape, x),
        )


def iterate(
    x: Tensor,
    coefficients: Sequence[Step],
    workspace: Workspace,
    *,
    tight: bool,
    runs: bool,
    wide: bool = False,
) -> Tensor:
    """Run the iteration on a stack with entries of at most 1.

    Args:
        x: (B, m, n), m <= n; overwritten.
        coefficients: One step after the other.
        workspace: Buffers to reuse.
        tight: Start from the Schatten-8 norm, with safety; else from the Frobenius norm, without.
        runs: Take several steps at a time on the Gram matrix where that has fewer products.
        wide: Write the last product in fp32, where the device does that by itself.

    Returns:
        The polar factors, in `x` or in a buffer of the workspace.
    """
    rows, columns = x.shape[-2:]
    precision = PRECISIONS[x.dtype]
    squares = Squares.take(workspace, x)
    other = workspace.take_like("y", x)
    aspect = columns / rows if runs else 1.0
    lengths = _runs(len(coefficients), precision.run, aspect)
    safety = precision.safety if tight else 1.0
    steps = _with_safety(coefficients, lengths, safety, precision.roundoff if runs else 0.0)
    first = 0
    for number, length in enumerate(lengths):
        own = steps[first : first + length]
        last = length > 1 and 0 < number == len(lengths) - 1
        shift = GRAM_SHIFT if last and not precision.joined else 0.0
        _gram(x, squares.gram, shift)
        if precision.joined:
            if wide and x.is_cuda and number == len(lengths) - 1:
                other = workspace.take_like("units", x, torch.float32)
            poly, scale = _joined(squares, own, safety if tight else None, columns, started=first == 0)
            _touch_by_(x, poly, scale, other)
        else:
            scale = _normalize_(squares, own[0], safety if tight else None) if first == 0 else None
            poly, constant = _compose(squares, own, shift, started=first == 0)
            _touch_(x, poly, constant, scale, other)
        x, other = other, x
        first += length
    return x


def _touch_by_(x: Tensor, poly: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """Write `poly (scale X)` to `out`; `poly` or `x` is lost."""
    if scale is not None:
        (poly if x.shape[-1] <= JOINED_COLUMNS else x).mul_(scale)
    if out.dtype == x.dtype:
        torch.bmm(poly, x, out=out)
    else:
        torch.bmm(poly, x, out_dtype=out.dtype, out=out)


def _touch_(x: Tensor, poly: Tensor, constant: float, scale: Tensor | None, out: Tensor) -> None:
    """Write `(constant + poly) (scale X)` to `out`."""
    if scale is not None:
        x.mul_(scale)
    torch.baddbmm(x, poly, x, beta=constant, out=out)


def _runs(steps: int, longest: int, aspect: float) -> list[int]:
    """Split the steps into runs that touch X once, a shorter one last: after it singular values may be 2, not 1."""
    if aspect <= GRAM_ASPECT:
        return [1] * steps
    whole, rest = divmod(steps, longest)
    lengths = [longest] * whole
    if rest:
        lengths.append(rest)
    return lengths


def _with_safety(steps: Sequence[Step], lengths: Sequence[int], safety: float, roundoff: float) -> list[Step]:
    """Return steps `p(x / s)`; the last one, a fixed point, stays as it is."""
    factors = [safety] * len(steps)
    start = 0
    for length in lengths[:-1]:
        slopes = [a for a, _, _ in steps[start : start + length]]
        start += length
        factors[start] += HEADROOM * roundoff * math.prod(slopes)
    factors[-1] = 1.0
    return [_stretched(step, factor) for step, factor in zip(steps, factors, strict=True)]


def _stretched(step: Step, factor: float) -> Step:
    """Return the coefficients of `p(x / factor)`."""
    a, b, c = step
    return a / factor, b / factor**3, c / factor**5


def _gram(x: Tensor, gram: Tensor, shift: float) -> None:
    """Write `X X^T - shift` to `gram`."""
    if not shift:
        symmetric_product(None, x, x.mT, gram)
        return
    rows = x.shape[-2]
    identity = torch.eye(rows, dtype=x.dtype, device=x.device)
    symmetric_product(identity.expand_as(gram), x, x.mT, gram, beta=-shift)


@dataclass
class Remainder:
    """Factors that the small matrices leave out.

    Args:
        gram: The Gram matrix is `gram` times this.
        poly: The product of factors so far is `poly` times this.
        scale: Factor (B, 1, 1) of X that its first product has to take, up to `root`; `None` if there is none.
        root: A number that X has to take as well.
    """

    gram: float = 1.0
    poly: float = 1.0
    scale: Tensor | None = None
    root: float = 1.0


def _joined(
    squares: Squares,
    steps: Sequence[Step],
    safety: float | None,
    columns: int,
    *,
    started: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return `Q_r ... Q_1` for steps `Q = a + b A + c A^2`, `A <- Q A Q`, with all constants on the diagonals.

    Beside it stands the factor of X, `None` for 1. What rounds on a diagonal of Q rounds in `A` and in the product
    alike. The last of several steps needs no Q: with
    `S = A + b / 2c` its product is `(a - b^2 / 4c) P + S (c S P)`. `started`: X was not scaled yet.
    """
    gram, poly, work = squares.gram, squares.poly, squares.work
    first_step, *others = steps
    rest = _first_factor(squares, first_step, safety, columns, started=started, alone=not others)
    factor, unit = poly, rest.poly
    for number, (a, b, c) in enumerate(others):
        symmetric_product(None, factor, gram, work, alpha=unit * rest.gram)
        symmetric_product(None, work, factor, gram, alpha=unit)
        rest.gram = 1.0
        if number == len(others) - 1:
            _add_constant_(gram, b / (2 * c))
            symmetric_product(None, gram, poly, work, alpha=c * rest.poly)
            symmetric_product(
                poly, gram, work, poly, beta=(a - b**2 / (4 * c)) * rest.poly * rest.root, alpha=rest.root
            )
            rest.root = 1.0
        else:
            factor, unit = squares.factor, 1.0
            symmetric_product(gram, gram, gram, factor, beta=b, alpha=c)
            _add_constant_(factor, a)
            symmetric_product(None, factor, poly, work, alpha=rest.poly)
            poly, work = work, poly
        rest.poly = 1.0
    if rest.scale is not None and rest.poly * rest.root != 1:
        rest.scale.mul_(rest.poly * rest.root)
    return poly, rest.scale


def _first_factor(
    squares: Squares,
    step: Step,
    safety: float | None,
    columns: int,
    *,
    started: bool,
    alone: bool,
) -> Remainder:
    """Write the first Q of a run to `poly`, and scale the Gram matrix before if X was not; `alone`: no step follows."""
    gram, poly = squares.gram, squares.poly
    a, b, c = step
    if started:
        rest = _normalize_joined_(squares, step, safety, columns)
        _add_constant_(poly, a / rest.poly)
        return rest
    if alone:  # the Gram matrix is not needed any more: c (A + b / 2c)^2 is one product without a base
        _add_constant_(gram, b / (2 * c))
        symmetric_product(None, gram, gram, poly, alpha=c)
        _add_constant_(poly, a - b**2 / (4 * c))
        return Remainder()
    symmetric_product(gram, gram, gram, poly, beta=b, alpha=c)
    _add_constant_(poly, a)
    return Remainder()


def _normalize_joined_(
    squares: Squares,
    step: Step,
    safety: float | None,
    columns: int,
) -> Remainder:
    """Scale `gram = X X^T` so that `||X||_2 <= 1`, and write `b A + c A^2` to `poly`, both up to numbers."""
    gram, poly = squares.gram, squares.poly
    wide = accumulation_dtype(gram.dtype)
    _, b, c = step
    # Half of what a matrix has that is not zero: one entry of 1 / sqrt(n), and A^2 for equal eigenvalues.
    least = 0.5 / columns
    norm = _diagonal_sum(gram, wide) if safety is None else _frobenius(gram, wide)
    norm.clamp_min_(least)
    gram.div_(norm)  # of norm 1, A^2 and c / bound^2 <= c n^(1/2) are in its range
    symmetric_product(None, gram, gram, poly)
    if safety is None:
        torch.add(gram, poly, alpha=c / b, out=poly)
        return Remainder(poly=b, scale=norm.rsqrt_())
    # Schatten-8: ||A||_2 <= ||A^2||_F^(1/2). The numbers s^2 and b stay out of the matrices.
    square = _frobenius(poly, wide).clamp_min_(0.5 / math.sqrt(gram.shape[-1]))
    bound = square.sqrt()
    gram.div_(bound)
    room = safety**2
    torch.addcdiv(gram, poly, square, value=c / (b * room), out=poly)
    scale = (norm * bound).rsqrt_()
    return Remainder(
        gram=1 / room,
        poly=b / room,
        scale=scale,
        root=room**-0.5,
    )


def _add_constant_(matrices: Tensor, constant: float) -> None:
    matrices.diagonal(dim1=-2, dim2=-1).add_(constant)


def _compose(squares: Squares, steps: Sequence[Step], shift: float, *, started: bool) -> tuple[Tensor, float]:
    """Return a matrix P and a number k with `Q_r ... Q_1 = k + P`, for steps `Q = a + b A + c A^2`, `A <- Q A Q`.

    With `A = z + E` (E: the Gram matrix, z: `shift`), `Q = s + F` and `Q A = s z + S`,

        F = (b + 2 c z) E + c E^2        s = a + b z + c z^2
        P <- s P + k F + F P             k <- s k
        S = s E + z F + F E
        E <- s S + s z F + S F           z <- s^2 z

    The constants stay out of the matrices: bf16 would round them, on the diagonal, by more than their neighbours.
    `started`: `poly` holds the first F.
    """
    gram, poly, work = squares.gram, squares.poly, squares.work
    constant = 1.0
    for number, (a, b, c) in enumerate(steps):
        scale = a + b * shift + c * shift**2
        factor = squares.factor if number else poly
        if number or not started:
            slope = b + 2 * c * shift
            symmetric_product(gram, gram, gram, factor, beta=slope, alpha=c)
        if number:
            torch.add(factor, poly, alpha=scale / constant, out=work)
            symmetric_product(work, factor, poly, work, beta=constant)
            poly, work = work, poly
        constant *= scale
        if number < len(steps) - 1:
            _advance_gram(gram, work, factor, shift, scale)
            shift *= scale**2
    return poly, constant


def _advance_gram(gram: Tensor, work: Tensor, factor: Tensor, shift: float, scale: float) -> None:
    """Advance `A <- Q A Q`, in terms of E and F; without a shift two terms vanish."""
    if not shift:
        symmetric_product(gram, factor, gram, work, beta=scale)
        symmetric_product(work, work, factor, gram, beta=scale)
        return
    torch.add(gram, factor, alpha=shift / scale, out=work)
    symmetric_product(work, factor, gram, work, beta=scale)
    torch.add(work, factor, alpha=shift, out=gram)
    symmetric_product(gram, work, factor, gram, beta=scale)


def _normalize_(squares: Squares, step: Step, safety: float | None) -> Tensor:
    """Scale `gram = X X^T` so that `||X||_2 <= 1`, write `b gram + c gram^2` to `poly`, return X's factor."""
    gram, poly = squares.gram, squares.poly
    kind = gram.dtype
    wide = accumulation_dtype(kind)
    _, b, c = step
    if safety is None:
        trace = one_if_zero(_diagonal_sum(gram, wide))
        gram.mul_(trace.reciprocal().to(kind))
        symmetric_product(gram, gram, gram, poly, beta=b, alpha=c)
        return trace.rsqrt().to(kind)
    symmetric_product(None, gram, gram, poly)
    # Schatten-8: ||A||_2 <= ||A^2||_F^(1/2).
    bound = one_if_zero(_frobenius(poly, wide)).sqrt() * safety**2
    gram.mul_(bound.reciprocal().to(kind))
    poly.mul_((c / bound.square()).to(kind))
    poly.add_(gram, alpha=b)
    return bound.rsqrt().to(kind)


def _diagonal_sum(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=dtype)[:, None, None]


def _frobenius(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=dtype)
