"""The user's rules: what they match, what they may say, what is refused."""

from __future__ import annotations

import math
from collections import UserDict, UserList
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon
from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition import partition
from tests.partition._stand_ins import Attributes, deep, parameter


def test_rules_by_glob_type_and_callable_first_match_wins() -> None:
    p = partition(deep(), rules=[("0.*", "embedding"), ("*.weight", "head"), (nn.Linear, "hidden")])
    assert [p.role(f"{i}.weight") for i in (0, 2, 4)] == ["embedding", "head", "head"]
    assert {p.role(f"{i}.bias") for i in (0, 2, 4)} == {"bias"}, "a matrix role leaves vectors alone"
    assert "0.*" in p.reason("0.weight")

    def first(name: str, parameter: nn.Parameter, module: nn.Module) -> str | None:
        assert isinstance(module, nn.Linear) and isinstance(parameter, nn.Parameter)
        return "elementwise" if name.startswith("0") else None

    p = partition(deep(), rules={"*": first})
    assert (p.role("0.weight"), p.role("0.bias"), p.role("2.weight")) == ("elementwise", "elementwise", "hidden")


def test_a_module_type_covers_all_inside_it() -> None:
    class Block(nn.Sequential):
        pass

    p = partition(nn.Sequential(nn.Linear(4, 4), Block(nn.Linear(4, 4), nn.Linear(4, 2))), rules={Block: "elementwise"})
    assert [p.role(n) for n in ("0.weight", "1.0.weight", "1.1.bias")] == ["hidden", "elementwise", "elementwise"]


def test_rules_set_norm_views_and_reason() -> None:
    p = partition(deep(), rules={"2.weight": {"role": "hidden", "norm": "row", "views": (2, 6), "reason": "two maps"}})
    assert p.views("2.weight") == [(2, 8), (6, 8)]
    assert (p.route("2.weight").norm, p.reason("2.weight")) == ("row", "two maps")
    view = MatrixView.whole((8, 8), transposed=True)
    assert partition(deep(), rules={"2.weight": {"role": "hidden", "views": [view]}}).route("2.weight").views == (view,)


def test_an_override_keeps_the_matrices_that_were_found() -> None:
    net = Attributes(attn=nn.MultiheadAttention(4, 2), out=nn.Linear(4, 2))
    p = partition(net, rules={"attn.in_proj_weight": "head"})
    assert p.role("attn.in_proj_weight") == "head" and p.views("attn.in_proj_weight") == [(4, 4)] * 3


def test_a_fused_weight_can_be_one_matrix() -> None:
    net = Attributes(attn=nn.MultiheadAttention(4, 2), out=nn.Linear(4, 2))
    p = partition(net, rules={"attn.in_proj_weight": {"role": "hidden", "views": "whole"}})
    assert p.views("attn.in_proj_weight") == [(12, 4)]
    optimizer = Gluon(p, lr=1.0, orthogonalizer="svd")
    before = net.attn.in_proj_weight.detach().clone()
    for tensor in net.parameters():
        tensor.grad = torch.randn_like(tensor)
    optimizer.step()
    values = torch.linalg.svdvals(before - net.attn.in_proj_weight.detach())
    torch.testing.assert_close(values, torch.full((4,), math.sqrt(3.0)))  # sqrt(12 / 4), of one matrix


def test_a_rule_rescues_an_unknown_parameter() -> None:
    net = Attributes(mixing=parameter(3, 4), body=nn.Linear(4, 4))
    assert partition(net, rules={"mixing": "hidden"}).views("mixing") == [(3, 4)]


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        (
            {"0.weight": "hiden"},
            ValueError,
            "to be one of hidden, input, embedding, head, adapter, router, bias, elementwise, but got 'hiden'",
        ),
        ({"nowhere.*": "hidden"}, ValueError, r"a name glob matched none: 'nowhere.\*'"),
        ({nn.Conv2d: "hidden"}, ValueError, "a module type matched none: Conv2d"),
        ({3: "hidden"}, TypeError, "a name glob or a torch.nn.Module type, but got 3"),
        ({"0.weight": 3}, TypeError, "a role, a dict with 'role', or a callable, but got 3"),
        ({"0.weight": {"rolle": "head"}}, ValueError, r"have the field 'role'.*but got \['rolle'\]"),
        ({"0.weight": {"norm": "sign"}}, ValueError, r"have the field 'role'.*but got \['norm'\]"),
        (
            {"0.bias": "hidden"},
            ValueError,
            r"at least 2 dimensions for role 'hidden', but got '0.bias' with shape \(8,\)",
        ),
        ({"0.weight": {"role": "hidden", "views": (3, 3)}}, ValueError, r"`views` of '0.weight' with shape \(8, 4\)"),
        ({"0.weight": lambda *_: "hiden"}, ValueError, "but got 'hiden'"),
    ],
)
def test_wrong_rules(rules: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        partition(deep(), rules=rules)


@pytest.mark.parametrize(
    "rules", ["hidden", ["hidden"], ["ab"], {"hidden"}, 3, lambda *_: "hidden", [("0.*", "hidden", "head")]]
)
def test_rules_that_are_no_rules(rules: Any) -> None:
    with pytest.raises(TypeError, match=r"`rules` to map .* such as \{'stem.\*': 'hidden'\}, or .* pairs, but got"):
        partition(deep(), rules=rules)


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"enc.*": "hidden", nn.Conv2d: "hidden"}, ValueError, r"matched none: 'enc.\*', Conv2d\. Compare"),
        ({"2": "hidden"}, ValueError, r"matched none: '2'\. .* Did you mean '2\.\*'\?"),
        ({"0.wieght": "hidden"}, ValueError, r"matched none: '0.wieght'\. .* Did you mean '0.weight'\?"),
        ({"0.weight": nn.Linear}, TypeError, "a role, a dict with 'role', or a callable, but got <class"),
        ({"0.weight": {"role": "hidden", "norm": "spectrl"}}, ValueError, "`norm` .* one of spectral, .* 'spectrl'"),
        ({"0.weight": {"role": "hidden", "norm": ["row"]}}, ValueError, r"`norm` .* but got \['row'\]"),
        ({"0.weight": {"role": "hidden", "reason": 3}}, TypeError, "`reason` .* but got 3"),
        ({"0.weight": {"role": "hidden", "views": 3}}, ValueError, "`views` of '0.weight' .* but got 3"),
        ({"0.weight": {"role": "hidden", "views": (12, -4)}}, ValueError, "`views` of '0.weight'"),
        ({"0.weight": {"role": "bias", "views": (4, 4)}}, ValueError, "`views` .* role 'bias' has no matrices"),
    ],
)
def test_rules_with_a_wrong_part(rules: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        partition(deep(), rules=rules)


def test_fields_that_are_none_are_not_given() -> None:
    p = partition(deep(), rules={"0.weight": {"role": "head", "norm": None, "views": None, "reason": None}})
    assert p.route("0.weight").norm == "sign" and p.reason("0.weight") == "rule '0.weight' of the user"


def test_rules_may_be_lists_of_a_configuration_library() -> None:
    """Hydra's ListConfig is a sequence, but no list."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    pairs = UserList([UserList(["2.*", "elementwise"])])
    assert partition(net, rules=pairs).role("2.weight") == "elementwise"
    assert partition(net, rules=UserDict({"2.*": UserDict(role="head")})).role("2.weight") == "head"
