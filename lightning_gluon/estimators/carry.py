"""How a buffer is carried from one step to the next: dense in some dtype, or as the factors of a low rank.

    M ~ U S V^T + E        E: what the truncation dropped, in 8 or 4 bits (`feedback`); without it E is forgotten

With the feedback the next step starts at the whole M again, but for the rounding of E: the truncation itself is then
free of error, whatever the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gluon.estimators.low_rank import compress, expand, sketch_generator
from lightning_gluon.estimators.quantize import GRIDS, Grid
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
        group: Its group: `momentum_dtype`, `rank`, `factor_dtype` and `feedback`.

    Returns:
        Tensors on the meta device: shapes and dtypes.
    """
    if not factored:
        kept = dense_dtype(parameter, group)
        return {name: torch.empty(parameter.shape, dtype=kept, device="meta") for name in buffers}
    work, kept, grid = torch.promote_types(parameter.dtype, torch.float32), factor_dtype(parameter, group), _grid(group)
    entries = {}
    for index, view in enumerate(factored):
        batch, rows, columns = view.matrix
        rank = min(group["rank"], rows, columns)
        entries[f"U{index}"] = torch.empty(batch, rows, rank, dtype=kept, device="meta")
        entries[f"S{index}"] = torch.empty(batch, rank, dtype=work, device="meta")
        entries[f"V{index}"] = torch.empty(batch, columns, rank, dtype=kept, device="meta")
        if grid is not None:
            entries[f"E{index}"], entries[f"E_scale{index}"] = grid.layout(view.matrix)
    return entries


def factor_dtype(parameter: Tensor, group: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype in which `U` and `V` are kept: fp32 or wider, if the group asks for no other."""
    asked = group.get("factor_dtype")
    return getattr(torch, asked) if asked else torch.promote_types(parameter.dtype, torch.float32)


def _grid(group: Mapping[str, Any]) -> Grid | None:
    """Return the numbers in which what truncation drops is kept; `None` if it is forgotten."""
    return GRIDS[group["feedback"]] if group.get("feedback") else None


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
            return self._matrices(0, like).view(like.shape)
        full = torch.empty_like(like)
        for index, view in enumerate(self.factored):
            view.scatter_(full, self._matrices(index, like))
        return full

    def _matrices(self, index: int, like: Tensor) -> Tensor:
        """Return the matrices of one view, with what was dropped from them."""
        left, values, right = (self.state[f"{factor}{index}"].to(like.dtype) for factor in "USV")
        matrices, grid = expand(left, values, right), _grid(self.group)
        if grid is not None:
            matrices += grid.restore(self.state[f"E{index}"], self.state[f"E_scale{index}"], matrices)
        return matrices

    def _compress(self, value: Tensor) -> None:
        group, grid, kept = self.group, _grid(self.group), factor_dtype(self.parameter, self.group)
        for index, view in enumerate(self.factored):
            matrices = view.gather(value)
            left, values, right = compress(
                matrices,
                rank=group["rank"],
                oversampling=group["oversampling"],
                power_iterations=group["power_iterations"],
                generator=sketch_generator(group["seed"], group["steps"], view.matrix, value.device),
            )
            factors = {f"U{index}": left.to(kept), f"S{index}": values, f"V{index}": right.to(kept)}
            self.state.update(factors)
            if grid is not None:  # with the rounding of the factors
                rounded = expand(*(factor.to(value.dtype) for factor in factors.values()))
                self.state[f"E{index}"], self.state[f"E_scale{index}"] = grid.quantize(matrices - rounded)


def _saturated(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values that a dtype can hold: sums of gradients may leave a range that the gradients are in."""
    largest = torch.finfo(dtype).max
    return value if largest >= torch.finfo(value.dtype).max else value.clamp(-largest, largest)
