"""The previous iterate X_prev, for the methods that take a second gradient there, with or without a copy of it.

    copy    X_prev itself: exact, as many bytes as the weights
    step    s = X - X_prev in bf16, 2 bytes per entry:  X_prev ~ fl(X - s)
    step8   s in 8 bits with one scale per row, about 1 byte per entry

Without a copy the exchange has to be undone exactly: `fl(fl(X - s) + s) = X`. Floating-point addition does not promise
that, so every step ends by snapping the new weights to a point where it holds, `X <- fl(fl(X - s) + s)`, which moves an
entry by no more than the rounding of its own update. The two exchanges then need no memory at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["REFERENCES", "enter_", "leave_", "record_", "reference_bytes"]

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
    parameter.sub_(step).add_(step)  # one snap is enough: none of 6e8 random pairs, powers of two included, needed another


def enter_(kind: str, state: dict[str, Tensor], parameter: Tensor) -> None:
    """Exchange the weights with the previous iterate, in place."""
    if kind == "copy":
        _swap_(parameter, state["previous"])
    else:
        parameter.sub_(_step(kind, state, parameter))


def leave_(kind: str, state: dict[str, Tensor], parameter: Tensor) -> None:
    """Undo `enter_`, bit for bit."""
    if kind == "copy":
        _swap_(parameter, state["previous"])
    else:
        parameter.add_(_step(kind, state, parameter))


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


def _swap_(one: Tensor, other: Tensor) -> None:
    held = one.clone()
    one.copy_(other)
    other.copy_(held)
