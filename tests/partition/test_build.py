"""A whole partition: ties, frozen parameters, parameters without a rule, what is no module."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_gluon.partition import partition
from tests.partition._stand_ins import Attributes, parameter


def test_a_tied_table_is_one_tensor_with_both_names() -> None:
    net = Attributes(wte=nn.Embedding(9, 4), body=nn.Linear(4, 4), lm_head=nn.Linear(4, 9, bias=False))
    net.lm_head.weight = net.wte.weight
    p = partition(net)
    route = p.route("lm_head.weight")
    assert route is p.route("wte.weight") and route.role == "embedding"
    assert route.names == ("wte.weight", "lm_head.weight") and "lm_head.weight" in p.reason("wte.weight")
    assert p.views("lm_head.weight") == [(9, 4)] and len(p) == 3


def test_the_table_wins_whichever_name_comes_first() -> None:
    net = Attributes(lm_head=nn.Linear(4, 9, bias=False), wte=nn.Embedding(9, 4))
    net.wte.weight = net.lm_head.weight
    assert partition(net).role("lm_head.weight") == "embedding"


def test_frozen_parameters_are_routed_and_counted_but_not_given_out() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    p = partition(net)
    assert [route.name for route, _ in p.parameters()] == ["2.weight", "2.bias"] and len(p) == 2
    assert p.role("0.weight") == "hidden" and p.route("0.weight").frozen
    assert "frozen=2" in repr(p) and "total frozen" in str(p)


def test_a_frozen_array_that_no_rule_fits_does_not_raise() -> None:
    net = Attributes(table=nn.Parameter(torch.zeros(3, 4), requires_grad=False), body=nn.Linear(4, 4))
    assert partition(net).role("table") == "elementwise"


def test_nothing_is_run_or_changed_and_meta_is_fine() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10))
    before = {name: (tensor, tensor.requires_grad) for name, tensor in net.named_parameters()}
    assert partition(net).role("2.weight") == "head"
    assert all(before[name] == (tensor, tensor.requires_grad) for name, tensor in net.named_parameters())


def test_a_parameter_that_no_rule_fits() -> None:
    net = Attributes(mixing=parameter(3, 4), body=nn.Linear(4, 4))
    with pytest.raises(
        ValueError, match=r"none fits 'mixing' with shape \(3, 4\), a parameter of Attributes.*rules=.*strict=False"
    ):
        partition(net)
    with pytest.warns(UserWarning, match="none fits 'mixing'.*'elementwise'"):
        p = partition(net, strict=False)
    assert p.role("mixing") == "elementwise"


class Scaled(nn.Module):
    """A layer with a matrix that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.zeros(3, 4))
        self.linear = nn.Linear(4, 4)


def unknown() -> nn.Module:
    model = nn.ModuleDict({"blocks": nn.ModuleList([Scaled(), Scaled(), Scaled()])})
    model.table = nn.Parameter(torch.zeros(5, 4))
    model.frozen = nn.Parameter(torch.zeros(5, 4), requires_grad=False)
    return model


def test_all_parameters_without_a_rule_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="none fits") as caught:
        partition(unknown())
    message = str(caught.value)
    assert "'table' with shape (5, 4), a parameter of ModuleDict" in message
    assert "'blocks.0.mixing' with shape (3, 4), a parameter of Scaled (3 of 'blocks.*.mixing')" in message
    assert "rules={'table': role, 'blocks.*.mixing': role}" in message and "frozen" not in message
    p = partition(unknown(), rules={"table": "embedding", "blocks.*.mixing": "hidden"})
    assert [p.role(name) for name in ("table", "blocks.2.mixing")] == ["embedding", "hidden"]


def test_one_warning_tells_of_all_of_them() -> None:
    with pytest.warns(UserWarning) as caught:
        partition(unknown(), strict=False)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert "'table'" in str(caught[0].message) and "'blocks.0.mixing'" in str(caught[0].message)


def test_a_misspelt_rule_is_told_before_the_parameter_it_was_meant_for() -> None:
    with pytest.raises(ValueError, match=r"matched none: 'tabel'. .*Did you mean 'table'\?"):
        partition(unknown(), rules={"tabel": "embedding", "*.mixing": "hidden"})


def test_an_empty_module() -> None:
    with pytest.raises(ValueError, match="Expected a module with parameters, but ReLU has none"):
        partition(nn.ReLU())


def test_a_lazy_module() -> None:
    with pytest.raises(ValueError, match=r"'0\.weight' of a lazy module has none yet"):
        partition(nn.Sequential(nn.LazyLinear(3)))


def test_something_else_than_a_module() -> None:
    with pytest.raises(TypeError, match=r"`module` to be a torch\.nn\.Module, but got list"):
        partition([nn.Linear(2, 2)])  # type: ignore[arg-type]


def test_importing_pulls_in_no_model_library() -> None:
    code = "import lightning_gluon.partition, sys; print([m for m in ('timm', 'transformers') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
