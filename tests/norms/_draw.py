"""Draws and products that tests of norms share."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = {"orthogonalizer": "svd"}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inner(a: Tensor, b: Tensor) -> float:
    return (a * b).sum().item()
