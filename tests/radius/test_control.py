"""A rule at work on the groups of an optimizer, without a Trainer."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon
from lightning_gluon.callbacks import RadiusScheduler
from lightning_gluon.radius.control import RadiusControl
from lightning_gluon.radius.observe import StepRecord
from lightning_gluon.radius.radii import Limits
from lightning_gluon.radius.rules import make_rule

EVIDENCE = StepRecord(torch.ones(()))


def started(rule, method: str = "gluon", *, total: int | None = None, freeze: float | None = None, **limits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = Gluon(model, lr=0.1, method=method)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    control = RadiusControl(make_rule(rule), Limits(**limits), freeze)
    control.begin(optimizer, total)
    return control, optimizer


class Doubling:
    def __init__(self):
        self.steps = []

    def __call__(self, observation):
        self.steps.append(observation.step)
        return 2.0


def test_a_rule_is_asked_until_the_radii_freeze():
    for freeze, total in ((2, None), (0.5, 4)):
        control, optimizer = started(asked := Doubling(), freeze=freeze, total=total)
        for _ in range(5):
            control.advance(EVIDENCE)
        assert (asked.steps, control.steps, control.frozen) == ([0, 1], 5, True)
        assert optimizer.param_groups[0]["radius"] == 2 * control.base["hidden"]


def test_copies_are_let_go_when_the_radii_freeze():
    control, optimizer = started("calibrate", freeze=3)
    held = []
    for _ in range(4):
        control.advance(EVIDENCE)
        optimizer.step()
        held.append(len(control.measurements[0].before))
    assert held == [3, 3, 0, 0]


def test_groups_that_come_late():
    control, optimizer = started(lambda seen: 0.5, "muon")
    control.advance(EVIDENCE)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4, 4))], "role": "hidden"})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))], "role": "bias"})
    control.rule.function = lambda seen: None  # the rule has nothing to say any more
    control.advance(EVIDENCE)
    groups = {group["name"]: group for group in optimizer.param_groups}
    for name in ("hidden_2", "bias_2"):
        assert groups[name]["radius"] == 0.5 * control.base[name] == control.radii[name]


def test_a_late_group_keeps_its_radius_if_the_others_differ():
    control, optimizer = started(lambda seen: {"hidden": 0.5})
    control.advance(EVIDENCE)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))], "role": "bias"})
    given = optimizer.param_groups[-1]["radius"]
    control.advance(EVIDENCE)
    assert optimizer.param_groups[-1]["radius"] == given


def test_radii_resume():
    one, first = started(lambda seen: 2.0**-seen.step)
    for _ in range(3):
        one.advance(EVIDENCE)
    other, _ = started(lambda seen: 2.0**-seen.step)
    other.release()
    other.load_state_dict(deepcopy(one.state_dict()))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    second = Gluon(model, lr=0.1)
    other.begin(second, None)
    assert [g["radius"] for g in second.param_groups] == [g["radius"] for g in first.param_groups]
    for control in (one, other):
        control.advance(EVIDENCE)
    assert [g["radius"] for g in second.param_groups] == [g["radius"] for g in first.param_groups]
    assert one.steps == other.steps == 4


# ---------------------------------------------------------------- checkpoints that nobody has written


def saved(rule: str, **changes) -> dict:
    """The state of a scheduler three steps into a ramp, with one entry changed: `{"radii.hidden": -1}`."""
    control, optimizer = started(rule)
    for _ in range(3):
        control.advance(EVIDENCE)
        optimizer.step()
    scheduler = RadiusScheduler(rule)
    if rule == "smoothness":
        control.rule.fits = {}
        control.rule(_seen())
    state = {**scheduler.state_dict(), **control.state_dict()}
    state = deepcopy(state)
    for path, value in changes.items():
        *parents, last = path.split("/")
        place = state
        for key in parents:
            place = place[key]
        if value is REMOVED:
            del place[last]
        else:
            place[last] = value
    return state


def _seen():
    from lightning_gluon.radius.observe import Observation

    return Observation(step=3, layers={"hidden": {"L_hat": 2.0, "grad_dual_norm": 1.0, "lr": 1.0}})


REMOVED = object()
DAMAGED = [
    ("calibrate", "radii/hidden", -1.0, r"`hidden` in the saved state of `RadiusScheduler\.radii`.* but got -1\.0"),
    ("calibrate", "radii/hidden", "1.0", "`hidden` .* but got '1.0'"),
    ("calibrate", "radii/hidden", [1.0, math.nan, 1.0], "`hidden` .* but got nan"),
    ("calibrate", "base/hidden", math.inf, "`hidden` .* but got inf"),
    ("calibrate", "base", [1.0], r"`RadiusScheduler\.base` to be a mapping, but got list"),
    ("calibrate", "steps", -1, "`steps` in the saved state of `RadiusScheduler` to be a whole number >= 0, but got -1"),
    ("calibrate", "steps", REMOVED, "`RadiusScheduler` to hold `steps`, but it is missing"),
    ("calibrate", "loss", REMOVED, "to hold `loss`, but it is missing"),
    ("calibrate", "loss/parts", 0.5, "`parts` .* to be a whole number >= 0, but got 0.5"),
    ("calibrate", "rule/main", None, "`RadiusScheduler.rule.main` to be a mapping, but got NoneType"),
    ("calibrate", "rule/main/scale", -2.0, "`scale` .* to satisfy 0 <= scale < inf, but got -2.0"),
    ("calibrate", "rule/main/scale", REMOVED, "to hold `scale`, but it is missing"),
    ("calibrate", "rule/main/speed", 1.0, "but it has 'speed' as well"),
    ("calibrate", "rule/main/reason", "tired", "`reason` .* to be one of .* but got 'tired'"),
    ("calibrate", "rule/main/agreement/averages", [0.1], "`averages` .* to be 2 numbers, but got 1"),
    ("calibrate", "rule/main/loss/drop", "yes", "`drop` .* to be true or false, but got 'yes'"),
    ("calibrate", "rule/main/loss/mean", "low", "`mean` .* but got 'low'"),
    ("smoothness", "rule/hidden/L_hat", ["a"], "`L_hat` .* but got 'a'"),
    ("smoothness", "rule/hidden/L_hat", [1.0, 2.0, 3.0], "as many"),
    ("smoothness", "rule/hidden", 3.0, "to be a mapping, but got float"),
]


@pytest.mark.parametrize(("rule", "path", "value", "message"), DAMAGED, ids=[row[1] for row in DAMAGED])
def test_a_damaged_checkpoint_is_refused_before_anything_changes(rule, path, value, message):
    scheduler = RadiusScheduler(rule)
    before = deepcopy(scheduler.state_dict())
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict(saved(rule, **{path: value}))
    assert scheduler.state_dict() == before


@pytest.mark.parametrize("rule", ["calibrate", "smoothness"])
def test_an_undamaged_one_is_taken(rule):
    scheduler = RadiusScheduler(rule)
    state = saved(rule)
    scheduler.load_state_dict(deepcopy(state))
    assert scheduler.radii == state["radii"]
    assert scheduler.rule.state_dict() == state["rule"]


BEGIN = [
    ("radii/hidden", [1.0, 2.0, 3.0], "holds 3 radii for group 'hidden', which has 2 parameters"),
    ("base/hidden", [], "holds 0 radii for group 'hidden'"),
    ("measurements/Agreement/before/1.weight", torch.ones(2, 2), r"`1.weight` .* shape \(4, 4\), but got \(2, 2\)"),
    ("measurements/Agreement/before/1.weight", "heavy", r"`1.weight` .* a tensor of shape \(4, 4\), but got str"),
    ("measurements/Agreement/lr", -1.0, "`lr` .* but got -1.0"),
    ("measurements/Agreement/decay", REMOVED, "to hold `decay`, but it is missing"),
    ("measurements/Agreement", 3, "to be a mapping, but got int"),
]


@pytest.mark.parametrize(("path", "value", "message"), BEGIN, ids=[row[0] for row in BEGIN])
def test_a_checkpoint_of_another_model_is_refused_before_radii_are_written(path, value, message):
    control, optimizer = started("calibrate")
    before = [group["radius"] for group in optimizer.param_groups]
    control.release()
    state = saved("calibrate", **{path: value, "radii/head": 99.0})
    control.load_state_dict(state)
    with pytest.raises(ValueError, match=message):
        control.begin(optimizer, None)
    assert [group["radius"] for group in optimizer.param_groups] == before
