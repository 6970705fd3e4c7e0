"""One place of a parameter: names without wrappers, the module that holds it, attributes and configurations."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_gluon.partition.network import Network
from lightning_gluon.partition.place import is_adapter, look_up, strip_wrappers
from tests.partition._stand_ins import Attributes, mlp, parameter


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("", ()),
        ("_orig_mod.body.0", ("body", "0")),
        ("base_model.layer.base_layer", ("base_model", "layer")),
        ("score.modules_to_save.default", ("score",)),
        ("layer.lora_B.default", ("layer",)),
    ],
)
def test_wrappers_are_left_out(path: str, parts: tuple[str, ...]) -> None:
    assert strip_wrappers(path) == parts


def test_adapters() -> None:
    assert [is_adapter(path) for path in ("a.lora_A.default", "a.b", "lora")] == [True, False, False]


def test_a_layer_and_who_holds_it() -> None:
    net = Attributes(block=Attributes(attention=mlp()))
    place = Network(net).place("block.attention.0.weight", (16, 8))
    assert [name for name, _ in place.holders] == ["0", "attention", "block"]
    assert (place.layer, place.kind, place.label, place.is_vector) == ("0", "Linear", "weight", False)
    assert place.around[-1] is net and place.owned_by("Lin") and not place.owned_by("Conv")


def test_members_of_a_list_go_by_its_name() -> None:
    net = Attributes(gammas=nn.ParameterList([parameter(4)]), body=mlp())
    assert Network(net).place("gammas.0", (4,)).label == "gammas"


def test_attributes_come_before_configurations() -> None:
    module = Attributes()
    module.config = type("Config", (), {"heads": 3, "size": 8})
    module.size = 4
    assert (look_up((module,), "size"), look_up((module,), "n_heads", "heads"), look_up((module,), "no")) == (
        4,
        3,
        None,
    )
