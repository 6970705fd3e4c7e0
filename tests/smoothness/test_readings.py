"""Readings of one layer between two iterates, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon
from lightning_gluon.smoothness.fit import noise_only
from lightning_gluon.smoothness.readings import Pair, combine, derive, measure


def test_readings_by_hand():
    layer = Gluon(nn.Linear(2, 2, bias=False), lr=0.1).layers()[0]
    with torch.no_grad():
        layer.parameter.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    step = torch.diag(torch.tensor([0.2, -0.1]))
    grad, old = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([4.0, 0.0]))
    found = derive(measure([Pair(layer, grad, layer.parameter + step, torch.zeros(2, 2), old=old)])[0])
    expected = {
        "grad_dual_norm": 3.0,
        "weight_norm": 3.0,
        "update_norm": 0.2,
        "update_rms": math.sqrt(0.05 / 4),
        "L_trajectory": 15.0,
        "L_hat": 15.0,
        "noise_only": math.sqrt(2) * 15,
        "noise_ratio": 1.0,
        "same_to_different": 1.0,
        "agreement": 1.5,  # <g, T> / t = (0.4 - 0.1) / 0.2
        "alignment": 4.0,
        "curvature": 12.5,  # (0.8 - 0.3) / 0.04
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_transported_gradients_stand_for_minibatches_only():
    layer = Gluon(nn.Linear(2, 2, bias=False), lr=0.1).layers()[0]
    before = layer.parameter.detach() + torch.diag(torch.tensor([0.2, -0.1]))
    there, last = torch.diag(torch.tensor([9.0, 1.0])), torch.diag(torch.tensor([4.0, 1.0]))
    new, old = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([4.0, 0.0]))
    found = derive(measure([Pair(layer, there, before, last, new=new, old=old)])[0])
    plain = derive(measure([Pair(layer, new, before, last, old=old)])[0])
    for key in ("grad_dual_norm", "L_hat", "agreement", "alignment", "curvature"):
        assert found[key] == plain[key]
    assert found["L_trajectory"] == pytest.approx(25.0, rel=1e-5)
    assert found["noise_only"] == pytest.approx(math.sqrt(2) * 50, rel=1e-5)
    assert found["noise_ratio"] == pytest.approx(0.5, rel=1e-5)


def test_role_is_the_product_of_its_layers():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    groups = [{"params": list(model.parameters()), "role": "hidden"}]
    layers = Gluon(groups, lr=0.1).layers()
    gradients = [torch.randn(3, 3) for _ in layers]
    before = [layer.parameter.detach() + torch.randn(3, 3) for layer in layers]
    pairs = [Pair(*some) for some in zip(layers, gradients, before, strict=True)]
    raws = measure(pairs)
    whole = combine(raws)
    assert whole["grad"] == pytest.approx(sum(raw["grad"] for raw in raws))
    assert whole["step"] == max(raw["step"] for raw in raws)
    assert "same" not in whole
    # Hoelder: the product's pairing is bounded by norm times dual norm.
    assert abs(whole["grad_step"]) <= whole["grad"] * whole["step"]


def test_nothing_moved_gives_nan_and_no_layers_give_nothing():
    layer = Gluon(nn.Linear(2, 2, bias=False), lr=0.1).layers()[0]
    found = derive(measure([Pair(layer, torch.ones(2, 2), layer.parameter.detach().clone())])[0])
    assert math.isnan(found["L_hat"])
    assert math.isnan(found["agreement"])
    assert math.isnan(noise_only(1.0, 0.0))
    assert measure([]) == []


def test_a_scalar_parameter_has_a_norm():
    groups = [{"params": [("temperature", nn.Parameter(torch.tensor(2.0)))], "role": "elementwise"}]
    layer = Gluon(groups, lr=0.1).layers()[0]
    found = derive(measure([Pair(layer, torch.tensor(-3.0), torch.tensor(2.5))])[0])
    assert (found["weight_norm"], found["grad_dual_norm"], found["update_norm"]) == (2.0, 3.0, 0.5)
    assert found["agreement"] == -3.0


def test_quick_norms_are_close_to_the_exact_ones():
    layer = Gluon(nn.Linear(48, 32, bias=False), lr=0.1).layers()[0]
    for tensor in (torch.randn(32, 48), torch.randn(32, 2) @ torch.randn(2, 48), torch.zeros(32, 48)):
        assert float(layer.norm(tensor, exact=False)) == pytest.approx(float(layer.norm(tensor)), rel=0.03)
        assert float(layer.dual_norm(tensor, exact=False)) == pytest.approx(float(layer.dual_norm(tensor)), rel=0.03)
