"""Kernels: the weights `w_k` that an estimator gives to gradients `k` steps old, and estimators built from them.

An estimator that is linear in past gradients is a kernel that sums to 1. Two numbers do most of the work: the weight of
the newest gradient, `w_0`, and the mean age `a = sum k w_k`.

    ema        w_0 = 1 - b,        a = b / (1 - b)
    nesterov   w_0 = 1 - b^2,      a = b^2 / (1 - b)
    dual       w_0 = 1 - b1,       a = b1 / (1 - b2)            u = b1 M + (1 - b1) g,   M <- b2 M + (1 - b2) g
    mix        the means over its parts, by their weights       u = sum_j w_j M_j,       M_j <- b_j M_j + (1 - b_j) g

`dual` and `mix` change while they train: up to the switch they are an ema (or `dual` a nesterov), from there on they go
linearly from a long memory to a short one. Ages are shares of the training's length. The buffers are kept at the
switch, so the direction does not jump.

References:
    LionMuon, arXiv 2605.19811 (the dual form). Kernels of momentum, arXiv 2608.22994.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["Kernel", "dual", "dual_at", "dual_kernel", "mix", "mix_at", "mix_kernel"]

Tensors: TypeAlias = list[Tensor]
Buffers: TypeAlias = Mapping[str, Tensors]
GroupOptions: TypeAlias = Mapping[str, Any]
Weight: TypeAlias = float | Tensor


class Kernel(NamedTuple):
    """Two numbers of a kernel: the weight of the newest gradient, and the mean age in steps."""

    newest: float
    age: float


def ema_kernel(options: GroupOptions) -> Kernel:
    """Return the kernel of `M <- b M + (1 - b) g`."""
    kept = options["momentum"]
    return Kernel(1 - kept, kept / (1 - kept))


def nesterov_kernel(options: GroupOptions) -> Kernel:
    """Return the kernel of `b M + (1 - b) g` with M after its update."""
    kept = options["momentum"]
    return Kernel(1 - kept**2, kept**2 / (1 - kept))


def carried_kernel(options: GroupOptions) -> Kernel:
    """Return the kernel of `b M + (1 - b) g` with M before its own update by `b2`."""
    kept, carried = options["momentum"], options["momentum_carry"]
    return Kernel(1 - kept, kept / (1 - carried))


# ------------------------------------------------------------------ the place in the training


def _anneal(options: GroupOptions) -> float | None:
    """Return how much of the way from the switch to the end is done; `None` before the switch."""
    done = min(1.0, options["steps"] / options["total_steps"])
    if done < options["switch"] or options["switch"] == 1:
        return None
    return (done - options["switch"]) / (1 - options["switch"])


def _between(ends: tuple[float, float], share: float) -> float:
    first, last = ends
    return first + share * (last - first)  # exact where both are the same


# ------------------------------------------------------------------ one buffer, two weights


def dual_at(options: GroupOptions) -> dict[str, float]:
    """Return this step's weights of the gradient: `newest` in the direction, `carry` in the buffer.

    An age shorter than `1 - newest` steps does not exist: there the buffer is the last gradient.

    Example:
        >>> options = {"momentum": 0.75, "kernel_before": "ema", "switch": 0.5, "steps": 0, "total_steps": 80}
        >>> options |= {"kernel_start": (0.25, 0.3), "kernel_end": (0.25, 0.15)}
        >>> dual_at(options), dual_at(options | {"steps": 40}), dual_at(options | {"steps": 80})
        ({'newest': 0.25, 'carry': 0.25}, {'newest': 0.25, 'carry': 0.03125}, {'newest': 0.25, 'carry': 0.0625})
    """
    share, kept = _anneal(options), options["momentum"]
    if share is None:
        early = BEFORE[options["kernel_before"]](options)
        return {"newest": early.newest, "carry": 1 - kept}
    start, end = options["kernel_start"], options["kernel_end"]
    newest = _between((start[0], end[0]), share)
    age = _between((start[1], end[1]), share) * options["total_steps"]
    return {"newest": newest, "carry": (1 - newest) / age if age > 1 - newest else 1.0}


def dual(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    """Return `b1 M + (1 - b1) g`, then advance `M <- b2 M + (1 - b2) g`."""
    momentum = buffers["momentum"]
    direction = [average.clone() for average in momentum]
    lerp_(direction, new, options["newest"])
    lerp_(momentum, new, options["carry"])
    return direction


def dual_kernel(options: GroupOptions) -> Kernel:
    """Return the kernel of the present step's weights."""
    now = dual_at(options)
    return Kernel(now["newest"], (1 - now["newest"]) / now["carry"])


