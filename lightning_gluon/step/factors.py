"""Low-rank momenta of parameters that travel: pieces of `U S V^T` on every rank, compressed at the owner."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

from lightning_gluon.estimators.carry import Carry, factor_dtype
from lightning_gluon.estimators.low_rank import compress, sketch_generator
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.ranks.layout import Layout

Factors = MutableMapping[str, Any]


class FactoredPiece(Carry):
    """A momentum at low rank, of which this rank works on a piece; its owner compresses it.

    Args:
        state: The parameter's optimizer state.
        parameter: The piece of the parameter.
        factored: The matrices its momentum is compressed as.
        group: Its group.
        layout: Its layout.
    """

    def __init__(
        self,
        state: dict[str, Any],
        parameter: Tensor,
        factored: tuple[MatrixView, ...],
        group: dict[str, Any],
        layout: Layout,
    ) -> None:
        super().__init__(state, parameter, factored, group)
        self.layout = layout

    def store(self, name: str, value: Tensor) -> None:
        """Do nothing: the factors come from the owner."""

    def _expand(self, like: Tensor) -> Tensor:
        region = self.layout.own
        if region.size == self.layout.shape:
            return super()._expand(like)
        whole = super()._expand(like.new_empty(self.layout.shape))
        return region.of(whole).contiguous()


def compress_(
    state: Factors, parameter: Tensor, views: tuple[MatrixView, ...], group: Mapping[str, Any], value: Tensor
) -> None:
    """Keep the factors of a whole momentum.

    Args:
        state: The parameter's optimizer state.
        parameter: The parameter.
        views: The matrices its momentum is compressed as.
        group: Its group.
        value: The momentum.
    """
    dtype = factor_dtype(parameter, group)
    for index, view in enumerate(views):
        left, values, right = compress(
            view.gather(value),
            rank=group["rank"],
            oversampling=group["oversampling"],
            power_iterations=group["power_iterations"],
            generator=sketch_generator(group["seed"], group["steps"], view.matrix, value.device),
        )
        state[f"U{index}"], state[f"S{index}"], state[f"V{index}"] = left.to(dtype), values, right.to(dtype)
