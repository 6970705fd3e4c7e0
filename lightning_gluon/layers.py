"""One parameter as callbacks see it: its role, its own norm, its radius."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gluon.norms import Norm, Spectral, make_norm
from lightning_gluon.plan import ORIENTED, views_of

__all__ = ["Layer"]


class Layer:
    """A parameter in its group, with the norm its steps are measured in.

    Several matrix views are blocks of a product space: the norm is the largest block norm, the dual norm the sum.

    Args:
        group: The parameter group.
        index: Position of the parameter in it.

    Example:
        >>> from lightning_gluon import Gluon
        >>> layer = Gluon(torch.nn.Linear(2, 4), lr=0.1).layers()[0]
        >>> layer.name, layer.norm(torch.ones(4, 2)).item()
        ('weight', 2.0)
    """

    def __init__(self, group: dict[str, Any], index: int) -> None:
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
        return self.group["lr"] * self.radius

    def norm(self, x: Tensor) -> Tensor:
        """Return the norm of a parameter-shaped tensor, exactly, as a 0-dim tensor."""
        return torch.stack([norm.norm(block).amax() for norm, block in self._blocks(x)]).amax()

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return the dual norm of a parameter-shaped tensor, exactly, as a 0-dim tensor."""
        return torch.stack([norm.dual_norm(block).sum() for norm, block in self._blocks(g)]).sum()

    def _blocks(self, tensor: Tensor) -> list[tuple[Norm, Tensor]]:
        name = "euclidean" if self.group["norm"] == "identity" else self.group["norm"]
        blocks = []
        for view in views_of(self.group, self.index):
            norm = _Scaled(self.group["scaling"], view.kernel) if name in ORIENTED else make_norm(name)
            blocks.append((norm, view.gather(tensor)))
        return blocks


class _Scaled(Spectral):
    """`Spectral` of a flattened kernel."""

    def __init__(self, scaling: str, kernel: int) -> None:
        super().__init__(scaling=scaling)
        object.__setattr__(self, "kernel", kernel)

    def scale(self, rows: int, columns: int, kernel: int = 1) -> float:
        return super().scale(rows, columns, self.kernel)
