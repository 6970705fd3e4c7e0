"""Small models and their batches, shared by tests."""

from __future__ import annotations

import torch
from torch import nn


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.LayerNorm(24), nn.Linear(24, 5))
    return net.to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(64, 12, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.sin(3 * x[:, :5]).to(dtype)


def backward(net: nn.Module, step: int) -> torch.Tensor:
    x, y = batch(step, next(net.parameters()).dtype)
    net.zero_grad()
    loss = (net(x) - y).square().mean()
    loss.backward()
    return loss


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in net.parameters()])
