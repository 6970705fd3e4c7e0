"""Places of parameters, and what a module tree knows of its layers."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_gluon.partition.network import Network
from tests.partition._stand_ins import Attributes, deep, frozen, mlp, parameter


def test_a_place_sees_through_weight_norm() -> None:
    with pytest.warns(FutureWarning):
        lstm = nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    place = Network(Attributes(lstm=lstm)).place("lstm.weight_hh_l0_g", (16, 1))
    assert (place.local, place.gain, place.path, place.kind) == ("weight_hh_l0", True, "lstm", "LSTM")


def test_a_name_that_only_ends_like_a_magnitude_is_its_own() -> None:
    place = Network(Attributes(scale_g=parameter(3), body=nn.Linear(2, 2))).place("scale_g")
    assert (place.local, place.gain) == ("scale_g", False)


def test_layers_of_a_module() -> None:
    network = Network(Attributes(body=deep(), norm=nn.LayerNorm(2)))
    assert network.layers == ("body.0", "body.2", "body.4")
    assert (network.count("body"), network.first(""), network.last("")) == (3, "body.0", "body.4")
    assert (network.count("norm"), network.first("norm"), network.last("norm")) == (0, None, None)


def test_a_submodule_called_as_a_method_of_modules() -> None:
    network = Network(Attributes(to=nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)]), body=mlp(8, 8, 4)))
    assert network.count("to") == 2


def test_a_frozen_network_is_told_from_a_frozen_layer() -> None:
    network = Network(Attributes(teacher=frozen(mlp()), probe=frozen(nn.Linear(4, 2)), student=mlp()))
    assert [network.in_frozen_network(path) for path in ("teacher.2", "probe", "student.2")] == [True, False, False]
    assert not Network(frozen(Attributes(one=mlp(), two=mlp()))).in_frozen_network("one.0")
