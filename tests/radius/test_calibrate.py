"""The arithmetic of the rule `calibrate`, without a Trainer."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from lightning_gluon.radius.calibrate import STEP_BACK, Calibrate
from lightning_gluon.radius.observe import Observation


def ramp(rule: Calibrate, agreements, **given) -> list[float]:
    return [rule(Observation(step=k, agreement=a, **given)) for k, a in enumerate(agreements)]


def falling(step):
    return 3.0 - 0.01 * step


def learn(rule: Calibrate, agreements, **given) -> list[float]:
    """A ramp on which the loss falls from the first step."""
    return [rule(Observation(step=k, agreement=a, loss=falling(k), **given)) for k, a in enumerate(agreements)]


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.95, 0.97])
def test_growth_follows_the_agreement_and_the_memory(momentum):
    memory = max(10, 1 / (1 - momentum))
    rule = Calibrate(start=1.0)
    factors = learn(rule, [None, *[1.0] * 60, *[-0.2] * 400], momentum=momentum)
    assert factors[0] == 1.0
    steps = [after / before for before, after in pairwise(factors)]
    assert steps[0] == steps[59] == pytest.approx(1 + 1.5 / memory)  # as large as ever: fast
    slowing = [step for step in steps[60:] if step > 1]
    assert slowing == sorted(slowing, reverse=True)
    assert len(slowing) < 2.5 * memory
    assert set(steps[60 + len(slowing) :]) == {1.0}  # held where the agreement turned, and frozen there
    assert (rule.done, rule.main.reason) == (True, "agreement")


def test_on_a_plateau_the_ramp_goes_on_whatever_the_agreement():
    def steps(losses):
        rule = Calibrate(start=1.0)
        seen = [Observation(step=k, agreement=(-1) ** k * 0.1 - 0.01, loss=loss) for k, loss in enumerate(losses)]
        return [after / before for before, after in pairwise([rule(one) for one in seen])], rule

    plateau = [2.3 + 0.01 * math.sin(7 * step) for step in range(60)]
    slow, rule = steps(plateau)
    assert min(slow) == pytest.approx(1.05)
    assert not rule.main.loss.drop
    held, rule = steps([*plateau[:30], *[loss - 0.1 for loss in plateau[30:]]])
    assert rule.main.loss.drop
    assert held[:30] == slow[:30]
    assert max(held[-20:]) < 1.05


def test_noise_alone_does_not_stop_the_ramp_early():
    # Agreement of pure noise: under the rule "stop at the first negative average" the median ramp ends after 8 steps.
    lengths, naive = [], []
    for seed in range(40):
        values = torch.randn(400, generator=torch.Generator().manual_seed(seed)).tolist()
        rule, average = Calibrate(start=1e-9), 0.0
        ramp(rule, [None, *values])
        lengths.append(rule.main.agreement.count)
        for k, value in enumerate(values):
            average = 0.8 * average + 0.2 * value
            if k >= 4 and average <= 0:
                naive.append(k)
                break
    assert sorted(naive)[20] < 10
    assert sorted(lengths)[4] > 60


def test_a_faint_turn_is_seen_by_the_longer_average(monkeypatch):
    # Mean -0.6 at a root mean square of 1: 3.2 errors are 0.73 over ten steps and 0.51 over twenty.
    faint = [None, *[1.0] * 30, *[0.2, -1.4] * 60]
    rule = Calibrate(start=1e-6)
    ramp(rule, faint)
    assert rule.main.reason == "agreement"
    monkeypatch.setattr("lightning_gluon.radius.calibrate.MEMORIES", (1,))
    single = Calibrate(start=1e-6)
    ramp(single, faint)
    assert not single.done


def test_overshoot_is_seen_at_once_on_a_quadratic():
    # f = x^2 / 2 from x = 1 with step s: agreement x_k, negative once the step has jumped over the minimum.
    x, rule, last = 1.0, Calibrate(start=1e-3), None
    for step in range(500):
        agreement = None if last is None else x * last
        scale = rule(Observation(step=step, agreement=agreement))
        last = math.copysign(1.0, x)
        x -= scale * last
    assert rule.done
    assert abs(x) <= rule.main.scale


@pytest.mark.parametrize("start", [1e-4, 1e-3])
def test_the_radius_is_that_at_which_a_quadratic_turns(start):
    # Steps that grow by q add up to s / (1 - 1 / q). So those from x = 1 jump over the minimum at s = 1 - 1 / q.
    turn = 1 - 1 / 1.15
    x, rule, agreement = 1.0, Calibrate(start=start), None
    for step in range(200):
        scale = rule(Observation(step=step, agreement=agreement, loss=x * x / 2))
        after = x - math.copysign(scale, x)
        agreement, x = after * math.copysign(1.0, x), after
    assert rule.main.reason == "agreement"
    assert turn < rule.main.scale < 2 * turn  # the average over the memory sees the turn some steps late


def test_two_points_stop_before_the_bottom_and_step_nowhere_back():
    rule = Calibrate(start=1.0)
    factors = [rule(Observation(step=0))]
    while not rule.done:  # c_old agrees by 1, curvature 0.01 per unit of s: the best step is at s = 100
        s = factors[-1]
        factors.append(rule(Observation(step=len(factors), agreement=1 - 0.01 * s, reference_agreement=1.0)))
    assert rule.main.reason == "curvature"
    assert factors[-1] == factors[-2]
    assert 100 / 3 < factors[-1] < 100
    # Steps along a longer memory add up: the ramp ends at 1 / sqrt(3.33) of that.
    longer = Calibrate(start=1.0)
    s = longer(Observation(step=0))
    while not longer.done:
        s = longer(Observation(step=1, momentum=0.97, agreement=1 - 0.01 * s, reference_agreement=1.0))
    assert 100 / 3 / (10 / 3) ** 0.5 < s < 0.75 * factors[-1]
    single = Calibrate(start=1.0, two_point=False)
    ramp(single, [None, *[1.0] * 50, *[-1.0] * 100], variance_reduced=True)
    assert single.main.reason == "agreement"


def test_a_rising_loss_ends_the_ramp():
    rule = Calibrate(start=1.0)
    for step in range(400):
        noise = 0.01 * math.sin(7 * step)
        loss = 2.3 + noise if step < 100 else 2.3 + noise + 0.02 * (step - 100)
        rule(Observation(step=step, agreement=math.sin(step), loss=loss))
    assert (rule.done, rule.main.reason) == (True, "loss")
    assert 100 < rule.main.agreement.count < 125


def test_share_ends_the_ramp_where_it_stands():
    rule = Calibrate(start=1.0, share=0.1)
    factors = ramp(rule, [None, *[1.0] * 99], total_steps=100)
    assert (rule.done, rule.main.reason) == (True, "share")
    assert factors[-1] == factors[9] < factors[8] * 1.2
    held = Calibrate(start=1.0)  # larger radii would not have paid off, but not beyond chance
    learn(held, [None, *[1.0] * 20, *[0.5, -0.5] * 200], total_steps=300)
    assert (held.done, held.main.reason) == (True, "held")


def test_share_ends_the_ramp_at_the_step_length_of_a_warm_up():
    rule = Calibrate(share=0.5)
    seen = Observation(step=5, total_steps=10, agreement=1.0, loss=1.0, warming_up=0.25)
    assert rule(seen) == 0.25 / 64  # the schedule goes on to four times the present rate
    assert rule.done


def test_the_largest_factor_ends_the_ramp_with_a_step_back():
    rule = Calibrate(start=1.0, largest=8.0)
    factors = ramp(rule, [None, *[1.0] * 40])
    assert (rule.done, rule.main.reason) == (True, "largest")
    assert 8 <= max(factors) < 8 * 1.15
    assert factors[-1] == pytest.approx(max(factors) * STEP_BACK)
    warming = Calibrate(start=1.0, largest=8.0)  # half the peak of a warm-up: steps are half as long
    assert 16 <= max(ramp(warming, [None, *[1.0] * 60], warming_up=0.5)) < 16 * 1.15


def test_overflow_and_standstill_are_no_evidence():
    rule = Calibrate(start=1.0)
    before = ramp(rule, [None, 1.0, math.nan, math.inf])
    assert before[1:] == [before[1]] * 3
    still = Calibrate(start=1.0)  # half-precision weights that do not move yet: it goes on growing
    assert ramp(still, [0.0] * 50)[-1] == pytest.approx(1.05**50)


def test_calibrate_resumes():
    one, other = Calibrate(start=0.1), Calibrate()
    ramp(one, [None, *[1.0] * 20, -0.1])
    other.load_state_dict(one.state_dict())
    assert ramp(one, [-1.0] * 60) == ramp(other, [-1.0] * 60)


@pytest.mark.parametrize("option", [{"start": 0}, {"growth": 1.0}, {"shrink": 0.0}, {"share": 1.5}, {"largest": 0.0}])
def test_calibrate_refuses(option):
    name = next(iter(option))
    with pytest.raises(ValueError, match=rf"Expected `{name}` to satisfy .* but got {option[name]}"):
        Calibrate(**option)


def test_adamw_beside_an_lmo_has_a_ramp_of_its_own():
    alone, rule = Calibrate(start=1.0), Calibrate(start=1.0, largest=1e6)
    turned = [None, *[1.0] * 30, *[-1.0] * 60]
    factors = learn(alone, turned)
    both = [
        rule(Observation(step=k, agreement=a, adamw_agreement=None if a is None else 0.5, loss=falling(k)))
        for k, a in enumerate(turned)
    ]
    assert both[0] == 1.0
    assert [pair.lmo for pair in both[1:]] == factors[1:]
    assert both[-1].adamw > 5 * both[-1].lmo
    assert rule.main.frozen
    assert not rule.done
    again = Calibrate(start=1.0, largest=1e6)
    again.load_state_dict(rule.state_dict())
    for k in range(100, 200):
        seen = Observation(step=k, agreement=1.0, adamw_agreement=0.5, loss=falling(k))
        assert rule(seen) == again(seen)
    assert rule.done
    assert rule.adamw.reason == "largest"  # four times that of the LMO
    assert rule.adamw.scale == pytest.approx(4e6 * STEP_BACK, rel=0.15)
