"""Other dtypes, layouts and kinds of numbers than the usual ones give the same steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gluon import METHODS, Gluon


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def fill(params: list[nn.Parameter], step: int) -> None:
    """Give every parameter a contiguous gradient, whatever its own layout is."""
    generator = torch.Generator().manual_seed(step)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter.dtype)


def train(optimizer: Gluon, steps: int = 3) -> None:
    params = [layer.parameter for layer in optimizer.layers()]
    for step in range(steps):
        optimizer.step(lambda step=step: fill(params, step))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_torchs_default_dtype_changes_nothing(method: str, dtype: torch.dtype) -> None:
    results = []
    for default in (torch.float32, dtype):
        net = network()
        torch.set_default_dtype(default)
        optimizer = Gluon(net, lr=0.02, method=method)
        train(optimizer)
        torch.set_default_dtype(torch.float32)
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*results)
