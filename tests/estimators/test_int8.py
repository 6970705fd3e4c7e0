"""Momentum in 8 bits: its bytes, its error, exact resumption, and blocks that a shard has alone."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.estimators.quantize import QUANTIZERS


class Net(nn.Module):
    """A table, fused and plain maps, a kernel and vectors."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.table = nn.Embedding(30, width)
        self.attention = nn.MultiheadAttention(width, 2)
        self.conv = nn.Conv2d(5, 7, 3)
        self.head = nn.Linear(width, 30)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def gradients(module: nn.Module, step: int) -> dict[nn.Parameter, Tensor]:
    """Return gradients with a part that stays, and noise three times as large."""
    found = {}
    for number, parameter in enumerate(module.parameters()):
        steady = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 * step + number))
        found[parameter] = steady + 3 * noise
    return found


def train(module: nn.Module, optimizer: Gluon, steps: range) -> None:
    for step in steps:
        for parameter, gradient in gradients(module, step).items():
            parameter.grad = gradient
        optimizer.step()


def test_a_large_matrix_has_a_byte_and_a_scale_per_block() -> None:
    weight = nn.Parameter(torch.zeros(512, 896))
    optimizer = Gluon([{"params": [weight], "role": "hidden"}], lr=0.02, momentum_dtype="int8")
    assert optimizer.memory()["bytes_per_parameter"] == 1 + 4 / 128
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.memory()["bytes_per_parameter"] == 1 + 4 / 128


def momentum(optimizer: Gluon, parameter: nn.Parameter) -> Tensor:
    state = optimizer.state[parameter]
    if "momentum_scale" not in state:
        return state["momentum"]
    restored = QUANTIZERS["int8"].restore(state["momentum"], state["momentum_scale"], parameter.flatten(1))
    return restored.view(parameter.shape)


@pytest.mark.parametrize("beta", [0.9, 0.95, 0.99])
def test_the_error_of_the_momentum(beta: float) -> None:
    """Relative to the length of the momentum, after 60 steps; the comments say what was measured."""
    options: list[dict[str, Any]] = [{}, {"momentum_dtype": "int8"}]
    modules = [net() for _ in options]
    optimizers = [Gluon(one, lr=0.01, momentum=beta, **own) for one, own in zip(modules, options, strict=True)]
    for module, optimizer in zip(modules, optimizers, strict=True):
        train(module, optimizer, range(60))
    errors = []
    for full, rounded in zip(*(module.parameters() for module in modules), strict=True):
        exact, found = momentum(optimizers[0], full), momentum(optimizers[1], rounded)
        error = float((found - exact).norm() / exact.norm())
        if full.ndim == 1:
            assert error == 0
        else:
            errors.append(error)
    assert 0.001 < max(errors) < ERRORS[beta], errors


ERRORS = {0.9: 0.02, 0.95: 0.03, 0.99: 0.06}  # .0139, .0208, .0409


@pytest.mark.parametrize("method", ["gluon", "muon", "gluon-mvr2", "lionmuon", "gluon-lowrank"])
def test_resume_is_exact(method: str) -> None:
    module, other = net(), net()
    optimizers = [Gluon(one, lr=0.01, method=method, momentum_dtype="int8") for one in (module, other)]
    for optimizer in optimizers:
        optimizer.two_point = "none"  # nobody takes a second gradient
    train(module, optimizers[0], range(3))
    file = io.BytesIO()
    torch.save(optimizers[0].state_dict(), file)
    file.seek(0)
    optimizers[1].load_state_dict(torch.load(file, weights_only=True))
    other.load_state_dict(module.state_dict())
    train(module, optimizers[0], range(3, 6))
    train(other, optimizers[1], range(3, 6))
    for found, expected in zip(other.parameters(), module.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_rows_have_the_blocks_that_they_have_alone() -> None:
    matrix = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    whole = QUANTIZERS["int8"].quantize(matrix)
    shard = QUANTIZERS["int8"].quantize(matrix[2:4])
    assert torch.equal(whole[0][2:4], shard[0]) and torch.equal(whole[1][2:4], shard[1])


def test_other_codes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"floating-point dtype such as 'bfloat16', 'int8' or None, but got 'int4'"):
        Gluon(net(), lr=0.01, momentum_dtype="int4")
