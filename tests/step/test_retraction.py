"""Retractions: where weights are brought back to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.norms.needs import Context, Statistic
from lightning_gluon.step.retraction import RETRACTIONS, Retraction
from tests._toys import gradients

pytestmark = pytest.mark.usefixtures("tables")


class Sphere(Retraction):
    """Keeps the Frobenius norm that a matrix has before the first step."""

    statistics = (Statistic("size", lambda rows, columns: (1, 1), lambda w: w.norm(dim=(-2, -1), keepdim=True)),)

    def retract_(self, weights: Tensor, context: Context) -> None:
        weights.mul_(context.statistics["size"] / weights.norm(dim=(-2, -1), keepdim=True))


def test_a_retraction_brings_weights_back() -> None:
    RETRACTIONS["toy"] = Sphere()
    params = [nn.Parameter(torch.randn(shape)) for shape in ((3, 5), (7, 3), (4, 4))]
    sizes = [p.detach().norm().item() for p in params]
    optimizer = Gluon([{"params": params, "role": "hidden", "retract": "toy"}], lr=0.3)
    for step in range(4):
        gradients(params, step)
        optimizer.step()
    assert [p.detach().norm().item() for p in params] == pytest.approx(sizes, rel=1e-5)


def weights(*, zero: bool = False) -> list[nn.Parameter]:
    shapes = ((3, 5), (7, 3), (4, 4), (5, 3))
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64) * (not zero)) for shape in shapes]


def test_hyperball_is_its_definition() -> None:
    """`W <- R N(W - lr R U / ||U||_F)`, `R = ||W_0||_F`, U the polar factor of Nesterov's momentum."""
    params = weights()
    optimizer = Gluon([{"params": params, "role": "hidden"}], method="hyperball", lr=0.3, orthogonalizer="svd")
    expected = [p.detach().clone() for p in params]
    sizes = [x.norm() for x in expected]
    buffers = [torch.zeros_like(x) for x in expected]
    for step in range(5):
        gradients(params, step)
        for index, p in enumerate(params):
            assert p.grad is not None
            buffers[index] = 0.95 * buffers[index] + p.grad
            left, _, right = torch.linalg.svd(p.grad + 0.95 * buffers[index], full_matrices=False)
            moved = expected[index] - 0.3 * sizes[index] * left @ right / (left @ right).norm()
            expected[index] = sizes[index] * moved / moved.norm()
        optimizer.step()
        for p, x in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_brake_is_its_definition(decay: float) -> None:
    """The outward part of the step counts half, and the norm changes by the radial part alone."""
    params = weights()
    group = {"params": params, "role": "hidden"}
    options: dict[str, Any] = {"scaling": "none", "orthogonalizer": "svd", "momentum": 0.0, "weight_decay": decay}
    optimizer = Gluon([group], method="gluon", lr=0.3, retract="brake", **options)
    expected = [p.detach().clone() for p in params]
    signs = set()
    for step in range(6):
        gradients(params, step)
        for index, p in enumerate(params):
            assert p.grad is not None
            left, _, right = torch.linalg.svd(p.grad, full_matrices=False)
            before, t = (1 - 0.3 * decay) * expected[index], -0.3 * left @ right
            size = before.norm()
            radial = (t * before).sum() / size
            signs.add(radial.item() > 0)
            braked = radial / 2 if radial > 0 else radial
            moved = before + t - (radial - braked) * before / size
            expected[index] = (size + braked) * moved / moved.norm()
        optimizer.step()
        for p, x in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-10)
    assert signs == {True, False}


def test_the_brake_keeps_no_state_and_leaves_zeros_alone() -> None:
    plain = Gluon([{"params": weights(), "role": "hidden"}]).memory()["state_bytes"]
    params = weights(zero=True)
    optimizer = Gluon([{"params": params, "role": "hidden"}], lr=0.1, retract="brake", orthogonalizer="svd")
    gradients(params, 0)
    optimizer.step()
    assert all(p.detach().norm() > 0.1 for p in params)
    assert optimizer.memory()["state_bytes"] == plain


@pytest.mark.parametrize("retract", ["sphere", "brake"])
@pytest.mark.parametrize("method", ["hyperball", "gluon", "muon"])
def test_a_step_of_radius_zero_stays(method: str, retract: str) -> None:
    params = weights()
    before = [p.detach().clone() for p in params]
    group = {"params": params, "role": "hidden"}
    optimizer = Gluon([group], method=method, radius={"hidden": 0.0}, retract=retract, weight_decay=0.0)
    for step in range(3):
        gradients(params, step)
        optimizer.step()
    for p, x in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-14)


def test_a_matrix_that_starts_at_zero_is_not_retracted() -> None:
    params = weights(zero=True)
    optimizer = Gluon([{"params": params, "role": "hidden"}], method="hyperball", lr=0.1, orthogonalizer="svd")
    for step in range(2):
        gradients(params, step)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        for p, x in zip(params, before, strict=True):
            assert torch.linalg.matrix_norm(x - p.detach(), 2).item() == pytest.approx(0.1, rel=1e-12)


def test_the_size_is_counted_and_only_matrices_are_retracted() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))
    groups = Gluon(net, method="gluon", retract="sphere").param_groups
    assert {group["role"] for group in groups if group["retract"]} == {"hidden", "head"}
    muon = Gluon(net, method="muon", retract="sphere").param_groups
    assert {group["role"] for group in muon if group["retract"]} == {"hidden"}
    with pytest.raises(ValueError, match=r"`retract` of group .* to be None, but got 'sphere': norm 'identity'"):
        Gluon(net, method="adamw", retract="sphere")
    with pytest.raises(ValueError, match=r"`retract` of group .* to be one of None, sphere, brake, but got 'cube'"):
        Gluon(net, retract="cube")
    ball = Gluon([{"params": weights(), "role": "hidden"}], method="hyperball")
    muon_bytes = Gluon([{"params": weights(), "role": "hidden"}], method="muon").memory()["state_bytes"]
    assert ball.memory()["state_bytes"] == muon_bytes + 4 * 8
