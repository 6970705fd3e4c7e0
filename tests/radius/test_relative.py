"""The update-to-weight floor against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.radius import Observation, UpdateFloor, WeightSizes
from lightning_gluon.radius.control import RadiusControl
from lightning_gluon.radius.observe import StepRecord

EVIDENCE = StepRecord(torch.zeros(()))
LR, FLOOR = 0.1, 0.35


def polar(g: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(g, full_matrices=False)
    return left @ right


def test_replay_from_the_definition() -> None:
    """`t = max(1, floor ||W|| / ||U||) lr`, U the scaled polar factor of Nesterov's momentum."""
    large, small = (nn.Parameter(scale * torch.randn(6, 4, dtype=torch.float64)) for scale in (30.0, 0.1))
    params = [large, small]
    optimizer = Gluon([{"params": params, "role": "hidden"}], method="muon", lr=LR, orthogonalizer="svd")
    control = RadiusControl(UpdateFloor(FLOOR))
    control.begin(optimizer, None)
    expected, buffers = [p.detach().clone() for p in params], [torch.zeros(6, 4, dtype=torch.float64)] * 2
    longer = []
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for index, p in enumerate(params):
            p.grad = torch.randn(6, 4, generator=generator, dtype=torch.float64)
            buffers[index] = 0.95 * buffers[index] + p.grad
            u = math.sqrt(6 / 4) * polar(p.grad + 0.95 * buffers[index])
            t = max(1.0, FLOOR * (expected[index].norm() / u.norm()).item()) * LR
            longer.append(t > LR)
            expected[index] = expected[index] - t * u
        control.advance(EVIDENCE)
        optimizer.step()
        for p, x in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-10)
    assert longer[::2] == [True] * 5 and not any(longer[1::2])


def test_every_matrix_of_an_lmo_has_a_size_and_no_other_layer() -> None:
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.Linear(6, 3))
    found = {}
    for method in ("gluon", "muon", "adamw"):
        seen = WeightSizes(Gluon(net, method=method)).observe(EVIDENCE)
        found[method] = set(seen.get("layers", {}))
    assert found == {"gluon": {"0.weight", "1.weight", "2.weight"}, "muon": {"1.weight"}, "adamw": set()}
    assert UpdateFloor()(Observation(step=0)) is None


@pytest.mark.parametrize("norm", ["spectral", "sign", "row", "column"])
def test_a_direction_is_as_long_as_the_layer_says(norm: str) -> None:
    weight = nn.Parameter(torch.randn(6, 4))
    optimizer = Gluon([{"params": [weight], "role": "hidden", "norm": norm}], lr=1.0, orthogonalizer_dtype="float32")
    before, weight.grad = weight.detach().clone(), torch.randn(6, 4)
    size = optimizer.layers()[0].direction_size()
    optimizer.step()
    assert (weight - before).norm().item() == pytest.approx(size, rel=2e-2)


def test_floor_refuses() -> None:
    with pytest.raises(ValueError, match="0 < floor < inf, but got 0"):
        UpdateFloor(0)
