"""The rules by name, rules from outside the package, and what the scheduler refuses to be built from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_gluon.callbacks import RadiusScheduler
from lightning_gluon.radius import RADIUS_RULES, Agreement, Factors, RadiusRule, register_radius_rule
from lightning_gluon.radius.observe import GroupReadings, LayerReadings, Measurement, Observation
from lightning_gluon.radius.rules import Smoothness, make_rule
from tests._slope import Slope, run


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
        ({"kappa": 0}, "0 < kappa < inf, but got 0"),
        ({"per": "block"}, "`per` to be one of role, layer, but got 'block'"),
        ({"samples": 0}, "`samples` to be a whole number >= 1, but got 0"),
        ({"samples": 11}, "1 <= samples <= window, but got 11 with window=10"),  # it would never act
        ({"window": 1}, "`window` to be a whole number >= 2, but got 1"),
    ],
)
def test_smoothness_rule_refuses(option, message):
    with pytest.raises(ValueError, match=message):
        Smoothness(**option)


def test_each_rule_says_what_it_needs():
    assert make_rule("calibrate").needs == (Agreement,)
    assert make_rule("smoothness").needs == (GroupReadings,)
    assert make_rule("smoothness", {"per": "layer"}).needs == (LayerReadings,)
    assert make_rule(lambda observation: None).needs == ()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"bounds": (1.0, 0.5)}, r"0 <= low < high, but got \(1.0, 0.5\)"),
        ({"bounds": 3.0}, r"`bounds` to be two numbers, but got 3.0"),
        ({"bounds": (0.1, 1.0, 10.0)}, r"`bounds` to be two numbers, but got \(0.1, 1.0, 10.0\)"),
        ({"bounds": (-1.0, 1.0)}, r"`bounds` to satisfy 0 <= bounds < inf, but got -1.0"),
        ({"max_growth": 1.0}, "1 < max_growth < inf, but got 1.0"),
        ({"smoothing": 1.0}, "0 <= smoothing < 1, but got 1.0"),
        ({"every_n_steps": 0}, "every_n_steps.* 1, but got 0"),
        ({"every_n_steps": 1.5}, "a whole number.* got 1.5"),
        ({"freeze_step": "0.5"}, "0 < freeze_step < inf, but got '0.5'"),
        ({"freeze_step": 0}, "0 < freeze_step < inf, but got 0"),
        ({"options": {"largst": 3}}, "Unknown option 'largst' of rule 'calibrate'. Expected one of: start, .*largest"),
        (
            {"rule": "secant"},
            "`rule` to be one of smoothness, calibrate, .*ngn, or a function, but got 'secant'",
        ),
        ({"rule": lambda observation: 1.0, "options": {"start": 1}}, "`options` are for rules given by name"),
    ],
)
def test_constructor_refuses(option, message):
    with pytest.raises(ValueError, match=message):
        RadiusScheduler(**option)


def test_rules_by_name_or_as_they_are():
    assert all(isinstance(make_rule(name), RadiusRule) for name in RADIUS_RULES)
    rule = Smoothness()
    assert make_rule(rule) is rule
    for wrong in (0.5, Smoothness):  # a class is no rule yet
        with pytest.raises(TypeError, match="a name, a rule or a function, but got"):
            RadiusScheduler(wrong)


# ---------------------------------------------------------------- a rule from outside the package


class ParameterCount(Measurement):
    """A measurement that the package does not have."""

    def observe(self, evidence):
        return {"agreement": float(sum(len(group["params"]) for group in self.optimizer.param_groups))}


class Halving(RadiusRule):
    """Half the radius every step, and for AdamW a quarter, until the end."""

    needs = (ParameterCount,)

    def __init__(self, end: int = 3) -> None:
        self.end = end
        self.agreements: list[float | None] = []

    @property
    def done(self) -> bool:
        return len(self.agreements) >= self.end

    def __call__(self, observation: Observation) -> Factors:
        self.agreements.append(observation.agreement)
        return Factors(0.5**observation.step, 0.25**observation.step)


@pytest.fixture
def halving():
    register_radius_rule("halving", Halving)
    yield
    del RADIUS_RULES["halving"]


def test_a_registered_rule_trains_by_its_name(halving):
    model, scheduler = Slope(), RadiusScheduler("halving", options={"end": 4})
    run(model, scheduler, batches=7)
    assert [radius for _, radius in model.steps] == [1.0, 1.0, 0.5, 0.25, 0.125, 0.125, 0.125]  # each before its step
    assert scheduler.rule.agreements == [1.0] * 4


def test_a_registered_rule_is_named_in_a_configuration_file(halving, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = {"rule": "halving", "options": {"end": 7}, "bounds": [0.1, 2.0]}
    callback = {"class_path": "lightning_gluon.callbacks.RadiusScheduler", "init_args": chosen}
    arguments = {"trainer": {"callbacks": [callback], "logger": False}}
    cli = LightningCLI(Slope, run=False, args=arguments, save_config_callback=None)
    scheduler = next(one for one in cli.trainer.callbacks if isinstance(one, RadiusScheduler))
    assert isinstance(scheduler.rule, Halving)
    assert (scheduler.rule.end, scheduler.control.limits.bounds) == (7, (0.1, 2.0))


def test_the_rule_of_the_primer_works():
    page = Path(__file__).parents[2] / "docs" / "primers" / "radius.md"
    (snippet,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    try:
        exec(compile(snippet, str(page), "exec"), names)
        model, scheduler = Slope(lr=0.5), names["scheduler"]
        run(model, scheduler, batches=40)
        assert scheduler.rule.scale < 1
        again = make_rule("cautious")
        again.load_state_dict(scheduler.rule.state_dict())
        assert again.scale == scheduler.rule.scale
    finally:
        RADIUS_RULES.pop("cautious", None)


def test_names_are_taken_once(halving):
    register_radius_rule("halving", Halving)  # a module that is imported twice
    with pytest.raises(ValueError, match="The name 'calibrate' belongs to the radius rule"):
        register_radius_rule("calibrate", Halving)
    with pytest.raises(ValueError, match="`name` to be a text, but got 3"):
        register_radius_rule(3, Halving)
    with pytest.raises(TypeError, match=r"a class or a function that makes a rule, but got 0\.5"):
        register_radius_rule("half", 0.5)
    assert "half" not in RADIUS_RULES
