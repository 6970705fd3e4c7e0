"""The decision about one parameter."""

from __future__ import annotations

import pickle

from torch import nn

from lightning_gluon.partition import partition


def test_routes_are_plain_and_can_be_pickled() -> None:
    route = partition(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).route("0.weight")
    assert pickle.loads(pickle.dumps(route)) == route
