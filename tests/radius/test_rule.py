"""Plain functions and objects as rules."""

from __future__ import annotations

import pytest

from lightning_gluon.callbacks import RadiusScheduler
from lightning_gluon.radius.agreement import Agreement
from lightning_gluon.radius.observe import Observation
from lightning_gluon.radius.rule import RadiusRule
from lightning_gluon.radius.rules import make_rule


def test_a_function_may_say_what_it_needs():
    def rule(observation):
        return 1.0

    rule.needs = Agreement
    assert make_rule(rule).needs == (Agreement,)
    for wrong in ("agreement", [Agreement, "loss"], RadiusRule):
        rule.needs = wrong
        with pytest.raises(TypeError, match=r"`needs` of the rule to be measurements of .* such as `Agreement`"):
            RadiusScheduler(rule)


def test_an_object_keeps_its_own_attributes():
    class Counter:
        done = False

        def __init__(self):
            self.count = 0

        def __call__(self, observation):
            self.count += 1
            self.done = self.count == 2

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    rule = make_rule(Counter())
    rule(Observation(step=0))
    assert not rule.done
    other = make_rule(Counter())
    other.load_state_dict(rule.state_dict())
    other(Observation(step=1))
    assert (rule.done, other.done) == (False, True)


def test_a_function_without_a_state_has_none():
    rule = make_rule(lambda observation: None)
    assert rule.state_dict() == {}
    rule.load_state_dict({"count": 3})
    assert (rule.done, rule.doubt) == (False, "")
