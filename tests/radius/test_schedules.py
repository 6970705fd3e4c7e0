"""Schedules by hand, their place in a checkpoint, and what is refused."""

from __future__ import annotations

import math
from collections import UserList
from copy import deepcopy

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon, RadiusSchedule, Schedule
from lightning_gluon.radius import SCHEDULES


def factors(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.factor(k) for k in range(steps)]


def test_factors_by_hand():
    assert factors(Schedule(), 3) == [1.0, 1.0, 1.0]
    assert factors(Schedule("linear", 4), 5) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert factors(Schedule("cosine", 4), 5) == pytest.approx(
        [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0]
    )
    assert factors(Schedule("wsd", 10, decay=0.4), 10) == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])
    assert factors(Schedule("linear", 6, warmup=2), 6) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    theory = Schedule("theory", rates=(0.75, 0.5))
    assert (theory.factor(15), theory.momentum(15)) == (1 / 8, 0.75)
    constant = Schedule("theory_constant", 16, rates=(0.75, 0.5))
    assert [(constant.factor(k), constant.momentum(k)) for k in (0, 9)] == [(1 / 8, 0.75)] * 2
    assert Schedule("linear", 4, rates=(0.75, 0.5)).momentum(3) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "step"}, f"`schedule` to be one of {', '.join(SCHEDULES)}, but got 'step'"),
        ({"warmup": -1}, "`warmup` to be a whole number of steps >= 0, but got -1"),
        ({"warmup": 1.5}, "`warmup` to be a whole number of steps >= 0, but got 1.5"),
        ({"decay": 0.0}, "0 < decay <= 1, but got 0.0"),
        ({"name": "theory"}, "needs a method whose theory has one"),
        ({"name": "theory", "rates": (0.5,)}, r"`rates` to be two numbers, but got \(0.5,\)"),
        ({"name": "theory", "rates": (0.5, "x")}, "`rates` to satisfy 0 <= rates < inf, but got 'x'"),
        ({"name": "linear"}, "needs to know its length, but `total_steps` is None"),
        ({"name": "linear", "total_steps": math.inf}, "needs to know its length, but `total_steps` is inf"),
        ({"name": "theory_constant", "rates": (0.5, 0.5)}, "needs to know its length"),
    ],
)
def test_schedule_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


@pytest.mark.parametrize("rates", [[0.75, 0.5], UserList([0.75, 0.5])], ids=["list", "sequence"])
def test_rates_out_of_a_configuration_are_kept_as_plain_numbers(rates, tmp_path):
    schedule = Schedule("theory", rates=rates)
    assert schedule == Schedule("theory", rates=(0.75, 0.5))
    scheduler = RadiusSchedule(Gluon(nn.Linear(2, 2), lr=0.1), schedule)
    torch.save(scheduler.state_dict(), tmp_path / "saved.pt")
    assert torch.load(tmp_path / "saved.pt", weights_only=True)["schedule"]["rates"] == (0.75, 0.5)


def scheduled(method: str = "muon") -> RadiusSchedule:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    return RadiusSchedule(Gluon(model, lr=0.1, method=method), Schedule("theory", rates=(0.75, 0.5)))


def test_theory_sets_the_momentum_but_not_that_of_adamw():
    scheduler = scheduled()
    betas = [group.get("betas") for group in scheduler.optimizer.param_groups]
    for _ in range(3):
        scheduler.optimizer.step()
        scheduler.step()
    groups = {group["name"]: group for group in scheduler.optimizer.param_groups}
    assert groups["hidden"]["momentum"] == 0.5  # 1 - (k + 1)^-1/2 at k = 3
    assert groups["head"]["momentum"] != 0.5
    assert [group.get("betas") for group in scheduler.optimizer.param_groups] == betas


def test_a_resumed_schedule_goes_on():
    whole, part, again = scheduled(), scheduled(), scheduled()
    for one, steps in ((whole, 5), (part, 2)):
        for _ in range(steps):
            one.optimizer.step()
            one.step()
    again.load_state_dict(deepcopy(part.state_dict()))
    for _ in range(3):
        again.optimizer.step()
        again.step()
    assert again.get_last_lr() == whole.get_last_lr()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("base_lrs", [-0.1], "`base_lrs` in the saved state of `RadiusSchedule` to satisfy 0 <= .* but got -0.1"),
        ("base_lrs", ["0.1"], "`base_lrs` in the saved state of `RadiusSchedule` to satisfy .* but got '0.1'"),
        ("base_lrs", 0.1, "`base_lrs` in the saved state of `RadiusSchedule` to be a list of numbers, but got 0.1"),
        ("_last_lr", [0.1], "`_last_lr` .* to be 3 numbers, but got 1"),
        ("_last_lr", [0.1, math.nan, 0.1], "`_last_lr` .* but got nan"),
        ("first_groups", 1.5, "`first_groups` .* to be a whole number >= 0, but got 1.5"),
        ("last_epoch", -3, "`last_epoch` in the saved state of `RadiusSchedule` to be a whole number >= 0, but got -3"),
        ("last_epoch", "3", "`last_epoch` .* but got '3'"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_anything_changes(key, value, message):
    scheduler = scheduled()
    state = scheduler.state_dict()
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict({**state, key: value})
    state.pop(key)
    with pytest.raises(ValueError, match=f"to hold `{key}`, but it is missing: the checkpoint is damaged"):
        scheduler.load_state_dict(state)
    with pytest.raises(ValueError, match="to be a mapping, but got list"):
        scheduler.load_state_dict([state])
    assert scheduler.last_epoch == 0


def test_a_checkpoint_replaces_nothing_but_the_position():
    scheduler = scheduled()
    optimizer, schedule = scheduler.optimizer, scheduler.schedule
    scheduler.load_state_dict({**scheduler.state_dict(), "optimizer": None, "get_lr": None, "schedule": None})
    assert (scheduler.optimizer, scheduler.schedule) == (optimizer, schedule)
    assert callable(scheduler.get_lr)
