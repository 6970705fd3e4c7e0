"""Buffers carried from one step to the next: dense in some dtype, or as the factors of a low rank.

    M ~ U S V^T + E        E: what the truncation dropped, in 8 or 4 bits (`feedback`); without it E is forgotten

With the feedback the next step starts at the whole M again, but for the rounding of E: the truncation itself is then
free of error, whatever the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.low_rank import compress, expand, sketch_generator
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
    if not factored:
        dtype = dense_dtype(parameter, group)
        return {name: _meta(parameter.shape, dtype) for name in buffers}
    entries = {}
    dtype, quantizer = factor_dtype(parameter, group), _feedback(group)
    for index, view in enumerate(factored):
        batch, rows, columns = view.matrix
        rank = min(group["rank"], rows, columns)
        entries[f"U{index}"] = _meta((batch, rows, rank), dtype)
        entries[f"S{index}"] = _meta((batch, rank), torch.promote_types(parameter.dtype, torch.float32))
        entries[f"V{index}"] = _meta((batch, columns, rank), dtype)
        if quantizer is not None:
            entries[f"E{index}"], entries[f"E_scale{index}"] = quantizer.layout(view.matrix)
    return entries


def _meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def factor_dtype(parameter: Tensor, group: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype in which `U` and `V` are kept: fp32 or wider, if the group asks for no other."""
    asked = group.get("factor_dtype")
    return getattr(torch, asked) if asked else torch.promote_types(parameter.dtype, torch.float32)


def _feedback(group: Mapping[str, Any]) -> Quantizer | None:
    """Return what quantises the part that truncation drops; `None` if it is forgotten."""
    bits = group.get("feedback")
    return QUANTIZERS[bits] if bits else None


def dense_dtype(parameter: Tensor, group: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype in which a dense buffer is kept: fp32 or wider, if the group asks for no other."""
    asked = group["momentum_dtype"]
    return getattr(torch, asked) if asked else torch.promote_types(parameter.dtype, torch.float32)


class Carry:
    """The buffers of one parameter: `load` gives full-size working tensors, `store` puts back what is kept.

    Args:
        state: The parameter's optimizer state.
        parameter: The parameter.
        factored: The matrices its momentum is compressed as; empty for the dense carry.
        group: Its group: `start`, `momentum_dtype`, `rank`, the rest of the sketch, `factor_dtype` and `feedback`.
    """

    def __init__(
        self, state: dict[str, Any], parameter: Tensor, factored: tuple[MatrixView, ...], group: dict[str, Any]
    ) -> None:
        self.state, self.parameter, self.factored, self.group = state, parameter, factored, group

    def load(self, name: str, gradient: Tensor, *, zero: bool = False) -> Tensor:
        """Return a buffer in the dtype of the gradient; it starts at the first gradient, or at zero.

        Args:
            name: Name of the buffer.
            gradient: The gradient of this step.
            zero: Start at zero, whatever the group says.
        """
        if self.factored and "U0" in self.state:
            return self._expand(gradient)
        if name not in self.state:
            zero = zero or self.group["start"] == "zero"
            first = torch.zeros_like(gradient) if zero else gradient.clone()
            if self.factored:
                return first
            kept = dense_dtype(self.parameter, self.group)
            self.state[name] = _saturated(first, kept).to(kept)
        return self.state[name].to(gradient.dtype)

    def store(self, name: str, value: Tensor) -> None:
        """Keep a buffer for the next step."""
        if self.factored:
            self._compress(value)
        elif self.state[name] is not value:
            self.state[name].copy_(_saturated(value, self.state[name].dtype))

    def _expand(self, like: Tensor) -> Tensor:
        if len(self.factored) == 1 and self.factored[0].is_plain:
            return self._matrices(0, like).view(like.shape)
        full = torch.empty_like(like)
        for index, view in enumerate(self.factored):
            view.scatter_(full, self._matrices(index, like))
        return full

    def _matrices(self, index: int, like: Tensor) -> Tensor:
        """Return the matrices of one view, with what was dropped from them."""
        factors = [self.state[f"{name}{index}"] for name in "USV"]
        matrices = expand(*[factor.to(like.dtype) for factor in factors])
        quantizer = _feedback(self.group)
        if quantizer is not None:
            codes, scales = self.state[f"E{index}"], self.state[f"E_scale{index}"]
            matrices += quantizer.restore(codes, scales, matrices)
        return matrices

    def _compress(self, value: Tensor) -> None:
        group, quantizer = self.group, _feedback(self.group)
        dtype = factor_dtype(self.parameter, group)
        for index, view in enumerate(self.factored):
            matrices = view.gather(value)
            left, values, right = compress(
                matrices,
                rank=group["rank"],
                oversampling=group["oversampling"],
                power_iterations=group["power_iterations"],
                generator=sketch_generator(group["seed"], group["steps"], view.matrix, value.device),
            )
            self.state[f"U{index}"] = left.to(dtype)
            self.state[f"S{index}"] = values
            self.state[f"V{index}"] = right.to(dtype)
            if quantizer is not None:
                dropped = matrices - expand(left.to(dtype).to(value.dtype), values, right.to(dtype).to(value.dtype))
                self.state[f"E{index}"], self.state[f"E_scale{index}"] = quantizer.quantize(dropped)


def _saturated(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values that a dtype can hold: sums of gradients may leave a range that the gradients are in."""
    largest = torch.finfo(dtype).max
    return value if largest >= torch.finfo(value.dtype).max else value.clamp(-largest, largest)
