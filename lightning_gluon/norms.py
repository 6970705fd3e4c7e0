"""What is a unit ball: every norm with its dual norm and its linear minimisation oracle (LMO).

For a norm `||.||` on a layer's weight and its dual `||G||_* = max_{||D|| <= 1} <G, D>`, the LMO returns the `D` that
attains the maximum. All norms are batched over leading dimensions, give zero for zero, and their `lmo` does not depend
on the scale of the input: there is no absolute epsilon anywhere.

| norm | `||X||`, X (m, n) | `D` | `||G||_*` |
|---|---|---|---|
| `Spectral` | `||X||_2 / s` | `s U V^T` | `s sum_i sigma_i(G)` |
| `SpectralConv` | the same on `(Cout, Cin k)` | `s U V^T` | the same |
| `Sign` | `n max |X_ij|` | `sign(G) / n` | `sum |G_ij| / n` |
| `RowNorm` | `max_i ||X_i|| / sqrt(n)` | `sqrt(n) G_i / ||G_i||` | `sqrt(n) sum_i ||G_i||` |
| `ColumnNorm` | `max_j ||X_j|| / sqrt(m)` | `sqrt(m) G_j / ||G_j||` | `sqrt(m) sum_j ||G_j||` |
| `RMSVector` | `||x|| / sqrt(d)`, x (d) | `sqrt(d) g / ||g||` | `sqrt(d) ||g||` |
| `Euclidean` | `||X||_F` | `G / ||G||_F` | `||G||_F` |
| `Max` | `max |X_ij|` | `sign(G)` | `sum |G_ij|` |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_gluon.orthogonalize import (
    METHODS,
    Workspace,
    check_real,
    largest_magnitude,
    orthogonalize,
    orthogonalize_,
    schedule,
)

__all__ = [
    "NORMS", "SCALINGS", "ColumnNorm", "Euclidean", "Max", "Norm", "RMSVector", "RowNorm", "Sign", "Spectral",
    "SpectralConv", "make_norm",
]  # fmt: skip

SCALINGS = ("rms", "muon", "moonlight", "none")
_MATRIX = (-2, -1)


class Norm(ABC):
    """A norm, its dual and its LMO; `rank` trailing dimensions hold one point, leading ones are a batch.

    A 1-D input of a matrix norm is read as one row.
    """

    rank: ClassVar[int] = 2
    matrices: ClassVar[bool] = True  # reads a parameter as the matrices it holds, else as one flat vector
    turns: ClassVar[bool] = False  # does not care which side is longer: tall matrices may be turned
    guarded: ClassVar[bool] = False  # of vectors: a gradient that is rounding noise is kept from becoming a step

    def scale(self, rows: int, columns: int, kernel: int = 1) -> float:
        """Return the factor that makes what `lmo_` returns a point of the unit sphere."""
        return 1.0

    def lmo_(self, stack: Tensor, workspace: Workspace) -> Tensor:
        """Return the directions of a stack `(count, m, n)`, up to their `scale`; the stack may be overwritten."""
        return self.lmo(stack)

    @abstractmethod
    def norm(self, x: Tensor) -> Tensor:
        """Return `||x||` of every point: the batch shape, in fp32 or wider."""

    @abstractmethod
    def dual_norm(self, g: Tensor) -> Tensor:
        """Return `max_{||D|| <= 1} <g, D>` of every point: the batch shape, in fp32 or wider."""

    @abstractmethod
    def lmo(self, g: Tensor) -> Tensor:
        """Return the maximiser `D` for every point: the shape, dtype and device of `g`."""

    def _read(self, tensor: Tensor) -> Tensor:
        """Check the input and give a vector its row dimension."""
        check_real(tensor)
        if tensor.ndim == 1 and self.rank == 2:
            return tensor.unsqueeze(0)
        if tensor.ndim < self.rank:
            raise ValueError(
                f"Expected `{type(self).__name__}` input to have at least {self.rank} dimension(s), but got shape "
                f"{tuple(tensor.shape)}. Reshape it to (..., {'out, in' if self.rank == 2 else 'd'})."
            )
        return tensor


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32 or wider."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _largest(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the largest magnitude over `dims` (kept), in fp32 or wider."""
    return _wide(largest_magnitude(tensor, dims))


