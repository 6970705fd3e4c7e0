"""The spectral norm and its LMO `s U V^T`, of matrices and of convolution kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.base import MATRIX, Norm, largest, to_wide
from lightning_gluon.norms.coefficients import ITERATIONS, ORTHOGONALIZERS, step_coefficients
from lightning_gluon.norms.entries import Max
from lightning_gluon.norms.needs import Context
from lightning_gluon.norms.numerics import check_real, one_if_zero
from lightning_gluon.norms.orthogonalize import compute_dtype, orthogonalize, orthogonalize_, staging_dtype

Scaling = Callable[[int, int, int], float]  # (rows, columns, kernel) -> s

# Columns are `in * kernel`, the flattened fan-in of a convolution.
SCALINGS: dict[str, Scaling] = {
    "rms": lambda rows, columns, kernel: math.sqrt(rows * kernel / columns) / kernel,
    "muon": lambda rows, columns, kernel: math.sqrt(max(1.0, rows / columns)),
    "moonlight": lambda rows, columns, kernel: 0.2 * math.sqrt(max(rows, columns)),
    "none": lambda rows, columns, kernel: 1.0,
}


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

    options: ClassVar[Mapping[str, str]] = {
        "scaling": "scaling",
        "orthogonalizer": "orthogonalizer",
        "orthogonalizer_steps": "steps",
        "orthogonalizer_dtype": "dtype",
    }
    turns: ClassVar[bool] = True
    overwrites: ClassVar[bool] = True

    scaling: str = "rms"
    orthogonalizer: str = "polar_express"
    steps: int | None = None
    dtype: torch.dtype | str | None = None

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
        if self.orthogonalizer in ITERATIONS:
            step_coefficients(self.orthogonalizer, self.steps)
        elif self._dtype is not None and self._dtype.itemsize < torch.float32.itemsize:
            raise ValueError(
                f"Expected the dtype of {self.orthogonalizer!r} to be float32 or float64, but got {self.dtype}. A "
                "decomposition has no 16-bit form: leave `orthogonalizer_dtype` out."
            )

    def scale(self, rows: int, columns: int, kernel: int = 1) -> float:
        """Return the factor s of `D = s U V^T`.

        Args:
            rows: Output features m.
            columns: Input features n; for a convolution the flattened fan-in `Cin * kernel`.
            kernel: Taps of the convolution kernel; `rms` becomes `(1 / kernel) sqrt(Cout / Cin)`.

        Returns:
            The factor, a Python float.
        """
        return SCALINGS[self.scaling](rows, columns, kernel)

    def cost(self, rows: int, columns: int) -> float:
        """Return the products of six steps: on the smaller Gram matrix of a long matrix, else on the matrix itself.

        Args:
            rows: Output features m.
            columns: Input features n.
        """
        side = min(rows, columns)
        aspect = max(rows, columns) / max(side, 1)
        products = 6 * aspect + 15 if aspect > 1.5 else 12 * aspect + 6
        return 2 * side**3 * products

    def on(self, like: Tensor, shape: Sequence[int]) -> Spectral:
        """Return the norm with its compute dtype chosen."""
        chosen = self._dtype
        if chosen is None:
            chosen = compute_dtype(like.device, method=self.orthogonalizer, dtype=like.dtype, shape=shape)
        return replace(self, dtype=chosen)

    def staging_dtype(self, like: Tensor) -> torch.dtype:
        """Return fp32, or fp64 for computing in fp64: the scale is divided out before rounding."""
        return staging_dtype(self._dtype or like.dtype)

    @property
    def rounds_to(self) -> torch.dtype | None:  # type: ignore[override]
        """The dtype that a stack is rounded to first, if narrow; a norm with an LMO of its own may do other things."""
        narrow = self._dtype is not None and self._dtype.itemsize < torch.float32.itemsize
        return self._dtype if narrow and type(self).lmo_ is Spectral.lmo_ else None

    @property
    def reads_only(self) -> bool:  # type: ignore[override]
        """True if the stack is rounded first."""
        return self.rounds_to is not None

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        """Return `U V^T` of every matrix, in the compute dtype or, on a GPU, in that of the weights."""
        return orthogonalize_(
            stack,
            method=self.orthogonalizer,
            steps=self.steps,
            dtype=self._dtype,
            workspace=context.workspace,
            out_dtype=context.dtype,
            scaled=context.scaled,
        )

    def norm(self, x: Tensor) -> Tensor:
        """Return `||x||_2 / s`, exactly."""
        matrices, scale = self._matrices(x)
        return singular_values(matrices).amax(-1) / scale

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return `s` times the sum of the singular values, exactly."""
        matrices, scale = self._matrices(g)
        return singular_values(matrices).sum(-1) * scale

    def lmo(self, g: Tensor) -> Tensor:
        """Return `s U V^T`."""
        matrices, scale = self._matrices(g)
        return orthogonalize(matrices, self.orthogonalizer, self.steps, self._dtype).mul_(scale).view(g.shape)

    @property
    def _dtype(self) -> torch.dtype | None:
        return getattr(torch, self.dtype) if isinstance(self.dtype, str) else self.dtype

    def _matrices(self, tensor: Tensor) -> tuple[Tensor, float]:
        """Return the matrices (..., m, n) and the scale."""
        matrices = self._read(tensor)
        return matrices, self.scale(matrices.shape[-2], matrices.shape[-1])


