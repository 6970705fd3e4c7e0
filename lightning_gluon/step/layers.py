"""One parameter as callbacks see it: its role, its own norm, its radius."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gluon.norms.base import Norm
from lightning_gluon.norms.spectral import Spectral
from lightning_gluon.norms.table import norm_of
from lightning_gluon.options import Group
from lightning_gluon.step.plan import views_of


class Layer:
    """A parameter in its group, with the norm its steps are measured in.

    Several matrix views are blocks of a product space: the norm is the largest block norm, the dual norm the sum.

    Args:
        group: The parameter group.
        index: Position of the parameter in it.

    Example:
        >>> from lightning_gluon import Gluon
        >>> layer = Gluon(torch.nn.Linear(2, 4), lr=0.1).layers()[0]
        >>> layer.name, round(layer.norm(torch.ones(4, 2)).item(), 4)
        ('weight', 2.0)
    """

    def __init__(self, group: Group, index: int) -> None:
        self.group = group
        self.index = index

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.group["param_names"][self.index]

    @property
    def parameter(self) -> Tensor:
        """The parameter itself."""
        return self.group["params"][self.index]

    @property
    def role(self) -> str:
        """Its role."""
        return self.group["role"]

    @property
    def radius(self) -> float:
        """Its radius; a step is `lr * radius` long."""
        radius = self.group["radius"]
        return radius[self.index] if isinstance(radius, list) else radius

    @property
    def step_length(self) -> float:
        """Length of a step in the layer's own norm: `lr * radius`."""
        return float(self.group["lr"]) * self.radius  # `lr` may be a tensor

    def norm(self, x: Tensor, *, exact: bool = True) -> Tensor:
        """Return the norm of a parameter-shaped tensor as a 0-dim tensor.

        Args:
            x: The tensor.
            exact: Take singular values, else a spectral norm by power iteration: for large matrices on an accelerator.

        Returns:
            The norm.
        """
        if not x.numel():
            return x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        return torch.stack([block.norm(exact) for block in self._blocks(x)]).amax()

    def dual_norm(self, g: Tensor, *, exact: bool = True) -> Tensor:
        """Return the dual norm of a parameter-shaped tensor as a 0-dim tensor.

        Args:
            g: The tensor.
            exact: Take singular values, else a nuclear norm as `<G, D(G)>` with the orthogonaliser's `D`.

        Returns:
            The dual norm.
        """
        if not g.numel():
            return g.new_zeros((), dtype=torch.promote_types(g.dtype, torch.float32))
        return torch.stack([block.dual_norm(exact) for block in self._blocks(g)]).sum()

    def direction_size(self) -> float:
        """Return the Frobenius norm of a direction that the layer's norm gives a momentum of full rank."""
        shape = self.parameter.shape
        draw = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        squares = [block.direction_size() ** 2 for block in self._blocks(draw)]
        return math.sqrt(sum(squares))

    def _blocks(self, tensor: Tensor) -> list[_MatrixBlock]:
        """Return the matrices of every view of a parameter-shaped tensor."""
        tensor = torch.atleast_1d(tensor)  # a scalar, such as a temperature
        norm = norm_of(self.group)
        blocks = []
        for view in views_of(self.group, self.index):
            _, rows, columns = view.matrix
            blocks.append(_MatrixBlock(norm, norm.scale(rows, columns, view.kernel), view.gather(tensor)))
        return blocks


@dataclass(frozen=True)
class _MatrixBlock:
    """Matrices of one view; only a spectral norm has a scale, which the view decides."""

    norm_of_group: Norm
    scale: float
    matrices: Tensor

    @property
    def unscaled(self) -> Norm:
        """The norm without its scale."""
        return Spectral(scaling="none") if self.spectral else self.norm_of_group

    @property
    def spectral(self) -> bool:
        """True if exact values cost a decomposition."""
        return isinstance(self.norm_of_group, Spectral)

    def norm(self, exact: bool) -> Tensor:
        """Return the largest norm of a matrix."""
        if self.spectral and not exact:
            return _power_iteration(self.matrices).amax() / self.scale
        return self.unscaled.norm(self.matrices).amax() / self.scale

    def direction_size(self) -> float:
        """Return the Frobenius norm of the directions of matrices of full rank."""
        if self.spectral:  # all singular values are one
            count, rows, columns = self.matrices.shape
            return self.scale * math.sqrt(count * min(rows, columns))
        return self.scale * float(self.unscaled.lmo(self.matrices).norm())

    def dual_norm(self, exact: bool) -> Tensor:
        """Return the sum of dual norms."""
        if self.spectral and not exact:
            return (self.matrices * self.unscaled.lmo(self.matrices)).sum() * self.scale
        return (self.unscaled.dual_norm(self.matrices) * self.scale).sum()


def _power_iteration(matrices: Tensor, steps: int = 20) -> Tensor:
    """Return the largest singular value of each matrix (..., m, n), from below; 3 % short at most on Gaussian ones."""
    vector = matrices.sum(-2, keepdim=True).mT
    for _ in range(steps):
        vector = matrices.mT @ (matrices @ torch.nn.functional.normalize(vector, dim=-2))
    return torch.linalg.vector_norm(matrices @ torch.nn.functional.normalize(vector, dim=-2), dim=(-2, -1))