def _one_if_zero(tensor: Tensor) -> Tensor:
    """Replace zeros by ones, to divide by."""
    return torch.where(tensor > 0, tensor, torch.ones_like(tensor))


def _length(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the 2-norm over `dims` (kept), safe against under- and overflow of the squares."""
    top = _largest(tensor, dims)
    return top * torch.linalg.vector_norm(_wide(tensor) / _one_if_zero(top), dim=dims, keepdim=True)


def _direction(tensor: Tensor, dims: tuple[int, ...], length: float) -> Tensor:
    """Scale to the given 2-norm over `dims`; zero stays zero."""
    unit = _wide(tensor) / _one_if_zero(_largest(tensor, dims))
    size = torch.linalg.vector_norm(unit, dim=dims, keepdim=True)
    return unit.mul_(length / _one_if_zero(size)).to(tensor.dtype)


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
        if self.orthogonalizer not in METHODS:
            raise ValueError(
                f"Expected `orthogonalizer` to be one of {', '.join(METHODS)}, but got {self.orthogonalizer!r}. "
                "Check the spelling."
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
        return _wide(matrices).new_zeros((*matrices.shape[:-2], 1))
    wide = _wide(matrices)
    top = _largest(wide, _MATRIX)
    # Of entries that are not finite the largest is not either, nor is then the product; the decomposition would raise.
    return torch.linalg.svdvals((wide / _one_if_zero(top)).nan_to_num_()) * top.squeeze(-1)


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


@dataclass(frozen=True)
class Max(Norm):
    """Largest entry: `||X|| = max |X_ij|`, `D = sign(G)`, dual norm `sum |G_ij|` (signSGD).

    Shapes: (..., m, n); a 1-D input is one vector.

    Example:
        >>> Max().lmo(torch.tensor([0.5, -2.0, 0.0]))
        tensor([ 1., -1.,  0.])
    """

    matrices: ClassVar[bool] = False
    guarded: ClassVar[bool] = True

    def norm(self, x: Tensor) -> Tensor:
        """Return the largest magnitude."""
        x = self._read(x)
        return _largest(x, _MATRIX).squeeze(_MATRIX) * self._width(x)

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return the (scaled) sum of magnitudes."""
        g = self._read(g)
        return torch.linalg.vector_norm(_wide(g), ord=1, dim=_MATRIX) / self._width(g)

    def lmo(self, g: Tensor) -> Tensor:
        """Return the (scaled) signs."""
        self._read(g)
        return torch.sign(g)

    def _width(self, tensor: Tensor) -> int:
        return 1


@dataclass(frozen=True)
class Sign(Max):
    """The 1 -> inf operator norm in the units of a table of width n: `||X|| = n max |X_ij|`, `D = sign(G) / n`.

    Shapes: (..., m, n); n is the last dimension: the model width of a (vocabulary, n) embedding or head.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> Sign().lmo(torch.tensor([[3.0, -1.0], [0.0, 2.0]]))
        tensor([[ 0.5000, -0.5000],
                [ 0.0000,  0.5000]])
    """

    matrices: ClassVar[bool] = True
    guarded: ClassVar[bool] = False

    def lmo(self, g: Tensor) -> Tensor:
        """Return `sign(g) / n`."""
        return torch.sign(self._read(g)).div_(g.shape[-1]).view(g.shape)

    def _width(self, tensor: Tensor) -> int:
        return tensor.shape[-1]


@dataclass(frozen=True)
class RowNorm(Norm):
    """Largest row RMS: `||X|| = max_i ||X_i|| / sqrt(n)`, `D_i = sqrt(n) G_i / ||G_i||`, dual `sqrt(n) sum_i ||G_i||`.

    The 1 -> RMS norm of a lookup table (vocabulary, n). A row that is zero stays zero.

    Shapes: (..., m, n).

    Example:
        >>> RowNorm().dual_norm(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])).item()
        12.0
    """

    _dim: ClassVar[int] = -1

    def norm(self, x: Tensor) -> Tensor:
        """Return the largest RMS."""
        x = self._read(x)
        return _length(x, (self._dim,)).amax(_MATRIX) / math.sqrt(x.shape[self._dim])

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return the scaled sum of lengths."""
        g = self._read(g)
        return _length(g, (self._dim,)).sum(_MATRIX) * math.sqrt(g.shape[self._dim])

    def lmo(self, g: Tensor) -> Tensor:
        """Return every row (column) scaled to RMS 1."""
        rows = self._read(g)
        return _direction(rows, (self._dim,), math.sqrt(rows.shape[self._dim])).view(g.shape)


@dataclass(frozen=True)
class ColumnNorm(RowNorm):
    """Largest column RMS: `RowNorm` of the transposed matrix, for tables stored (n, vocabulary).

    Shapes: (..., m, n).

    Example:
        >>> ColumnNorm().norm(torch.tensor([[3.0, 0.0], [3.0, 1.0]])).item()
        3.0
    """

    _dim: ClassVar[int] = -2


@dataclass(frozen=True)
class RMSVector(Norm):
    """Root mean square of a vector: `||x|| = ||x||_2 / sqrt(d)`, `D = sqrt(d) g / ||g||_2`, dual `sqrt(d) ||g||_2`.

    Shapes: (..., d): every vector along the last dimension is a point of its own.

    Example:
        >>> RMSVector().lmo(torch.tensor([3.0, 0.0, 4.0, 0.0]))
        tensor([1.2000, 0.0000, 1.6000, 0.0000])
    """

    rank: ClassVar[int] = 1
    matrices: ClassVar[bool] = False
    guarded: ClassVar[bool] = True

    def norm(self, x: Tensor) -> Tensor:
        """Return the root mean square."""
        return _length(self._read(x), (-1,)).squeeze(-1) / math.sqrt(x.shape[-1])

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return `sqrt(d) ||g||`."""
        return _length(self._read(g), (-1,)).squeeze(-1) * math.sqrt(g.shape[-1])

    def lmo(self, g: Tensor) -> Tensor:
        """Return `g` scaled to RMS 1."""
        return _direction(self._read(g), (-1,), math.sqrt(g.shape[-1]))


@dataclass(frozen=True)
class Euclidean(Norm):
    """Frobenius norm, its own dual: `D = G / ||G||_F` (normalised gradient descent).

    Shapes: (..., m, n); a 1-D input is one vector.

    Example:
        >>> Euclidean().lmo(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """

    matrices: ClassVar[bool] = False
    guarded: ClassVar[bool] = True

    def norm(self, x: Tensor) -> Tensor:
        """Return the Frobenius norm."""
        return _length(self._read(x), _MATRIX).squeeze(_MATRIX)

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return the Frobenius norm."""
        return self.norm(g)

    def lmo(self, g: Tensor) -> Tensor:
        """Return `g / ||g||_F`."""
        return _direction(self._read(g), _MATRIX, 1.0).view(g.shape)


@dataclass(frozen=True)
class Identity(Euclidean):
    """No oracle: the direction is the momentum itself (SGD, AdamW). Lengths are measured in the Frobenius norm."""

    guarded: ClassVar[bool] = False

    def lmo(self, g: Tensor) -> Tensor:
        """Return `g`."""
        return g


NORMS: dict[str, type[Norm]] = {
    "spectral": Spectral,
    "spectral_conv": SpectralConv,
    "sign": Sign,
    "row": RowNorm,
    "column": ColumnNorm,
    "rms": RMSVector,
    "euclidean": Euclidean,
    "max": Max,
    "identity": Identity,
}


def make_norm(name: str, **options: object) -> Norm:
    """Return the norm of that name.

    Args:
        name: One of `NORMS`.
        **options: Its options, e.g. `scaling="muon"` for `spectral`.

    Returns:
        The norm.

    Raises:
        ValueError: If the name is unknown or an option is invalid.
        TypeError: If the norm has no such option.

    Example:
        >>> make_norm("spectral", scaling="muon").scale(8, 2)
        2.0
    """
    if name not in NORMS:
        raise ValueError(f"Expected `norm` to be one of {', '.join(NORMS)}, but got {name!r}. Check the spelling.")
    known = list(NORMS[name].__dataclass_fields__)  # type: ignore[attr-defined]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"Expected options of norm {name!r} to be among {known}, but got {unknown}. Remove them.")
    return NORMS[name](**options)
