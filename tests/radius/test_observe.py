"""Measurements on the steps of an optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon
from lightning_gluon.radius.observe import GroupReadings, LayerReadings, Measurement, StepRecord, WindowLoss
from lightning_gluon.smoothness.readings import Pair, combine, derive, measure


def pairs_of(method: str) -> tuple[Gluon, list[Pair]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = Gluon(model, lr=0.1, method=method)
    pairs = []
    for layer in optimizer.layers():
        before, old = torch.randn_like(layer.parameter), torch.randn_like(layer.parameter)
        pairs.append(Pair(layer, torch.randn_like(layer.parameter), before, old=old))
    return optimizer, pairs


def test_readings_by_group_are_those_of_a_product_space():
    optimizer, pairs = pairs_of("gluon")
    found = GroupReadings(optimizer).observe(StepRecord(torch.zeros(()), pairs))["layers"]
    assert set(found) == {"hidden", "head", "bias"}
    raws = [raw for pair, raw in zip(pairs, measure(pairs), strict=True) if pair.layer.role == "bias"]
    assert len(raws) == 3
    expected = {**derive(combine(raws)), "lr": 0.1, "radius": 0.1}
    assert found["bias"] == pytest.approx(expected, nan_ok=True)


def test_readings_by_layer_leave_adamw_its_groups():
    optimizer, pairs = pairs_of("muon")
    found = LayerReadings(optimizer).observe(StepRecord(torch.zeros(()), pairs))["layers"]
    assert set(found) == {"0.weight", "1.weight", "head", "bias"}


def test_steps_without_a_sample_have_no_readings():
    optimizer, _ = pairs_of("gluon")
    assert GroupReadings(optimizer).observe(StepRecord(torch.zeros(()))) == {"layers": {}}


def test_a_measurement_has_to_measure():
    with pytest.raises(NotImplementedError):
        Measurement(pairs_of("gluon")[0]).observe(StepRecord(torch.zeros(())))


def test_loss_of_a_window():
    loss = WindowLoss()
    assert loss.mean(4) == 0
    for part in (1.0, 2.0):
        loss.add(torch.tensor(part) / 4)  # as Lightning divides it, at the end of an epoch as well
    assert loss.mean(4) == 1.5
    assert loss.mean(None) == 0.75
    other = WindowLoss()
    other.load_state_dict(loss.state_dict())
    other.add(torch.tensor(3.0) / 4)
    assert other.mean(4) == 2.0
    loss.clear()
    assert (loss.mean(4), loss.parts) == (0, 0)
