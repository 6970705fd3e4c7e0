"""LionMuon's period, and what a long run must not do: allocate."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon


def weights_and_steps(every: int, steps: int, **options: float) -> list[torch.Tensor]:
    """Return the updates of one 12 x 20 matrix under seeded gradients, per unit of lr."""
    weight = nn.Parameter(torch.zeros(12, 20, dtype=torch.float64))
    optimizer = Gluon(
        [{"params": [weight], "role": "hidden"}],
        lr=1.0,
        method="lionmuon",
        every=every,
        orthogonalizer="svd",
        **options,
    )
    updates = []
    for k in range(steps):
        weight.grad = torch.randn(12, 20, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        before = weight.detach().clone()
        optimizer.step()
        updates.append(before - weight.detach())
    return updates


def test_spectral_every_step_by_hand() -> None:
    """u = b1 M + (1 - b1) g, then M = b2 M + (1 - b2) g; step 0 is spectral."""
    momentum = None
    for k, update in enumerate(weights_and_steps(every=1, steps=4)):
        g = torch.randn(12, 20, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        momentum = g if momentum is None else momentum
        u, _, v = torch.linalg.svd(0.9 * momentum + 0.1 * g, full_matrices=False)
        torch.testing.assert_close(update, math.sqrt(12 / 20) * u @ v, rtol=0, atol=1e-10)
        momentum = 0.99 * momentum + 0.01 * g


def test_signs_between_the_spectral_steps() -> None:
    updates = weights_and_steps(every=3, steps=7, sign_radius=0.5)
    spectral = weights_and_steps(every=1, steps=7)
    rms = spectral[0].square().mean().sqrt()
    for k, update in enumerate(updates):
        if k % 3 == 0:
            torch.testing.assert_close(update, spectral[k], rtol=0, atol=1e-10)
        else:
            assert update.abs().unique().numel() < 8, "one magnitude, up to rounding"
            torch.testing.assert_close(update.abs(), torch.full_like(update, float(0.5 * rms)))


def test_bad_period() -> None:
    with pytest.raises(ValueError, match="`every` of group 'hidden' to be a whole number of steps >= 1, but got 0"):
        weights_and_steps(every=0, steps=1)


@pytest.mark.parametrize("method", ["gluon", "muon", "lionmuon"])
def test_a_thousand_steps_allocate_nothing_more(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    optimizer = Gluon(net, lr=1e-3, method=method)
    for p in net.parameters():
        p.grad = torch.randn_like(p)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    for _ in range(10):
        optimizer.step()
    before, kept = tensors(), optimizer.memory()
    for _ in range(1000):
        optimizer.step()
    assert tensors() == before and optimizer.memory() == kept


def test_idle_experts_leave_nothing_behind() -> None:
    """Every step another set of parameters has a gradient."""
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(4, 4) for _ in range(10)])
    optimizer = Gluon(net, lr=1e-3)

    def step(number: int) -> None:
        for bit, expert in enumerate(net):
            for p in expert.parameters():
                p.grad = torch.randn_like(p) if number >> bit & 1 else None
        optimizer.step()

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    def tour() -> int:
        for number in [*range(1, 300), 1023]:
            step(number)
        return tensors()

    tour()
    assert tour() == tour(), "of the plans that were forgotten nothing is left"
