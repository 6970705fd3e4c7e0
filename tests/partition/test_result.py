"""The answer of a partition: by name, by identity, by role."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gluon.norms.views import covers
from lightning_gluon.partition import Partition, Route, partition
from lightning_gluon.roles import ROLES
from tests.partition._stand_ins import deep


def test_every_parameter_is_found_by_name_and_by_identity() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    p = partition(net)
    assert isinstance(p, Partition) and list(p.routes) == [name for name, _ in net.named_parameters()]
    for name, tensor in net.named_parameters():
        route = p.find(tensor)
        assert isinstance(route, Route) and route.name == name and p.parameter(name) is tensor and name in p
        assert route.role in ROLES and route.shape == tuple(tensor.shape) and route.numel == tensor.numel()
        assert not route.views or covers(route.views, route.shape)
    assert p.find(nn.Parameter(torch.zeros(1))) is None and "nothing" not in p
    assert [route.name for route in p.by_role()["bias"]] == ["0.bias", "3.bias"]
    assert [route for route, _ in p] == [route for route, _ in p.parameters()]


def test_an_unknown_name() -> None:
    p = partition(deep())
    with pytest.raises(KeyError, match=r"got '0.wieght'. Did you mean '0.weight'"):
        p.role("0.wieght")
