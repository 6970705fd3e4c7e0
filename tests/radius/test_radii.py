"""Limits on radii, and how radii are written into groups."""

from __future__ import annotations

from collections import UserList
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gluon import Gluon
from lightning_gluon.radius.radii import Factors, Limits, logged_radii, peak_lr, set_radii_


def groups_of(method: str = "muon") -> list:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    return Gluon(model, lr=0.1, method=method).param_groups


def radii_of(groups: list) -> dict:
    return {group["name"]: deepcopy(group["radius"]) for group in groups}


def test_limits_by_hand():
    limits = Limits(bounds=(0.1, 10.0), max_growth=2.0, smoothing=0.5)
    assert limits(16.0, current=4.0, base=1.0) == 8.0  # sqrt(4 * 16)
    assert limits(400.0, current=4.0, base=1.0) == 8.0  # sqrt(4 * 400) = 40, at most twice 4
    assert limits(1e-6, current=1e-3, base=1.0) == 0.1
    assert limits(1e6, current=9.0, base=1.0) == 10.0
    assert Limits()(0.0, current=1.0, base=1.0) == 0.0


def test_bounds_out_of_a_configuration_are_kept_as_plain_numbers():
    for bounds in ([0.1, 10.0], UserList([0.1, 10.0])):
        assert Limits(bounds=bounds) == Limits(bounds=(0.1, 10.0))
        assert type(Limits(bounds=bounds).bounds) is tuple


def test_radii_by_factor_group_and_layer():
    rows = groups_of()
    groups = {group["name"]: group for group in rows}
    base = radii_of(rows)
    set_radii_(rows, 0.5, base=base, limits=Limits())
    assert radii_of(rows) == {name: r / 2 for name, r in base.items()}
    set_radii_(rows, Factors(lmo=0.5, adamw=3.0), base=base, limits=Limits())
    assert groups["hidden"]["radius"] == base["hidden"] / 2
    assert groups["head"]["radius"] == 3 * base["head"]
    names = groups["hidden"]["param_names"]
    set_radii_(rows, {names[0]: 0.25}, base=base, limits=Limits())
    assert groups["hidden"]["radius"] == [0.25, *[0.5] * (len(names) - 1)]
    assert logged_radii([groups["hidden"]]) == {f"radius/{names[0]}": 0.25, f"radius/{names[1]}": 0.5}
    set_radii_(rows, {"hidden": 0.125}, base=base, limits=Limits())
    assert groups["hidden"]["radius"] == 0.125
    assert logged_radii([groups["hidden"]]) == {"radius/hidden": 0.125}


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        ({"hidden": 9.0, "heads": 1.0}, r"got one of 'heads'\. There are groups hidden"),
        ({"hidden": 9.0, "head": -1.0}, r"finite radii >= 0, but got -1\.0"),
        ({"hidden": 9.0, "0.bias": 1.0}, "Group 'bias' is stepped by AdamW and takes one radius"),
        ({"hidden": 9.0, "bias": [1.0, 2.0, 3.0]}, "Expected the rule to return a factor, radii by group or layer"),
        ({"hidden": 9.0, "bias": "1"}, "Expected the rule to return a factor, radii by group or layer"),
        (Factors(9.0, float("nan")), "finite radii >= 0, but got nan"),
    ],
)
def test_a_refused_proposal_leaves_every_group_as_it_was(proposal, message):
    groups = groups_of()
    before = radii_of(groups)
    with pytest.raises((ValueError, TypeError), match=message):
        set_radii_(groups, proposal, base=before, limits=Limits())
    assert radii_of(groups) == before


@pytest.mark.parametrize("proposal", ["0.5", [0.5, 0.5], {"hidden": "0.5"}, {"hidden": [0.5]}, object()])
def test_what_is_no_number_is_refused(proposal):
    groups = Gluon(nn.Linear(4, 4), lr=0.1).param_groups
    with pytest.raises(TypeError, match="Expected the rule to return a factor, radii by group or layer name, or None"):
        set_radii_(groups, proposal, base={group["name"]: 1.0 for group in groups}, limits=Limits())


def test_numbers_of_any_kind_are_written_as_floats():
    groups = Gluon(nn.Linear(4, 4), lr=0.1, method="muon").param_groups
    base = {group["name"]: 1.0 for group in groups}
    for proposal in (torch.tensor(0.5), np.float32(0.5), {group["name"]: torch.tensor(0.5) for group in groups}):
        set_radii_(groups, proposal, base=base, limits=Limits())
        assert [(type(group["radius"]), group["radius"]) for group in groups] == [(float, 0.5)] * len(groups)


def test_peak_of_a_schedule():
    assert peak_lr({"lr": 0.1}) == 0.1
    assert peak_lr({"lr": 0.1, "initial_lr": 0.4}) == 0.4
    assert peak_lr({"lr": 0.1, "initial_lr": 0.04, "max_lr": 1.0}) == 1.0
