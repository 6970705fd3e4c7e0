"""The previous iterate X_prev, for the methods that take a second gradient there, with or without a copy of it.

    copy    X_prev itself: exact, as many bytes as the weights
    step    s = X - X_prev in bf16, 2 bytes per entry:  X_prev ~ fl(X - s)
    step8   s in 8 bits with one scale per row, about 1 byte per entry

Without a copy the exchange has to be undone exactly: `fl(fl(X - s) + s) = X`. Floating-point addition does not promise
that, so every step ends by snapping the new weights to a point where it holds, `X <- fl(fl(X - s) + s)`, which moves an
entry by no more than the rounding of its own update. The two exchanges then need no memory at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_gluon.two_point.exchange import Detour, Move, Shift, Swap, exchanged

if TYPE_CHECKING:
    from lightning_gluon.optimizer import Gluon

__all__ = ["REFERENCES", "ReferencePoint", "record_", "reference_bytes", "way_back"]

REFERENCES = ("copy", "step", "step8")


def record_(kind: str, state: dict[str, Tensor], parameter: Tensor, before: Tensor) -> None:
    """Store where the parameter came from, and with a rebuilt reference snap it to an exactly reversible point.

    Args:
        kind: `copy`, `step` or `step8`.
        state: The parameter's optimizer state, which gains or updates the entries of that kind.
        parameter: The weights after the step; snapped in place unless `kind` is `copy`.
        before: The weights before the step, in the same dtype.
    """
    if kind == "copy":
        _store(state, "previous", before)
        return
    step = parameter.to(torch.float32 if parameter.dtype != torch.float64 else torch.float64) - before
    if kind == "step":
        _store(state, "displacement", step.to(torch.bfloat16))
    else:
        scale = _row_scale(step)
        _store(state, "displacement", step.div_(scale).round_().to(torch.int8))
        _store(state, "displacement_scale", scale.to(torch.float32))
    step = _step(kind, state, parameter)
    # One snap is enough: none of 6e8 random pairs, powers of two included, needed another.
    parameter.sub_(step).add_(step)


def way_back(kind: str, state: dict[str, Tensor], parameter: Tensor) -> Move:
    """Return the move that takes the weights to the previous iterate and back, bit for bit."""
    if kind == "copy":
        return Swap(parameter, state["previous"])
    return Shift(parameter, partial(_step, kind, state, parameter))


def reference_bytes(kind: str, parameter: Tensor) -> int:
    """Return the persistent bytes of one parameter's reference."""
    if kind == "copy":
        return parameter.numel() * parameter.element_size()
    if kind == "step":
        return 2 * parameter.numel()
    return parameter.numel() + 4 * (parameter.shape[0] if parameter.ndim > 1 else 1)


def _store(state: dict[str, Tensor], key: str, value: Tensor) -> None:
    if key in state:
        state[key].copy_(value)
    else:
        state[key] = value.clone() if key == "previous" else value


def _row_scale(step: Tensor) -> Tensor:
    """Return `max |step| / 127` of every row, 1 where a row has not moved."""
    dims = tuple(range(1, step.ndim)) if step.ndim > 1 else tuple(range(step.ndim))
    top = step.abs().amax(dim=dims, keepdim=True) if step.ndim else step.abs()
    return torch.where(top > 0, top / 127, torch.ones_like(top))


def _step(kind: str, state: dict[str, Tensor], parameter: Tensor) -> Tensor:
    """Return the stored step, dequantised."""
    if kind == "step":
        return state["displacement"]
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return state["displacement"].to(wide).mul_(state["displacement_scale"])


def _way_ahead(parameter: Tensor, previous: Tensor, momentum: float) -> Move:
    """Return the move to the transported point `X + b / (1 - b) (X - X_prev)` and back."""
    ahead = momentum / (1 - momentum)
    return Detour(parameter, lambda here: parameter.add_(here - previous, alpha=ahead))


class ReferencePoint:
    """Where an optimizer's further gradient is taken: the previous iterate, or the transported point of `igt`.

    Args:
        optimizer: The optimizer; the whole model moves together, whatever each group's estimator is.
    """

    def __init__(self, optimizer: Gluon) -> None:
        self.optimizer = optimizer
        self.used = False  # since the last step without a closure
        self._moves: list[Move] = []

    @property
    def kind(self) -> str:
        """How the previous iterate is kept, the same for all groups."""
        if self.optimizer.reference_point == "transported":
            return "copy"
        return next(group["reference"] for group in self.optimizer.param_groups if "reference" in group)

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Put all weights at the reference point, and back bit for bit on leaving.

        Yields:
            Nothing.

        Raises:
            RuntimeError: If the method needs no reference, has taken no step, or is at it already.
        """
        if not self.optimizer.needs_reference or any(move.away for move in self._moves):
            raise RuntimeError(
                "There is no reference point now: the method needs none, no step was taken, or it is in use."
            )
        self.used = True
        self._moves = self._ways()
        with exchanged(self._moves):
            yield
        self._moves = []

    def _ways(self) -> list[Move]:
        moves: list[Move] = []
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                state = self.optimizer.state.get(parameter, {})
                if "previous" not in state and "displacement" not in state:
                    continue
                if self.optimizer.reference_point == "previous":
                    moves.append(way_back(self.kind, state, parameter))
                elif group["estimator"] == "igt":
                    moves.append(_way_ahead(parameter, state["previous"], group["momentum"]))
        return moves

    @contextmanager
    def tracking(self, params: Sequence[Tensor]) -> Iterator[None]:
        """Record where parameters come from while they are moved."""
        if self.optimizer.reference_point is None:
            yield
            return
        kind, state = self.kind, self.optimizer.state
        before = [parameter.clone() for parameter in params]
        yield
        for parameter, previous in zip(params, before, strict=True):
            record_(kind, state[parameter], parameter, previous)

    def stay(self, stepped: set[Tensor]) -> None:
        """Record that a parameter which took no step was already here one iterate ago."""
        if self.optimizer.reference_point is None:
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter not in stepped and self.optimizer.state.get(parameter):
                    record_(self.kind, self.optimizer.state[parameter], parameter, parameter.clone())

    @contextmanager
    def folding(self) -> Iterator[None]:
        """Let gradients that are accumulated inside enter `.grad` as `-b c_old`, which saves their buffer.

        Afterwards `.grad` holds `c_new - b c_old`, all that STORM's recursion `M <- c_new - b c_old + b M` needs. With
        `fold="bfloat16"` the first gradient waits in bf16 while the second one's activations take their room.

        Yields:
            Nothing; run the backward pass of the second gradient inside.
        """
        optimizer = self.optimizer
        hooks, waiting = [], {}
        for group in optimizer.param_groups:
            factor = -group["momentum"] if group.get("fold") else 0.0
            for parameter in group["params"]:
                share = factor if parameter in optimizer.state else 0.0  # on its first step c_old is c_new
                if parameter.requires_grad:
                    hooks.append(parameter.register_hook(lambda gradient, share=share: gradient * share))
                if group.get("fold") == "bfloat16" and parameter.grad is not None:
                    waiting[parameter], parameter.grad = parameter.grad.to(torch.bfloat16), None
        try:
            yield
            optimizer.folded = True
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, first in waiting.items():
                parameter.grad = first.to(parameter.dtype) if parameter.grad is None else parameter.grad.add_(first)
