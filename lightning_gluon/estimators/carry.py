"""Buffers carried from one step to the next: dense in some dtype, or as the factors of a low rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.low_rank import compress, expand, sketch_generator
from lightning_gluon.norms.views import MatrixView

__all__ = ["Carry"]


def carry_layout(
    buffers: Iterable[str], parameter: Tensor, factored: tuple[MatrixView, ...], group: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return what is kept of one parameter's buffers, by key.

    Args:
        buffers: Names of the estimator's buffers.
        parameter: The parameter.
        factored: The matrices its momentum is compressed as; empty for the dense carry.
        group: Its group: `momentum_dtype` and `rank`.

    Returns:
        Tensors on the meta device: shapes and dtypes.
    """
    if not factored:
        kept = dense_dtype(parameter, group)
        return {name: torch.empty(parameter.shape, dtype=kept, device="meta") for name in buffers}
    work = torch.promote_types(parameter.dtype, torch.float32)
    shapes = {}
    for index, view in enumerate(factored):
        batch, rows, columns = view.matrix
        rank = min(group["rank"], rows, columns)
        shapes.update(
            {f"U{index}": (batch, rows, rank), f"S{index}": (batch, rank), f"V{index}": (batch, columns, rank)}
        )
    return {key: torch.empty(shape, dtype=work, device="meta") for key, shape in shapes.items()}


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
        group: Its group: `start`, `momentum_dtype`, `rank` and the rest of the sketch.
    """

    def __init__(
        self, state: dict[str, Any], parameter: Tensor, factored: tuple[MatrixView, ...], group: dict[str, Any]
    ) -> None:
        self.state, self.parameter, self.factored, self.group = state, parameter, factored, group

    def load(self, name: str, gradient: Tensor) -> Tensor:
        """Return a buffer in the dtype of the gradient; it starts at the first gradient, or at zero."""
        if self.factored and "U0" in self.state:
            return self._expand(gradient)
        if name not in self.state:
            first = torch.zeros_like(gradient) if self.group["start"] == "zero" else gradient.clone()
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
            return expand(self.state["U0"], self.state["S0"], self.state["V0"]).view(like.shape)
        full = torch.empty_like(like)
        for index, view in enumerate(self.factored):
            view.scatter_(full, expand(*(self.state[f"{factor}{index}"] for factor in "USV")))
        return full

    def _compress(self, value: Tensor) -> None:
        group = self.group
        for index, view in enumerate(self.factored):
            generator = sketch_generator(group["seed"], group["steps"], view.matrix, value.device)
            factors = compress(
                view.gather(value),
                rank=group["rank"],
                oversampling=group["oversampling"],
                power_iterations=group["power_iterations"],
                generator=generator,
            )
            for name, factor in zip("USV", factors, strict=True):
                self.state[f"{name}{index}"] = factor


def _saturated(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values that a dtype can hold: sums of gradients may leave a range that the gradients are in."""
    largest = torch.finfo(dtype).max
    return value if largest >= torch.finfo(value.dtype).max else value.clamp(-largest, largest)
