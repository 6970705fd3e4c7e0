"""Other dtypes, layouts and kinds of numbers than the usual ones give the same steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_gluon import METHODS, Gluon
from tests._toys import needed


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
        optimizer = Gluon(net, lr=0.02, method=method, total_steps=8, **needed(method))
        train(optimizer)
        torch.set_default_dtype(torch.float32)
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*results)


def laid_out(kind: str, values: torch.Tensor) -> tuple[nn.Parameter, torch.Tensor]:
    """Return a parameter of those values in a layout of its own, and the memory around it."""
    if kind == "sliced":
        around = torch.full((*values.shape[:-1], 2 * values.shape[-1]), 7.0)
        around[..., ::2] = values
        return nn.Parameter(around[..., ::2]), around[..., 1::2]
    if kind == "channels_last":
        return nn.Parameter(values.clone(memory_format=torch.channels_last)), values[:0]
    return nn.Parameter(values.mT.contiguous().mT), values[:0]


@pytest.mark.parametrize("kind", ["sliced", "channels_last", "transposed"])
@pytest.mark.parametrize("method", METHODS)
def test_a_layout_that_the_gradient_does_not_share(method: str, kind: str) -> None:
    values = torch.randn(6, 4, 3, 5)
    parameter, around = laid_out(kind, values)
    plain = nn.Parameter(values.clone())
    for some in (parameter, plain):
        train(Gluon([some], lr=0.1, method=method, total_steps=8, **needed(method)))
    torch.testing.assert_close(parameter, plain, rtol=0, atol=1e-5)
    assert (around == 7).all(), "wrote between the entries"


@pytest.mark.parametrize("method", ["adamw", "muon", "gluon"])
def test_a_state_is_loaded_into_another_layout_and_dtype(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 3))
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    optimizer, resumed = Gluon(net, lr=0.02, method=method), Gluon(other, lr=0.02, method=method)
    train(optimizer)
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    for some in (optimizer, resumed):
        train(some)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    half = Gluon(copy.deepcopy(net).bfloat16(), lr=0.02, method=method)
    half.load_state_dict(optimizer.state_dict())
    train(half)
    for layer, two in zip(half.layers(), optimizer.layers(), strict=True):
        torch.testing.assert_close(layer.parameter.float(), two.parameter, rtol=0, atol=0.2)


@pytest.mark.parametrize(
    ("method", "options"), [("limuon", {"rank": 1}), ("gluon", {"orthogonalizer": "svd"}), ("gluon", {}), ("muon", {})]
)
def test_a_step_under_autocast_is_the_same(method: str, options: dict) -> None:
    results = []
    for enabled in (False, True):
        net = network()
        optimizer = Gluon(net, lr=0.02, method=method, **options)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            train(optimizer)
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*results)
