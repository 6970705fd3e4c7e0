"""What the step gives to the parts that declare a need."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon, register_norm
from lightning_gluon.norms.needs import Partner
from tests._toys import Balanced, Paired, Weighted, gradients

pytestmark = pytest.mark.usefixtures("tables")


def test_a_norm_reads_the_weights_of_its_stack() -> None:
    register_norm("toy", Weighted)
    params = [nn.Parameter(torch.randn(3, 5, dtype=torch.float64)) for _ in range(3)]
    optimizer = Gluon([{"params": params, "role": "hidden", "norm": "toy"}], lr=0.1)
    gradients(params, 0)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    for p, x in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), x - 0.1 * (p.grad + x) / (p.grad + x).norm(), rtol=0, atol=1e-12)


def test_a_norm_keeps_statistics_per_matrix() -> None:
    """Two shapes, several steps: every matrix has statistics of its own, in the state and in a loaded state."""
    register_norm("toy", Balanced)
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 5), (3, 5), (4, 2))]
    optimizer = Gluon([{"params": params, "role": "hidden", "norm": "toy"}], lr=0.1, momentum=0.0)
    x = [p.detach().clone() for p in params]
    square = [torch.zeros(p.shape[0], 1, dtype=torch.float64) for p in params]
    for step in range(3):
        gradients(params, step)
        optimizer.step()
        for index, p in enumerate(params):
            square[index] = 0.5 * square[index] + 0.5 * p.grad.square().mean(-1, keepdim=True)
            d = p.grad / square[index].sqrt()
            x[index] = x[index] - 0.1 * d / d.norm()
            torch.testing.assert_close(p.detach(), x[index], rtol=0, atol=1e-12)
    assert optimizer.state[params[2]]["row_square0"].shape == (1, 4, 1)
    assert optimizer.memory()["state_bytes"] == sum(8 * (p.numel() + p.shape[0]) for p in params)


def test_a_norm_reads_its_partner_as_it_was_before_the_step() -> None:
    """Two factors that move in one step: each reads the old value of the other, whichever comes first."""
    register_norm("toy", Paired)
    a, b = (nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((2, 5), (3, 2)))
    group = {"params": [a, b], "role": "hidden", "norm": "toy", "partners": [Partner(b), Partner(a)]}
    optimizer = Gluon([group], lr=0.5, momentum=0.0)
    old = {p: p.detach().clone() for p in (a, b)}
    gradients([a, b], 0)
    optimizer.step()
    for p, partner in ((a, b), (b, a)):
        expected = old[p] - 0.5 * p.grad / p.grad.norm() / (1 + old[partner].norm())
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-12)
