"""Layers as monitors see them: their own norm, their own radius."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon
from tests._models import backward, network


def test_one_radius_per_layer() -> None:
    net = network(torch.float64)
    optimizer = Gluon([{"params": [net[0].weight, net[2].weight], "role": "hidden", "radius": [1.0, 4.0]}], lr=0.1,
                      orthogonalizer="svd")  # fmt: skip
    before = [net[0].weight.detach().clone(), net[2].weight.detach().clone()]
    backward(net, 0)
    optimizer.step()
    lengths = [layer.norm(b - layer.parameter).item() for layer, b in zip(optimizer.layers(), before, strict=True)]
    assert lengths == pytest.approx([0.1, 0.4], rel=1e-9)
    assert [layer.step_length for layer in optimizer.layers()] == pytest.approx([0.1, 0.4])


def test_layers_measure_conv_and_fused_weights_in_their_own_norm() -> None:
    conv = nn.Conv2d(4, 8, 3, bias=False).double()
    optimizer = Gluon([{"params": [conv.weight], "role": "hidden"}], lr=0.1, orthogonalizer="svd")
    conv.weight.grad = torch.randn_like(conv.weight)
    before = conv.weight.detach().clone()
    layer = optimizer.layers()[0]
    optimizer.step()
    step = before - conv.weight.detach()
    assert layer.norm(step).item() == pytest.approx(0.1, rel=1e-9)
    assert (conv.weight.grad * step).sum().item() == pytest.approx(
        0.1 * layer.dual_norm(conv.weight.grad).item(), rel=1e-9
    )
