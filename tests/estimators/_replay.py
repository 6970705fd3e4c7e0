"""One matrix in fp64 on noisy gradients that depend on where they are taken: what replays from definitions compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gluon import Gluon

EXACT = 1e-10  # fp64, exact singular values; measured 2e-14 at most
LR = 0.1
STEPS = 8
SHAPE = (6, 10)

Estimate = Iterator[tuple[Tensor, Tensor]]  # of every step: where the weights are, and the direction


def gradient(step: int, x: Tensor) -> Tensor:
    """Return the gradient of a step's sample at some weights."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x + x.pow(3) / 3 + noise * (1 + 0.1 * x)


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(99), dtype=torch.float64)


def lmo(m: Tensor) -> Tensor:
    """Return the point of the spectral unit ball (RMS to RMS) that is farthest along a matrix."""
    u, _, v = torch.linalg.svd(m, full_matrices=False)
    return math.sqrt(m.shape[0] / m.shape[1]) * u @ v


def replayed(estimate: Callable[[int, list[Tensor]], tuple[Tensor, Tensor]], steps: int = STEPS) -> list[Tensor]:
    """Return the iterates of `X <- Y - lr D(M)`, where `estimate(step, iterates)` gives `Y` and `M`."""
    path = [start()]
    for step in range(steps):
        base, direction = estimate(step, path)
        path.append(base - LR * lmo(direction))
    return path


def optimizer_of(weight: nn.Parameter, method: str, **options: Any) -> Gluon:
    groups = [{"params": [weight], "role": "hidden"}]
    return Gluon(groups, lr=LR, method=method, orthogonalizer="svd", **options)


def take(optimizer: Gluon, weight: nn.Parameter, step: int) -> None:
    """Take a step with a closure."""

    def closure() -> None:
        weight.grad = gradient(step, weight.detach()).to(weight.dtype)

    optimizer.step(closure)


def trained(method: str, steps: int = STEPS, **options: Any) -> list[Tensor]:
    """Return the iterates of a method."""
    weight = nn.Parameter(start())
    optimizer = optimizer_of(weight, method, **options)
    path = [weight.detach().clone()]
    for step in range(steps):
        take(optimizer, weight, step)
        path.append(weight.detach().clone())
    return path


def gap(one: list[Tensor], other: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))
