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
        >>> layer.name, round(layer.norm(torch.ones(4, 2)).item(), 4)
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
        return torch.stack([(norm.norm(block) / scale).amax() for norm, scale, block in self._blocks(x)]).amax()

    def dual_norm(self, g: Tensor) -> Tensor:
        """Return the dual norm of a parameter-shaped tensor, exactly, as a 0-dim tensor."""
        return torch.stack([(norm.dual_norm(block) * scale).sum() for norm, scale, block in self._blocks(g)]).sum()

    def _blocks(self, tensor: Tensor) -> list[tuple[Norm, float, Tensor]]:
        """Return every view as `(norm, scale, matrices)`; only a spectral norm has a scale, which the view decides."""
        name = "euclidean" if self.group["norm"] == "identity" else self.group["norm"]
        blocks: list[tuple[Norm, float, Tensor]] = []
        for view in views_of(self.group, self.index):
            if name in ORIENTED:
                scale = Spectral(scaling=self.group["scaling"]).scale(*view.matrix[1:], view.kernel)
                blocks.append((Spectral(scaling="none"), scale, view.gather(tensor)))
            else:
                blocks.append((make_norm(name), 1.0, view.gather(tensor)))
        return blocks