def singular_values(matrices: Tensor) -> Tensor:
    """Return the singular values, at least one per matrix, in fp32 or wider."""
    if matrices.numel() == 0:
        return to_wide(matrices).new_zeros((*matrices.shape[:-2], 1))
    wide = to_wide(matrices)
    top = largest(wide, MATRIX)
    # Of entries that are not finite the largest is not either, nor is then the product; the decomposition would raise.
    return torch.linalg.svdvals((wide / one_if_zero(top)).nan_to_num_()) * top.squeeze(-1)


@dataclass(frozen=True)
class Alternating(Spectral):
    """The spectral norm every `every`-th step, signs between (LionMuon).

        D = s U V^T                                  at steps 0, every, 2 every, ...
        D = sign_radius s sqrt(1 / max(m, n)) sign(G)    at all others: sign_radius times the RMS of `s U V^T`

    Lengths and dual norms are the spectral ones.

    Shapes: (..., m, n) = (..., out, in).

    Args:
        scaling: As in `Spectral`.
        orthogonalizer: As in `Spectral`.
        steps: As in `Spectral`.
        dtype: As in `Spectral`.
        every: Period of the spectral steps; 1 is `Spectral`.
        sign_radius: Length of the sign steps, relative to the spectral ones, in RMS of the entries.

    Raises:
        ValueError: As in `Spectral`.

    References:
        LionMuon, arXiv 2605.19811.

    Example:
        >>> norm = Alternating(every=2)
        >>> type(norm.at(0)).__name__, type(norm.at(1)).__name__
        ('Alternating', 'Signs')
    """

    options: ClassVar[Mapping[str, str]] = {**Spectral.options, "every": "every", "sign_radius": "sign_radius"}

    every: int = 1
    sign_radius: float = 0.25

    def at(self, step: int) -> Norm:
        """Return this norm at the spectral steps, and `Signs` between."""
        return Signs(self, self.sign_radius) if step % self.every else self


@dataclass(frozen=True)
class Signs(Max):
    """The sign steps of `Alternating`: signs as large in RMS as `sign_radius` times the entries of `s U V^T`.

    Args:
        spectral: The spectral norm between whose steps it stands.
        sign_radius: RMS of the signs, relative to that of the spectral steps.
    """

    turns: ClassVar[bool] = True
    overwrites: ClassVar[bool] = True
    separable: ClassVar[tuple[int, ...]] = MATRIX
    spectral: Spectral = field(default_factory=Spectral)
    sign_radius: float = 0.25

    def scale(self, rows: int, columns: int, kernel: int = 1) -> float:
        """Return `sign_radius s / sqrt(max(m, n))`."""
        rms = self.sign_radius * math.sqrt(min(rows, columns) / (rows * columns))
        return rms * self.spectral.scale(rows, columns, kernel)

    def on(self, like: Tensor, shape: Sequence[int]) -> Norm:
        """Return it for the alternating norm with its choices made."""
        return replace(self, spectral=self.spectral.on(like, shape))

    def staging_dtype(self, like: Tensor) -> torch.dtype:
        """Return that of the spectral steps, whose buffer is used."""
        return self.spectral.staging_dtype(like)

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        """Return the signs."""
        return stack.sign_()


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
