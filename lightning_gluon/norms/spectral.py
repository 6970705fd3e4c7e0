"""The spectral norm and its LMO `s U V^T`, of matrices and of convolution kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.base import MATRIX, Norm, largest, to_wide
from lightning_gluon.norms.coefficients import ORTHOGONALIZERS, schedule
from lightning_gluon.norms.numerics import Workspace, check_real, one_if_zero
from lightning_gluon.norms.orthogonalize import orthogonalize, orthogonalize_

SCALINGS = ("rms", "muon", "moonlight", "none")


@dataclass(frozen=True)
class Spectral(Norm):
    """Largest singular value, in the units of a layer: `||X|| = ||X||_2 / s`, `D = s U V^T`.

        s(m, n) = sqrt(m / n)            rms: the RMS -> RMS operator norm, so ||D x||_rms <= ||x||_rms
                  sqrt(max(1, m / n))    muon
                  0.2 sqrt(max(m, n))    moonlight: the update RMS of AdamW
                  1                      none

    `norm` and `dual_norm` are exact (singular values in fp32 or fp64); `lmo` is as accurate as its orthogonaliser.

    Shapes: (..., m, n) = (..., out, in).

    Args:
        scaling: `rms`, `muon`, `moonlight` or `none`.
        orthogonalizer: A method of `lightning_gluon.orthogonalize`.
        steps: Its number of steps; default: that of the method.
        dtype: Its compute dtype; default: what the hardware does fast.

    Raises:
        ValueError: If `scaling`, `orthogonalizer` or `steps` is invalid.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.
        K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
        J. Liu et al., "Muon is Scalable for LLM Training" (Moonlight), arXiv 2502.16982.

    Example:
        >>> norm = Spectral(orthogonalizer="svd")
        >>> g = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
        >>> norm.norm(g).item(), norm.dual_norm(g).item(), (g * norm.lmo(g)).sum().item()
        (4.0, 7.0, 7.0)
    """

    turns: ClassVar[bool] = True
    scaling: str = "rms"
    orthogonalizer: str = "polar_express"
    steps: int | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if self.scaling not in SCALINGS:
            raise ValueError(
                f"Expected `scaling` to be one of {', '.join(SCALINGS)}, but got {self.scaling!r}. Check the spelling."
            )
        if self.orthogonalizer not in ORTHOGONALIZERS:
            raise ValueError(
                f"Expected `orthogonalizer` to be one of {', '.join(ORTHOGONALIZERS)}, but got "
                f"{self.orthogonalizer!r}. Check the spelling."
            )
        if self.orthogonalizer != "svd":
            schedule(self.orthogonalizer, self.steps)

    def scale(self, rows: int, columns: int, kernel: int = 1) -> float:
        """Return the factor s of `D = s U V^T`.

        Args:
            rows: Output features m.
            columns: Input features n; for a convolution the flattened fan-in `Cin * kernel`.
            kernel: Taps of the convolution kernel; `rms` becomes `(1 / kernel) sqrt(Cout / Cin)`.

        Returns:
            The factor, a Python float.
        """
        if self.scaling == "rms":
            return math.sqrt(rows * kernel / columns) / kernel
        if self.scaling == "muon":
            return math.sqrt(max(1.0, rows / columns))
        if self.scaling == "moonlight":
            return 0.2 * math.sqrt(max(rows, columns))
        return 1.0

    def lmo_(self, stack: Tensor, workspace: Workspace) -> Tensor:
        """Return `U V^T` of every matrix, in the compute dtype."""
        return orthogonalize_(
            stack, method=self.orthogonalizer, steps=self.steps, dtype=self.dtype, workspace=workspace
        )

    def norm(self, x: Tensor) -> Tensor:
        """Return `||x||_2 / s`, exactly."""
        matrices, scale = self._matrices(x)
        return _singular_values(matrices).amax(-1) / scale

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return `s` times the sum of the singular values, exactly."""
        matrices, scale = self._matrices(g)
        return _singular_values(matrices).sum(-1) * scale

    def lmo(self, g: Tensor) -> Tensor:
        """Return `s U V^T`."""
        matrices, scale = self._matrices(g)
        return orthogonalize(matrices, self.orthogonalizer, self.steps, self.dtype).mul_(scale).view(g.shape)

    def _matrices(self, tensor: Tensor) -> tuple[Tensor, float]:
        """Return the matrices (..., m, n) and the scale."""
        matrices = self._read(tensor)
        return matrices, self.scale(matrices.shape[-2], matrices.shape[-1])


def _singular_values(matrices: Tensor) -> Tensor:
    """Return the singular values, at least one per matrix, in fp32 or wider."""
    if matrices.numel() == 0:
        return to_wide(matrices).new_zeros((*matrices.shape[:-2], 1))
    wide = to_wide(matrices)
    top = largest(wide, MATRIX)
    # Of entries that are not finite the largest is not either, nor is then the product; the decomposition would raise.
    return torch.linalg.svdvals((wide / one_if_zero(top)).nan_to_num_()) * top.squeeze(-1)


@dataclass(frozen=True)
class SpectralConv(Spectral):
    """`Spectral` of convolution kernels `(Cout, Cin, *k)`, read as matrices `(Cout, Cin * k)`.

        ||X|| = k sqrt(Cin / Cout) ||reshape(X)||_2,   D = (1 / k) sqrt(Cout / Cin) U V^T      k: taps, e.g. 9 for 3 x 3

    for scaling `rms`; the other scalings are those of the flattened matrix.

    Shapes: (..., Cout, Cin, *k) with `kernel_dims` kernel dimensions.

    Args:
        scaling: As in `Spectral`.
        orthogonalizer: As in `Spectral`.
        steps: As in `Spectral`.
        dtype: As in `Spectral`.
        kernel_dims: Number of kernel dimensions: 1, 2 or 3.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> SpectralConv().lmo(torch.randn(8, 4, 3, 3)).shape
        torch.Size([8, 4, 3, 3])
    """

    kernel_dims: int = 2

    def _matrices(self, tensor: Tensor) -> tuple[Tensor, float]:
        check_real(tensor)
        if tensor.ndim < 2 + self.kernel_dims:
            raise ValueError(
                f"Expected `SpectralConv` input to have shape (..., out, in, *kernel) with kernel_dims="
                f"{self.kernel_dims}, but got shape {tuple(tensor.shape)}. Set `kernel_dims` or use `Spectral`."
            )
        kernel = math.prod(tensor.shape[tensor.ndim - self.kernel_dims :])
        matrices = tensor.flatten(tensor.ndim - self.kernel_dims - 1)
        return matrices, self.scale(matrices.shape[-2], matrices.shape[-1], kernel)
