"""Toy parts of a step: a norm with each need, gradients to step with, options that a method asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_gluon import METHODS
from lightning_gluon.methods import Method, Rule
from lightning_gluon.norms import Euclidean
from lightning_gluon.norms.needs import Context, Statistic


@dataclass(frozen=True)
class Weighted(Euclidean):
    """Reads the weights: the direction is that of the momentum plus the weights."""

    matrices: ClassVar[bool] = True
    attains: ClassVar[bool] = False
    reads_weights: ClassVar[bool] = True

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        assert context.weights is not None
        return self.lmo(stack + context.weights)


@dataclass(frozen=True)
class Balanced(Euclidean):
    """Keeps a running mean of the rows' squares."""

    matrices: ClassVar[bool] = True
    attains: ClassVar[bool] = False
    statistics: ClassVar[tuple[Statistic, ...]] = (Statistic("row_square", lambda rows, columns: (rows, 1)),)

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        square = context.statistics["row_square"]
        square.lerp_(stack.square().mean(-1, keepdim=True), 0.5)
        return self.lmo(stack / square.sqrt().clamp_min(1e-30))


@dataclass(frozen=True)
class Paired(Euclidean):
    """Reads the other factor of a product: the direction is scaled by its length before the step."""

    matrices: ClassVar[bool] = True
    attains: ClassVar[bool] = False
    reads_partner: ClassVar[bool] = True

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        lengths = torch.stack([1 / (1 + partner.weight.norm()) for partner in context.partners])
        return self.lmo(stack) * lengths[:, None, None]


def needed(method: str) -> dict[str, Any]:
    """Return the options that a method asks for."""
    return {"mimuon": {"gate": 0.05}}.get(method, {})


def gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def method_of(norm: str) -> Method:
    gluon = METHODS["gluon"]
    return replace(gluon, rules={**gluon.rules, "hidden": Rule(norm, "ema"), "input": Rule(norm, "ema")})
