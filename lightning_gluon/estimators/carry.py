"""Buffers carried from one step to the next: dense in some dtype or in 8 bits, or as the factors of a low rank.

In 8 bits (`momentum_dtype="int8"`) a block of at most 128 entries of a row shares a scale: 1.03 bytes per entry. A row
is all that belongs to one index of the first dimension. Vectors stay in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.factors import (
    Entries,
    FactorStack,
    FirstMomentum,
    factor_dtype,
    factors_layout,
    store_stacks,
)
from lightning_gluon.estimators.quantize import QUANTIZERS, Quantizer
from lightning_gluon.norms.views import MatrixView

__all__ = ["Carry"]


def carry_layout(
    buffers: Iterable[str], parameter: Tensor, factored: tuple[MatrixView, ...], group: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the state of one parameter's buffers, by key.

    Args:
        buffers: Names of the estimator's buffers.
        parameter: The parameter.
        factored: The matrices its momentum is compressed as; empty for the dense carry.
        group: Its group: `momentum_dtype`, `rank`, `factor_dtype` and `feedback`.

    Returns:
        Tensors on the meta device: shapes and dtypes.
    """
    if factored:
        return factors_layout(parameter, factored, group)
    quantizer = _codes_of(parameter, group)
    entries = {}
    for name in buffers:
        if quantizer is None:
            entries[name] = torch.empty(parameter.shape, dtype=dense_dtype(parameter, group), device="meta")
        else:
            rows, columns = parameter.shape[0], parameter.shape[1:].numel()
            codes, scales = quantizer.layout((1, rows, columns))
            entries[name], entries[scale_of(name)] = codes[0], scales[0]
    return entries


def scale_of(name: str) -> str:
    """Return the key of a buffer's scales in the state."""
    return f"{name}_scale"


def _codes_of(parameter: Tensor, group: Mapping[str, Any]) -> Quantizer | None:
    """Return what rounds a parameter's dense buffers; `None` if they are kept in a dtype of torch."""
    return QUANTIZERS.get(group["momentum_dtype"]) if parameter.ndim > 1 else None


def dense_dtype(parameter: Tensor, group: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype in which a dense buffer is kept: fp32 or wider, if the group asks for no other."""
    asked = group["momentum_dtype"]
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return getattr(torch, asked) if asked and asked not in QUANTIZERS else wide


class Carry:
    """The buffers of parameters that are stepped together: `load` gives whole tensors, `store` puts back what is kept.

    Args:
        states: The optimizer's state of every parameter.
        params: The parameters.
        factored: The matrices that the momentum of each is compressed as; empty for the dense carry.
        group: Their group: `start`, `momentum_dtype`, `rank`, the rest of the sketch, `factor_dtype` and `feedback`.
    """

    def __init__(
        self,
        states: Sequence[Entries],
        params: Sequence[Tensor],
        factored: Sequence[tuple[MatrixView, ...]],
        group: Mapping[str, Any],
    ) -> None:
        self.states, self.params, self.factored, self.group = states, params, factored, group
        self.stacks = FactorStack.build(states, factored)

    def load(self, name: str, gradients: Sequence[Tensor], *, zero: bool = False) -> list[Tensor]:
        """Return a buffer of every parameter in the dtype of its gradient; it starts at the first gradient, or at zero.

        Args:
            name: Name of the buffer.
            gradients: The gradients, in fp32 or wider.
            zero: Start at zero, whatever the group says.
        """
        first = torch.zeros_like if zero or self.group["start"] == "zero" else torch.clone
        found = list(gradients)
        for index, gradient in enumerate(gradients):
            if not self.factored[index]:
                found[index] = self._dense(index, name, gradient, first)
        if gathers(gradients[0].device.type):
            self._gather_(name, found)
        for stack in self.stacks:
            stack.load_(found, gradients, first, self.group)
        return found

    def _rounding(self, index: int) -> Quantizer | None:
        return None if self.factored[index] else _codes_of(self.params[index], self.group)

    def _restored(
        self, quantizer: Quantizer, state: Entries, name: str, gradient: Tensor, first: FirstMomentum
    ) -> Tensor:
        """Return a buffer that is kept in few bits; the first one is not rounded before its step."""
        if name in state:
            return quantizer.restore(state[name], state[scale_of(name)], gradient.flatten(1)).view(gradient.shape)
        value = first(gradient)
        state[name], state[scale_of(name)] = quantizer.quantize(value.flatten(1))
        return value

    def _gather_(self, name: str, found: list[Tensor]) -> None:
        """Move buffers that each have memory of their own into one piece of memory, in their order.

        An LMO then reads a stack of equal ones where they lie.
        """
        alone = []
        for index, value in enumerate(found):
            kept = self.states[index].get(name)
            if kept is value and _owns(value):
                alone.append(index)
        if len(alone) < 2:
            return
        own = [found[index] for index in alone]
        sizes = [value.numel() for value in own]
        whole = own[0].new_empty(sum(sizes))
        parts = whole.split(sizes)
        for index, value, part in zip(alone, own, parts, strict=True):
            self.states[index][name] = found[index] = part.view(value.shape)
        torch._foreach_copy_([found[index] for index in alone], own)

    def store(self, name: str, values: Sequence[Tensor]) -> None:
        """Keep a buffer for the next step.

        Args:
            name: Name of the buffer.
            values: What `load` returned, after the step.
        """
        for index, value in enumerate(values):
            kept = self.states[index].get(name, value)  # the same tensor, if it is kept as it is
            quantizer = self._rounding(index)
            if quantizer is not None:
                codes, scales = quantizer.quantize(value.flatten(1))
                kept.copy_(codes)
                self.states[index][scale_of(name)].copy_(scales)
            elif kept is not value:
                kept.copy_(_saturated(value, kept.dtype))
        if self.stacks:
            store_stacks(self.stacks, values, self.group, factor_dtype(self.params[0], self.group))

    def _dense(self, index: int, name: str, gradient: Tensor, first: FirstMomentum) -> Tensor:
        state, quantizer = self.states[index], self._rounding(index)
        if quantizer is not None:
            return self._restored(quantizer, state, name, gradient, first)
        if name not in state:
            kept = dense_dtype(self.params[index], self.group)
            state[name] = _saturated(first(gradient), kept).to(kept)
        kept = state[name]
        return kept if kept.dtype == gradient.dtype else kept.to(gradient.dtype)


def as_dtype(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return tensors in a dtype; asking each that has it already costs the host as much as a small kernel."""
    return [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors]


def gathers(device: str) -> bool:
    """Return whether dense buffers that are stepped together share memory: a GPU takes one kernel for all then."""
    return device != "cpu"


def _owns(buffer: Tensor) -> bool:
    return buffer.is_contiguous() and buffer.untyped_storage().nbytes() == buffer.nbytes


def _saturated(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values that a dtype can hold: sums of gradients may leave a range that the gradients are in."""
    largest = torch.finfo(dtype).max
    return value if largest >= torch.finfo(value.dtype).max else value.clamp(-largest, largest)
