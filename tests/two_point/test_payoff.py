"""Readings that tell whether a second gradient pays, on gradients whose noise and signal are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon.two_point.parts import PartReading, PartReadings, Spread
from lightning_gluon.two_point.payoff import PayOff
from tests._two_point import FLAT, Memory, Net, fit

SIZE, B = 400, 0.9


def watch(truth: Callable[[int], Tensor], noise: float, steps: int = 120, half: float = 0.3) -> dict[str, float]:
    """Return the readings at the end of a run with known gradients, whose halves have independent noise."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(SIZE))
    groups = [{"name": "w", "params": [weight], "momentum": B}]
    payoff = PayOff()
    for step in range(steps):
        new, differences = [], []
        for _ in range(2):
            new.append((truth(step) + noise * torch.randn(SIZE, generator=generator)) / 2)
            differences.append(half * noise * torch.randn(SIZE, generator=generator) / 2)
        weight.grad = sum(new)
        rows = [sum(x.square().sum() for x in differences), sum(x.square().sum() for x in new), torch.tensor(2.0)]
        rows += [sum(differences).square().sum(), weight.grad.square().sum()]
        payoff.observe(groups, PartReadings(["w"], torch.stack(rows)[None], 1))
    return payoff.values()


def test_a_steady_gradient_does_not_turn_whatever_its_noise() -> None:
    assert watch(lambda step: torch.ones(SIZE), 0.0) == pytest.approx({"turning/w": 0.0}, abs=1e-5)  # and no noise
    found = watch(lambda step: torch.ones(SIZE), 3.0)
    assert abs(found["turning/w"]) < 0.25  # measured: -0.20; with the noise in both means it is 0.8


def test_a_bounce_turns() -> None:
    """Signs that alternate: of the mean over ten steps 1/19 is left in size."""
    found = watch(lambda step: torch.full((SIZE,), (-1.0) ** step), 0.0)
    assert found["turning/w"] == pytest.approx(1 - (1 / 19) ** 2, abs=1e-4)
    half = watch(lambda step: torch.full((SIZE,), 1 + (-1.0) ** step), 0.0)  # as much of both
    assert half["turning/w"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("ratio", [0.05, 0.3])
def test_the_noise_of_the_difference_over_that_of_the_gradient(ratio: float) -> None:
    assert watch(lambda step: torch.ones(SIZE), 2.0, half=ratio)["sd_to_sigma/w"] == pytest.approx(ratio, rel=0.1)


def test_chance_and_overflow_are_no_readings() -> None:
    weight = nn.Parameter(torch.zeros(2))
    groups = [{"name": "w", "params": [weight], "momentum": B}]
    payoff = PayOff()
    payoff.observe(groups, PartReadings(["w"], torch.tensor([[1.0, torch.inf, 2.0, 1.0, torch.inf]]), 1))
    assert payoff.values() == {} and not payoff.averages
    weight.grad = torch.ones(2)
    reading = PartReading(Spread(1.0, 2.0), Spread(1.0, -1.0))
    readings = PartReadings(["w"], torch.zeros(1, 5), 1, {"w": reading})
    payoff.observe(groups, readings)
    assert payoff.values() == {}


def test_readings_change_nothing_and_are_logged() -> None:
    from lightning_gluon.callbacks import VarianceReduction

    ends = []
    for readings in (False, True):
        torch.manual_seed(1)
        model, logger = Net(method="gluon-mvr1", **FLAT), Memory()
        fit(model, callbacks=[VarianceReduction(readings=readings)], logger=logger, accumulate_grad_batches=2)
        ends.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
        keys = {key for _, row in logger.rows for key in row}
        assert any(key.startswith("gluon/turning/") for key in keys) == readings
    assert torch.equal(*ends)


def test_one_part_is_told() -> None:
    from lightning_gluon.callbacks import VarianceReduction

    with pytest.warns(UserWarning, match="Nothing is read: .*a single micro-batch"):
        fit(Net(method="gluon-mvr1", **FLAT), callbacks=[VarianceReduction(readings=True)], max_steps=1)
