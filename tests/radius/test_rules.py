"""The other rules, the limits on what they return, and how radii are written; without a Trainer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gluon import Gluon
from lightning_gluon.callbacks import RadiusScheduler
from lightning_gluon.radius.calibrate import Observation
from lightning_gluon.radius.radii import Factors, Limits, peak_lr, set_radii_
from lightning_gluon.radius.rules import RULES, Smoothness, Theory, make_rule


def test_theory_decays_as_the_papers_do():
    assert [Theory()(Observation(step=k)) for k in (0, 15)] == [1.0, 1 / 8]
    assert Theory()(Observation(step=7, variance_reduced=True)) == pytest.approx(1 / 4)
    assert Theory(power=1.0)(Observation(step=3)) == 0.25
    with pytest.raises(ValueError, match="power > 0, but got 0"):
        Theory(power=0)


def test_smoothness_rule_is_theorem_one_on_the_fit():
    rule = Smoothness(kappa=0.5, samples=2)
    seen = [{"L_hat": 1 + 20 * g, "grad_dual_norm": g, "lr": 0.5} for g in (1.0, 3.0)]
    assert rule(Observation(step=0)) is None
    assert rule(Observation(step=0, layers={"hidden": seen[0]})) == {}
    found = rule(Observation(step=1, layers={"hidden": seen[1]}))
    assert found == pytest.approx({"hidden": 0.5 * 3 / 61 / 0.5})
    other = Smoothness(kappa=0.5, samples=2)
    other.load_state_dict(rule.state_dict())
    third = Observation(step=2, layers={"hidden": seen[0]})
    assert other(third) == rule(third)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"kappa": 0}, "kappa > 0, but got 0"),
        ({"per": "block"}, "'role' or 'layer', but got 'block'"),
        ({"samples": 0}, "1 <= samples <= window, but got 0"),
        ({"samples": 11}, "1 <= samples <= window, but got 11 with window=10"),  # it would never act
        ({"window": 1}, "window >= 2, but got 1"),
    ],
)
def test_smoothness_rule_refuses(option, message):
    with pytest.raises(ValueError, match=message):
        Smoothness(**option)


def test_limits_by_hand():
    limits = Limits(bounds=(0.1, 10.0), max_growth=2.0, smoothing=0.5)
    assert limits(16.0, current=4.0, base=1.0) == 8.0  # sqrt(4 * 16)
    assert limits(400.0, current=4.0, base=1.0) == 8.0  # sqrt(4 * 400) = 40, at most twice 4
    assert limits(1e-6, current=1e-3, base=1.0) == 0.1
    assert limits(1e6, current=9.0, base=1.0) == 10.0
    assert Limits()(0.0, current=1.0, base=1.0) == 0.0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"bounds": (1.0, 0.5)}, r"0 <= low < high, but got \(1.0, 0.5\)"),
        ({"bounds": 3.0}, r"`bounds` \(low, high\) to satisfy .* but got 3.0"),
        ({"bounds": (0.1, 1.0, 10.0)}, r"but got \(0.1, 1.0, 10.0\)"),
        ({"max_growth": 1.0}, "max_growth > 1, but got 1.0"),
        ({"smoothing": 1.0}, "0 <= smoothing < 1, but got 1.0"),
        ({"every_n_steps": 0}, "every_n_steps >= 1, but got 0"),
        ({"every_n_steps": 1.5}, "a whole number, .* got 1.5"),
        ({"freeze_step": "0.5"}, "freeze_step > 0, but got '0.5'"),
        ({"options": {"largst": 3}}, "Unknown option 'largst' of rule 'calibrate'. Expected one of: start, .*largest"),
        ({"freeze_step": 0}, "freeze_step > 0, but got 0"),
        ({"rule": "secant"}, "`rule` to be one of theory, smoothness, calibrate, or a function, but got 'secant'"),
        ({"rule": lambda seen: 1.0, "options": {"start": 1}}, "`options` are for rules given by name"),
    ],
)
def test_constructor_refuses(option, message):
    with pytest.raises(ValueError, match=message):
        RadiusScheduler(**option)


def test_rules_by_name_or_as_they_are():
    assert all(callable(make_rule(name)) for name in RULES)
    with pytest.raises(TypeError, match="a name, a rule or a function, but got float"):
        RadiusScheduler(0.5)


def test_set_radii_by_factor_group_and_layer():
    optimizer = Gluon(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), lr=0.1, method="muon")
    groups = {group["name"]: group for group in optimizer.param_groups}
    base = {name: group["radius"] for name, group in groups.items()}
    set_radii_(optimizer.param_groups, 0.5, base=base, limits=Limits())
    assert {name: group["radius"] for name, group in groups.items()} == {name: r / 2 for name, r in base.items()}
    set_radii_(optimizer.param_groups, Factors(lmo=0.5, adamw=3.0), base=base, limits=Limits())
    assert groups["hidden"]["radius"] == base["hidden"] / 2
    assert groups["head"]["radius"] == 3 * base["head"]
    names = groups["hidden"]["param_names"]
    set_radii_(optimizer.param_groups, {names[0]: 0.25}, base=base, limits=Limits())
    assert groups["hidden"]["radius"] == [0.25, *[0.5] * (len(names) - 1)]
    set_radii_(optimizer.param_groups, {"hidden": 0.125}, base=base, limits=Limits())
    assert groups["hidden"]["radius"] == 0.125
    with pytest.raises(ValueError, match=r"got one of 'heads'\. There are groups hidden"):
        set_radii_(optimizer.param_groups, {"heads": 1.0}, base=base, limits=Limits())
    with pytest.raises(ValueError, match=r"finite radii >= 0, but got -1\.0"):
        set_radii_(optimizer.param_groups, -1.0, base=dict.fromkeys(base, 1.0), limits=Limits())
    with pytest.raises(ValueError, match="Group 'bias' is stepped by AdamW and takes one radius"):
        set_radii_(optimizer.param_groups, {groups["bias"]["param_names"][0]: 1.0}, base=base, limits=Limits())


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


def test_a_rule_says_what_it_needs():
    def rule(seen):
        return 1.0

    rule.needs = "agreements"
    with pytest.raises(
        ValueError, match="`needs` of the rule to be 'agreement', 'smoothness' or None, but got 'agreem"
    ):
        RadiusScheduler(rule)


def test_peak_of_a_schedule():
    assert peak_lr({"lr": 0.1}) == 0.1
    assert peak_lr({"lr": 0.1, "initial_lr": 0.4}) == 0.4
    assert peak_lr({"lr": 0.1, "initial_lr": 0.04, "max_lr": 1.0}) == 1.0
