"""Roles from names and shapes alone: they agree with those of the module where names tell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gluon.partition import partition, route_by_name


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("lm_head.weight", (40, 16), "head"),
        ("classifier.weight", (5, 16), "head"),
        ("model.embed_tokens.weight", (40, 16), "embedding"),
        ("transformer.wte.weight", (40, 16), "embedding"),
        ("patch_embed.proj.weight", (16, 3, 4, 4), "input"),
        ("conv1.weight", (16, 3, 3, 3), "input"),
        ("blocks.0.conv_dw.weight", (16, 1, 3, 3), "elementwise"),
        ("pos_embed", (1, 5, 16), "elementwise"),
        ("cls_token", (1, 1, 16), "elementwise"),
        ("norm.weight", (16, 5, 5), "bias"),
        ("blocks.0.fc1.weight", (32, 16), "hidden"),
        ("blocks.0.fc1.bias", (32,), "bias"),
        ("shared_expert_gate.weight", (1, 16), "bias"),
        ("param_3", (32, 16), "hidden"),
        ("param_4", (), "bias"),
    ],
)
def test_a_name_is_evidence(name: str, shape: tuple[int, ...], role: str) -> None:
    shapes = {"conv0.weight": (8, 8, 3, 3)} if "conv_dw" in name else {}
    *_, route = route_by_name({**shapes, name: shape})
    assert route.role == role and route.name == name
    assert "name" in route.reason or "shape" in route.reason or "kernel" in route.reason


def test_routes_keep_the_order_and_say_when_shape_alone_decided() -> None:
    routes = route_by_name([("b", (4, 4)), ("a", (4,))])
    assert [(route.name, route.reason) for route in routes] == [
        ("b", "matrix, by its shape alone"),
        ("a", "vector, by its shape"),
    ]


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(3, 5),
        nn.GRU(3, 5),
        nn.TransformerEncoderLayer(8, 2, 16),
        nn.ModuleDict({"embedding": nn.Embedding(9, 4)}),
    ],
    ids=["lstm", "gru", "transformer", "table"],
)
def test_torch_layers_are_read_as_with_their_module(module: nn.Module) -> None:
    routed = partition(module)
    for route in route_by_name((name, tensor.shape) for name, tensor in module.named_parameters()):
        assert (route.role, route.matrices) == (routed.role(route.name), routed.views(route.name))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_names_of_timm_tell_as_much_as_the_module(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        module = timm.create_model(name)
    routed = partition(module)
    for route in route_by_name({name: tuple(tensor.shape) for name, tensor in module.named_parameters()}):
        assert route.role == routed.role(route.name), route


def test_a_router_is_told_by_the_experts_beside_it() -> None:
    shapes = {"a.mlp.gate.weight": (3, 8), "a.mlp.experts.up_proj": (3, 4, 8), "b.mlp.gate.weight": (3, 8),
              "a.mlp.router.weight": (1, 8), "gate.weight": (3, 8)}  # fmt: skip
    roles = [route.role for route in route_by_name(shapes)]
    assert roles == ["router", "hidden", "hidden", "bias", "hidden"]


def test_one_name_for_two_parameters() -> None:
    with pytest.raises(ValueError, match="name of its own, but 'w' comes twice"):
        route_by_name([("w", (2, 2)), ("w", (2, 2))])