BEFORE = {"ema": ema_kernel, "nesterov": nesterov_kernel}


# ------------------------------------------------------------------ a mixture


def mix_at(options: GroupOptions) -> dict[str, list[float]]:
    """Return this step's weights of the gradient in every average, and the weights of the averages.

    The ages lie at equal ratios between the youngest and the oldest. The weights of all but the oldest grow linearly
    with their number.

    Example:
        >>> options = {"momentum": 0.75, "mix": 3, "mix_ages": (0.01, 0.04), "mix_weights": (0.7, 0.1)}
        >>> now = mix_at({**options, "switch": 0.5, "steps": 100, "total_steps": 100})
        >>> [round(newest, 3) for newest in now["newest"]], [round(weight, 3) for weight in now["weights"]]
        ([0.5, 0.333, 0.2], [0.3, 0.6, 0.1])
    """
    count, share = options["mix"], _anneal(options)
    oldest = _between(options["mix_weights"], share or 0.0)
    step = (1 - oldest) / (count * (count - 1) / 2)
    weights = [number * step for number in range(1, count)]
    if share is None:
        newest = [1 - options["momentum"]] * count
    else:
        newest = [1 / (1 + age) for age in _ages(options)]
    return {"newest": newest, "weights": [*weights, oldest]}


def _ages(options: GroupOptions) -> list[float]:
    youngest, oldest = options["mix_ages"]
    count, length = options["mix"], options["total_steps"]
    ratio = (oldest / youngest) ** (1 / (count - 1))
    return [length * youngest * ratio**number for number in range(count)]


def mix(buffers: Buffers, new: Tensors, old: Tensors, options: GroupOptions) -> Tensors:
    """Advance every average, and return their weighted sum."""
    direction = [torch.zeros_like(gradient) for gradient in new]
    for average, newest, weight in zip(buffers.values(), options["newest"], options["weights"], strict=True):
        lerp_(average, new, newest)
        add_(direction, average, weight)
    return direction


def mix_kernel(options: GroupOptions) -> Kernel:
    """Return the kernel of the present step's weights."""
    now = mix_at(options)
    parts = list(zip(now["newest"], now["weights"], strict=True))
    age = sum(weight * (1 - newest) / newest for newest, weight in parts)
    return Kernel(sum(weight * newest for newest, weight in parts), age)


# ------------------------------------------------------------------ weights that are numbers or tensors


def lerp_(tensors: Tensors, ends: Tensors, weight: Weight) -> None:
    """Move tensors a share of the way to others; the share is a tensor in a compiled step."""
    if isinstance(weight, Tensor):
        for tensor, end in zip(tensors, ends, strict=True):
            tensor.lerp_(end, weight)
        return
    torch._foreach_lerp_(tensors, ends, weight)


def add_(tensors: Tensors, others: Tensors, weight: Weight) -> None:
    """Add others times a weight to tensors; the weight is a tensor in a compiled step."""
    if isinstance(weight, Tensor):
        for tensor, other in zip(tensors, others, strict=True):
            tensor.addcmul_(other, weight)
        return
    torch._foreach_add_(tensors, others, alpha=weight)
