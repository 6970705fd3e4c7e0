"""What the user tells the partition and reads of it: rules of a wrong form, parameters without a rule, the table."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from lightning_gluon import partition


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


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


# ---- parameters that no rule fits


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


# ---- rules


@pytest.mark.parametrize(
    "rules", ["hidden", ["hidden"], ["ab"], {"hidden"}, 3, lambda *_: "hidden", [("0.*", "hidden", "head")]]
)
def test_rules_that_are_no_rules(rules: Any) -> None:
    with pytest.raises(TypeError, match=r"`rules` to map .* such as \{'stem.\*': 'hidden'\}, or .* pairs, but got"):
        partition(net(), rules=rules)


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
        partition(net(), rules=rules)


def test_fields_that_are_none_are_not_given() -> None:
    p = partition(net(), rules={"0.weight": {"role": "head", "norm": None, "views": None, "reason": None}})
    assert p.route("0.weight").norm == "sign" and p.reason("0.weight") == "rule '0.weight' of the user"


# ---- the table


@pytest.mark.parametrize("width", [60, 70, 80, 119])
def test_a_narrow_table_breaks_no_word(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    model = nn.ModuleDict({"encoder": nn.MultiheadAttention(64, 4), "head": nn.Linear(64, 1000)})
    model["head"].requires_grad_(False)
    text = str(partition(model, rules={"encoder.out_proj.*": "elementwise"}))
    assert max(map(len, text.splitlines())) <= width
    words = ("encoder.in_proj_weight", "elementwise", "3x64x64", "(head,", "frozen)", "spectral", "65,000")
    assert [word for word in words if word not in text] == [] and "…" not in text


def test_rich_shows_the_table_as_wide_as_its_own_console() -> None:
    out = io.StringIO()
    Console(file=out, width=60).print(partition(net()))
    assert "linear map between" in out.getvalue() and max(map(len, out.getvalue().splitlines())) <= 60


def test_brackets_of_a_rule_are_shown_as_they_are() -> None:
    assert "'[a-z0-9]*.weight'" in str(partition(net(), rules={"[a-z0-9]*.weight": "hidden"}))
