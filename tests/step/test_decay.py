"""Decays: on all entries, or by the directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.step.decay import DECAYS, Decay
from tests._toys import gradients

pytestmark = pytest.mark.usefixtures("tables")


class Outward(Decay):
    """Shrinks the entries whose step points inwards; reads the directions."""

    reads_units = True

    def shrink_(self, weights: list[Tensor], keep: float | Tensor, units: list[Tensor]) -> None:
        for weight, unit in zip(weights, units, strict=True):
            weight.copy_(torch.where(weight * unit > 0, weight * keep, weight))


@pytest.mark.parametrize(("norm", "role"), [("spectral", "hidden"), ("identity", "bias"), ("rms", "bias")])
def test_a_decay_reads_the_directions(norm: str, role: str) -> None:
    DECAYS["outward"] = Outward()
    shape = (3, 5) if role == "hidden" else (6,)
    p = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    twin = nn.Parameter(p.detach().clone())
    options = {"orthogonalizer": "svd"} if role == "hidden" else {}
    before = p.detach().clone()
    for parameter, decay, weight_decay in ((p, "outward", 2.0), (twin, "plain", 0.0)):
        group = {"params": [parameter], "role": role, "norm": norm, "decay": decay, **options}
        optimizer = Gluon([group], lr=0.1, weight_decay=weight_decay, radius={role: 1.0})
        gradients([parameter], 0)
        optimizer.step()
    unit = before - twin.detach()
    expected = torch.where(before * unit > 0, before * (1 - 0.1 * 2.0), before) - unit
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-12)
