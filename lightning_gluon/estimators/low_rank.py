"""The momentum carried from step to step at low rank (LiMuon's option 2), by a randomised SVD.

    Y = M Omega,  Q = qr(Y)      Omega (n, r + s) Gaussian, redrawn every step; `p` rounds of Y <- M (M^T Q)
    B = Q^T M,    B = U' S V^T   keep the leading r:  M ~ (Q U') S V^T

Only the factors are kept; the step itself uses the full momentum before it is compressed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gluon.norms.orthogonalize import thin_svd
from lightning_gluon.norms.views import MatrixView

__all__ = ["compress", "expand", "factored_views", "sketch_generator"]


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
) -> tuple[Tensor, Tensor, Tensor]:
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
    rank = min(rank, *matrices.shape[-2:])
    width = min(rank + oversampling, *matrices.shape[-2:])
    sketch = torch.randn(matrices.shape[-1], width, generator=generator, dtype=matrices.dtype, device=matrices.device)
    basis = torch.linalg.qr(matrices @ sketch).Q
    for _ in range(power_iterations):
        basis = torch.linalg.qr(matrices @ torch.linalg.qr(matrices.mT @ basis).Q).Q
    left, values, right = thin_svd(basis.mT @ matrices)
    return (
        (basis @ left[..., :rank]).contiguous(),
        values[..., :rank].contiguous(),
        right[..., :rank, :].mT.contiguous(),
    )


def expand(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """Return `U diag(S) V^T` of every matrix."""
    return (left * values.unsqueeze(-2)) @ right.mT


def sketch_generator(seed: int, step: int, shape: tuple[int, ...], device: torch.device) -> torch.Generator:
    """Return the source of a step's sketch: a function of seed, step and shape, so nothing need be saved."""
    return torch.Generator(device).manual_seed(_seed(seed, step, shape))


def _seed(seed: int, step: int, shape: tuple[int, ...]) -> int:
    """Mix the numbers into one seed, the same in every process and on every rank."""
    mixed = seed
    for number in (step, *shape):
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63  # Knuth's MMIX constants
    return mixed
