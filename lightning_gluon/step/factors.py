"""Low-rank momenta of parameters that travel: pieces of `U S V^T` on every rank, compressed at the owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_gluon.estimators.carry import Carry
from lightning_gluon.estimators.factors import FactorStack, FirstMomentum, factor_dtype, store_stacks
from lightning_gluon.estimators.low_rank import expand
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.ranks.layout import Layout

Factored = Sequence[tuple[MatrixView, ...]]


class LentCarry(Carry):
    """Buffers of parameters that travel: this rank works on pieces of low-rank momenta, and owners compress them.

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
        """Return this rank's piece of a momentum, of which one parameter at a time is whole."""
        state, layout = self.states[index], self.layouts[index]
        whole = like.new_empty(layout.shape)
        for number, view in enumerate(self.lent[index]):
            left, values, right = [state[f"{key}{number}"].to(like.dtype) for key in "USV"]
            view.scatter_(whole, expand(left, values, right))
        return layout.own.of(whole).contiguous()


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
