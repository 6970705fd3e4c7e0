"""Retractions: where weights are brought back to."""

from __future__ import annotations

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
