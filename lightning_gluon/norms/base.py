"""The norm as an interface: its declarations, its dual norm, its linear minimisation oracle.

A norm declares its needs. The step reads the declarations and asks for no names:

| declaration | what the norm gets |
|---|---|
| `options` | those options of its group, as fields |
| `matrices` | the matrices that a parameter holds; without it the parameter as one flat vector |
| `turns` | tall matrices turned, so that rows <= columns |
| `guarded` | biases without the entries that are rounding noise |
| `overwrites` | its own stack, which it may write to |
| `reads_only` | a stack that it must not write to after all, its matrices in any order in memory |
| `rounds_to` | on many ranks matrices that are divided by their `operand_scale` and rounded, as `Context.scaled` says |
| `separable` | on many ranks pieces, cut along these of a matrix' two dimensions; a subclass declares it anew |

and those of `lightning_gluon.norms.needs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_gluon.norms.needs import Context, Needs
from lightning_gluon.norms.numerics import check_real, largest_magnitude, one_if_zero

MATRIX = (-2, -1)


class Norm(Needs, ABC):
    """A norm, its dual and its LMO; `rank` trailing dimensions hold one point, leading ones are a batch.

        ||G||_* = max_{||D|| <= 1} <G, D>,        lmo(G) = argmax_{||D|| <= 1} <G, D>

    Shapes: (..., m, n) = (..., out, in) for `rank` 2, (..., d) for `rank` 1. A 1-D input of a matrix norm is one row.

    References:
        T. Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (Scion), arXiv 2502.07529.

    Example:
        >>> from lightning_gluon.norms import Spectral
        >>> norm = Spectral(orthogonalizer="svd", dtype="float64")
        >>> g = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
        >>> norm.dual_norm(g).item(), norm.norm(norm.lmo(g)).item()
        (7.0, 1.0)
        >>> norm.scale(8, 2), norm.staging_dtype(g), norm.on(g, g.shape).dtype
        (2.0, torch.float64, torch.float64)
        >>> norm.at(0).lmo_(g[None].double(), Context()).sum().item()
        0.0
        >>> norm.defaults()["scaling"], norm.cost(8, 8)
        ('rms', 18432.0)
    """

    rank: ClassVar[int] = 2
    options: ClassVar[Mapping[str, str]] = {}  # option of a group -> field of the norm
    matrices: ClassVar[bool] = True
    turns: ClassVar[bool] = False
    guarded: ClassVar[bool] = False
    attains: ClassVar[bool] = True  # `lmo` attains the dual norm; a direction that is balanced does not
    longest: ClassVar[float] = 1.0  # bound on the norm of a direction that does not attain it
    overwrites: ClassVar[bool] = False  # `lmo_` takes the stack as its working memory
    reads_only: ClassVar[bool] = False
    rounds_to: ClassVar[torch.dtype | None] = None
    separable: ClassVar[tuple[int, ...]] = ()  # the LMO of a piece is the piece of the LMO, and its scale the same
    stacks: ClassVar[bool] = True  # goes through `lmo_`; else the direction itself is the step

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the defaults of the options that a group has for this norm."""
        return {option: getattr(cls, name) for option, name in cls.options.items()}

    def at(self, step: int) -> Norm:
        """Return the norm of a step: another one if norms alternate.

        Args:
            step: Steps taken before it.
        """
        return self

    def on(self, like: Tensor, shape: Sequence[int]) -> Norm:
        """Return the norm with every choice made that depends on device, dtype and shape of a stack.

        Args:
            like: A tensor of the stack's device and dtype.
            shape: Shape of the stack, `(count, m, n)`.
        """
        return self

    def staging_dtype(self, like: Tensor) -> torch.dtype:
        """Return the dtype in which `lmo_` takes a stack.

        Args:
            like: A tensor of the kind that the stack is gathered from.
        """
        return like.dtype

    def scale(self, rows: int, columns: int, kernel: int = 1) -> float:
        """Return the factor that makes what `lmo_` returns a point of the unit sphere.

        Args:
            rows: Output features m.
            columns: Input features n; for a convolution the flattened fan-in `Cin * kernel`.
            kernel: Taps of the convolution kernel.
        """
        return 1.0

    def cost(self, rows: int, columns: int) -> float:
        """Return the arithmetic of the LMO of one matrix, by which ranks share the work.

        Args:
            rows: Output features m.
            columns: Input features n.

        Returns:
            Floating-point operations, one per entry here: the time is that of reading the matrix.
        """
        return float(rows * columns)

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        """Return the directions of a stack, up to their `scale`.

        Args:
            stack: Matrices `(count, m, n)`; a norm that `overwrites` may change them.
            context: What the norm declares that it needs.
        """
        return self.lmo(stack)

    @abstractmethod
    def norm(self, x: Tensor) -> Tensor:
        """Return `||x||` of every point: the batch shape, in fp32 or wider.

        Args:
            x: Points.
        """

    @abstractmethod
    def dual_norm(self, g: Tensor) -> Tensor:
        """Return `max_{||D|| <= 1} <g, D>` of every point: the batch shape, in fp32 or wider.

        Args:
            g: Points of the dual space, such as gradients.
        """

    @abstractmethod
    def lmo(self, g: Tensor) -> Tensor:
        """Return the maximiser `D` for every point: the shape, dtype and device of `g`.

        Args:
            g: Points of the dual space, such as momenta.
        """

    def _read(self, tensor: Tensor) -> Tensor:
        """Check the input and give a vector its row dimension."""
        check_real(tensor)
        if tensor.ndim == 1 and self.rank == 2:
            return tensor.unsqueeze(0)
        if tensor.ndim < self.rank:
            layout = "out, in" if self.rank == 2 else "d"
            raise ValueError(
                f"Expected `{type(self).__name__}` input to have at least {self.rank} dimension(s), but got shape "
                f"{tuple(tensor.shape)}. Reshape it to (..., {layout})."
            )
        return tensor


def to_wide(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32 or wider."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def largest(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the largest magnitude over `dims` (kept), in fp32 or wider."""
    return to_wide(largest_magnitude(tensor, dims))


def length(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the 2-norm over `dims` (kept), safe against under- and overflow of the squares."""
    top = largest(tensor, dims)
    return top * torch.linalg.vector_norm(to_wide(tensor) / one_if_zero(top), dim=dims, keepdim=True)


def direction(tensor: Tensor, dims: tuple[int, ...], size: float) -> Tensor:
    """Scale to the 2-norm `size` over `dims`; zero stays zero."""
    unit = to_wide(tensor) / one_if_zero(largest(tensor, dims))
    present = torch.linalg.vector_norm(unit, dim=dims, keepdim=True)
    return unit.mul_(size / one_if_zero(present)).to(tensor.dtype)
