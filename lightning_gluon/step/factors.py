"""Low-rank momenta over ranks: pieces of `U S V^T` on every rank, compressed by the owner, or by rows on all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.carry import Carry
from lightning_gluon.estimators.factors import FactorStack, FirstMomentum, factor_dtype, store_stacks
from lightning_gluon.estimators.low_rank import compress_stacks, expand, sketch_generator
from lightning_gluon.estimators.quantize import Quantizer
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.ranks.collectives import all_gather
from lightning_gluon.ranks.layout import Layout
from lightning_gluon.ranks.packing import TensorForm
from lightning_gluon.ranks.pieces import PieceState
from lightning_gluon.ranks.whole import RowSums

Factored = Sequence[tuple[MatrixView, ...]]


class LentCarry(Carry):
    """Buffers of parameters that travel: this rank works on pieces of low-rank momenta, and owners compress them.

    A matrix that is stored as one is expanded by its piece; others are expanded whole, one parameter at a time.

    Args:
        states: The optimizer's state of every parameter.
        params: The pieces of the parameters.
        factored: The matrices that the momentum of each is compressed as; empty for the dense carry.
        group: Their group.
        layouts: Their layouts.
    """

    def __init__(
        self,
        states: Sequence[Any],
        params: Sequence[Tensor],
        factored: Factored,
        group: Mapping[str, Any],
        layouts: Sequence[Layout],
    ) -> None:
        super().__init__(states, params, [()] * len(params), group)
        self.lent, self.layouts = factored, layouts

    def _rounding(
        self,
        index: int,
    ) -> Quantizer | None:
        return None if self.lent[index] else super()._rounding(index)

    def _dense(
        self,
        index: int,
        name: str,
        gradient: Tensor,
        first: FirstMomentum,
    ) -> Tensor:
        state = self.states[index]
        if not self.lent[index]:
            return super()._dense(index, name, gradient, first)
        return self._piece(index, gradient) if "U0" in state else first(gradient)

    def _piece(
        self,
        index: int,
        like: Tensor,
    ) -> Tensor:
        """Return this rank's piece of a momentum."""
        state, layout = self.states[index], self.layouts[index]
        factors = []
        for number in range(len(self.lent[index])):
            factors.append([state[f"{key}{number}"].to(like.dtype) for key in "USV"])
        if len(layout.shape) == 2:  # one matrix, as it is stored
            (row, column), (rows, columns) = layout.own.offset, layout.own.size
            ((left, values, right),) = factors
            return expand(left.narrow(1, row, rows), values, right.narrow(1, column, columns))[0]
        whole = like.new_empty(layout.shape)
        for view, (left, values, right) in zip(self.lent[index], factors, strict=True):
            view.scatter_(whole, expand(left, values, right))
        return layout.own.of(whole).contiguous()


class RowCarry(LentCarry):
    """Buffers of parameters that stay: ranks that hold rows of a matrix compress its momentum together, by rows.

    Args:
        states: The optimizer's state of every parameter.
        params: The pieces of the parameters.
        factored: As in `LentCarry`; those of parameters that are not cut are compressed by every rank.
        group: Their group.
        layouts: Their layouts.
    """

    def __init__(
        self,
        states: Sequence[Any],
        params: Sequence[Tensor],
        factored: Factored,
        group: Mapping[str, Any],
        layouts: Sequence[Layout],
    ) -> None:
        cut = [views if layout.cuts else () for views, layout in zip(factored, layouts, strict=True)]
        super().__init__(states, params, cut, group, layouts)
        self.factored = [() if own else views for views, own in zip(factored, cut, strict=True)]
        self.stacks = FactorStack.build(states, self.factored)

    def store(
        self,
        name: str,
        values: Sequence[Tensor],
    ) -> None:
        """Keep a buffer for the next step."""
        super().store(name, values)
        alike: dict[Layout, list[int]] = {}
        for index, views in enumerate(self.lent):
            if views:
                alike.setdefault(self.layouts[index], []).append(index)
        for layout, some in alike.items():
            self._compress_(layout, some, values)

    def _compress_(
        self,
        layout: Layout,
        some: list[int],
        values: Sequence[Tensor],
    ) -> None:
        """Keep the factors of matrices that are cut alike, the same on all ranks."""
        group, rows = self.group, torch.stack([values[index] for index in some])
        (view,) = self.lent[some[0]]
        generator = sketch_generator(group["seed"], group["steps"], view.matrix, rows.device)
        (factors,) = compress_stacks(
            [rows],
            [generator],
            rank=group["rank"],
            oversampling=group["oversampling"],
            power_iterations=group["power_iterations"],
            rows=RowSums(layout.shards, layout.shape[0]),
        )
        own, singular, right = factors
        dtype = factor_dtype(self.params[0], group)
        left = _joined_rows(own.to(dtype), layout)
        for place, index in enumerate(some):
            state = self.states[index]
            assert isinstance(state, PieceState)  # of which factors are none: all ranks have the same
            for key, whole in zip("USV", (left, singular, right.to(dtype)), strict=True):
                state.state[f"{key}0"] = whole[place : place + 1].clone()


def _joined_rows(
    rows: Tensor,
    layout: Layout,
) -> Tensor:
    """Return all rows of matrices that are cut as a layout says."""
    count, _, width = rows.shape
    forms = [[TensorForm((count, region.size[0], width), rows.dtype)] for region in layout.regions]
    flight = all_gather(layout.shards, [rows], forms, rows.device)
    found = list(zip(layout.regions, flight.wait(), strict=True))
    found.sort(key=lambda pair: pair[0].offset[0])
    return torch.cat([tensor for _, (tensor,) in found], dim=1)


def compress_whole_(
    states: Sequence[Any], params: Sequence[Tensor], factored: Factored, group: Mapping[str, Any], whole: list[Tensor]
) -> None:
    """Keep the factors of whole momenta.

    Args:
        states: The optimizer's state of every parameter.
        params: The parameters.
        factored: The matrices that the momentum of each is compressed as; empty for the dense carry.
        group: Their group.
        whole: Their momenta.
    """
    stacks = FactorStack.build(states, factored)
    for stack in stacks:
        batch, rows, columns = stack.matrix
        like = whole[stack.pieces[0].member]
        stack.momenta = like.new_empty((len(stack.pieces) * batch, rows, columns))
        stack.shared = {}
    if stacks:
        store_stacks(stacks, whole, group, factor_dtype(params[0], group))
