"""The momentum carried from step to step at low rank (LiMuon's option 2), by a randomised SVD.

    Y = M Omega,  Q = orth(Y)          Omega (n, r + s) Gaussian, redrawn every step; `p` rounds of Y <- M (M^T Q)
    B = Q^T M,    B B^T = U' S^2 U'^T  keep the leading r:  M ~ (Q U') S V^T,   S V^T = U'^T B

Only the factors are kept; the step itself uses the full momentum before it is compressed.

On many ranks each may hold some rows of M. `Y`, `Q` and `U` are then cut alike, and only sums over rows are sent:
`M^T Q` and `B` of `n (r + s)` entries, Gram matrices of `(r + s)^2`.

It is products and decompositions of `(r + s)^2` matrices, for a whole stack at once. Their entries are squares, so they
are kept in fp64: it holds the squares of all that fp32 can tell apart. On a GPU nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_gluon.norms.numerics import largest_magnitude, one_if_zero
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.ranks.whole import ALL_ROWS, RowSums

__all__ = ["compress", "compress_stacks", "expand", "factored_views", "orthonormal", "sketch_generator"]

Triple: TypeAlias = tuple[Tensor, Tensor, Tensor]  # U, S and V

ROUNDS = 8  # of orthogonal iteration


def factored_views(rank: int, shape: tuple[int, ...], views: tuple[MatrixView, ...]) -> tuple[MatrixView, ...]:
    """Return the matrices that a parameter's momentum is compressed as, or nothing if factors would not be smaller.

    A parameter stored with two dimensions is compressed as it is stored, fused or not, as LiMuon does; experts and
    kernels are compressed matrix by matrix.
    """
    if len(shape) == 2:
        views = (MatrixView.whole(shape),)
    smaller = all(rank * (sum(view.matrix[1:]) + 1) < math.prod(view.matrix[1:]) for view in views)
    return views if smaller else ()


def compress(
    matrices: Tensor, *, rank: int, oversampling: int = 5, power_iterations: int = 1, generator: torch.Generator
) -> Triple:
    """Return the leading factors of every matrix by a randomised SVD.

    Args:
        matrices: `(batch, m, n)` in fp32 or fp64.
        rank: Rank kept, clamped to `min(m, n)`.
        oversampling: Extra columns of the sketch; LiMuon takes at least 2.
        power_iterations: Rounds of subspace iteration; 0 is the paper's form. One brings the error on a spectrum 1 / i
            to within 3 % of the best possible.
        generator: Source of the Gaussian sketch, the same on all ranks.

    Returns:
        `U (batch, m, r)`, `S (batch, r)`, `V (batch, n, r)`.

    References:
        N. Halko, P. Martinsson, J. Tropp, "Finding structure with randomness", arXiv 0909.4061.
        LiMuon, arXiv 2509.14562.

    Example:
        >>> m = torch.outer(torch.arange(4.), torch.ones(3))[None]
        >>> u, s, v = compress(m, rank=1, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(expand(u, s, v), m, atol=1e-5)
        True
    """
    return compress_stacks(
        [matrices], [generator], rank=rank, oversampling=oversampling, power_iterations=power_iterations
    )[0]


def compress_stacks(
    stacks: Sequence[Tensor],
    generators: Sequence[torch.Generator],
    *,
    rank: int,
    oversampling: int,
    power_iterations: int,
    rows: RowSums = ALL_ROWS,
) -> list[Triple]:
    """Return the leading factors of several stacks; their small matrices are decomposed together.

    Args:
        stacks: One batch of equal matrices each.
        generators: The source of the sketch of each.
        rank: As in `compress`.
        oversampling: As in `compress`.
        power_iterations: As in `compress`.
        rows: What sums over rows, if this rank has some of them alone; then it gets those rows of U.

    Returns:
        The factors of every stack.
    """
    bases = []
    for matrices, generator in zip(stacks, generators, strict=True):
        width = min(rank + oversampling, rows.height(matrices), matrices.shape[-1])
        bases.append(_leading_range(matrices, width, power_iterations, generator, rows))
    images = [rows.sum(basis.mT @ matrices) for basis, matrices in zip(bases, stacks, strict=True)]
    turns = _leading_each([_squared(image.mT) for image in images], rank)
    found = []
    for basis, image, wide in zip(bases, images, turns, strict=True):
        turn = wide.to(image.dtype)
        scaled = turn.mT @ image
        wide_values = torch.linalg.vector_norm(scaled, dim=-1, dtype=torch.float64)  # small squares underflow
        values = wide_values.to(scaled.dtype)
        lengths = one_if_zero(values)[..., None]
        right = (scaled / lengths).mT.contiguous()
        found.append((basis @ turn, values, right))
    return found


def _leading_range(
    matrices: Tensor, width: int, power_iterations: int, generator: torch.Generator, rows: RowSums
) -> Tensor:
    """Return orthonormal columns that nearly span the leading left singular vectors."""
    sketch = torch.randn(matrices.shape[-1], width, generator=generator, dtype=matrices.dtype, device=matrices.device)
    basis = matrices @ sketch
    for _ in range(power_iterations):
        there = rows.sum(matrices.mT @ orthonormal(basis, rounds=1, rows=rows))
        basis = matrices @ orthonormal(there, rounds=1)
    return orthonormal(basis, rounds=3, rows=rows)


def orthonormal(matrices: Tensor, rounds: int = 2, rows: RowSums = ALL_ROWS) -> Tensor:
    """Return orthonormal bases of the columns of tall matrices, by Cholesky decompositions of their Gram matrices.

        R^T R = Y^T Y,    Q = Y R^-1,    twice

    The second round takes out what rounding left in the first. Zero columns stay zero.

    Args:
        matrices: `(batch, m, k)` with m >= k.
        rounds: 1 if columns need not be orthogonal to the last digit, 3 if some are the same up to rounding.
        rows: What sums over rows, if this rank has some of them alone.

    Returns:
        The shape and dtype of `matrices`.

    References:
        Y. Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm", ETNA 44 (2015).

    Example:
        >>> q = orthonormal(torch.tensor([[[3.0, 3.0], [4.0, 4.0], [0.0, 1.0]]]))
        >>> (q.mT @ q).round(decimals=5).abs().tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
    """
    basis = matrices.double()
    some = len(basis) and basis.shape[-2]
    top = largest_magnitude(basis, (-2, -1)) if some else basis.new_zeros((len(basis), 1, 1))
    basis = basis / one_if_zero(rows.largest(top))
    for number in range(rounds):
        rough = number < max(1, rounds - 1)
        basis = basis @ _inverse_root(rows.sum(_squared(basis)), rough=rough)
    return basis.to(matrices.dtype)


def _squared(tall: Tensor) -> Tensor:
    """Return `Y^T Y` in fp64."""
    wide = tall.double()
    return wide.mT @ wide


def _inverse_root(gram: Tensor, *, rough: bool = True) -> Tensor:
    """Return `R^-1` of `R^T R = G`, and the identity where there is no such R: of a matrix that is not finite.

    `rough` takes G a little larger, so that nearly dependent columns do not fail.
    """
    width = gram.shape[-1]
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    # Rounding may leave a pivot below zero by this share of its diagonal entry, if columns are nearly dependent.
    limits = torch.finfo(gram.dtype)
    if rough:
        diagonal.mul_(1 + 4 * width * limits.eps)
    diagonal.clamp_min_(limits.tiny)
    lower, info = torch.linalg.cholesky_ex(gram)
    identity = torch.eye(width, dtype=gram.dtype, device=gram.device)
    lower = lower.where((info == 0)[:, None, None], identity)
    return torch.linalg.solve_triangular(lower, identity, upper=False).mT


def _leading_each(grams: list[Tensor], rank: int) -> list[Tensor]:
    """Return the leading eigenvectors of several stacks of symmetric matrices, those of one size together."""
    found = list(grams)
    for width in {gram.shape[-1] for gram in grams}:
        where = [index for index, gram in enumerate(grams) if gram.shape[-1] == width]
        own = [grams[index] for index in where]
        counts = [len(gram) for gram in own]
        leading = _leading(torch.cat(own), min(rank, width))
        parts = leading.split(counts)
        for index, part in zip(where, parts, strict=True):
            found[index] = part
    return found


def _leading(gram: Tensor, rank: int) -> Tensor:
    """Return the leading `rank` eigenvectors of symmetric matrices."""
    if gram.device.type == "cpu":
        finite = gram.isfinite().all(-1).all(-1)[:, None, None]  # torch would raise for the whole stack
        return torch.linalg.eigh(gram.where(finite, 0.0)).eigenvectors[..., -rank:].flip(-1)
    return _iterated(gram, rank)


def _iterated(gram: Tensor, rank: int) -> Tensor:
    """Return nearly leading eigenvectors by orthogonal iteration: torch's decomposition would wait for the device."""
    gram = gram / one_if_zero(largest_magnitude(gram, (-2, -1)))
    # The columns that hold most come first: a start that needs few rounds.
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    order = diagonal.argsort(dim=-1, descending=True)
    columns = order[..., None, :rank].expand(*gram.shape[:-1], -1)
    basis = gram.gather(-1, columns)
    for _ in range(ROUNDS):
        even = basis @ _inverse_root(_squared(basis))
        basis = gram @ even
    return orthonormal(basis, rounds=3)


def expand(left: Tensor, values: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `U diag(S) V^T` of every matrix."""
    return torch.bmm(left * values.unsqueeze(-2), right.mT, out=out)


def sketch_generator(seed: int, step: int, shape: tuple[int, ...], device: torch.device) -> torch.Generator:
    """Return the source of a step's sketch: a function of seed, step and shape, so nothing need be saved."""
    return torch.Generator(device).manual_seed(_seed(seed, step, shape))


def _seed(seed: int, step: int, shape: tuple[int, ...]) -> int:
    """Mix the numbers into one seed, the same in every process and on every rank."""
    mixed = seed
    for number in (step, *shape):
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63  # Knuth's MMIX constants
    return mixed
