"""The estimators against hand-computed steps, their identities, and the variance that theory predicts for them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_gluon
from lightning_gluon.estimators.recursions import ESTIMATORS

EXACT = 1e-12  # fp64; the largest gap measured over 50 steps of all identities is 2e-15
B = 0.75  # weight on the old momentum: with it every number below is exact in binary
NEW, OLD = (1.0, 3.0), (None, 2.0)  # c_new at steps 0 and 1, c_old at step 1 (unlike c_new at step 0: weights moved)

# estimator -> options, direction after the second step, worked out by hand from the recursions in `estimators`
HAND = {
    "ema": ({}, 0.75 * 1 + 0.25 * 3),
    "nesterov": ({}, 0.75 * 1.5 + 0.25 * 3),
    "mvr1": ({"gamma": 0.5}, 0.75 * (1 + 0.5 * (3 - 2)) + 0.25 * 3),
    "mvr2": ({"q": 0.5}, 0.75 * 1 + 0.25 * (3 + 0.5 * (1 - 2))),
    "mvr3": ({"q": 0.5}, 0.75 * 1 + 0.25 * (3 + 0.5 * (1 - 2)) + 0.75 * (3 - 2)),
    "limuon": ({}, 3 + 0.75 * (1 - 2)),
    "mars": ({"gamma": 0.5, "clip": None}, 0.75 * 1 + 0.25 * (3 + 0.5 * 3 * (3 - 2))),
    "mars_approximate": ({"gamma": 0.5, "clip": None}, 0.75 * 1 + 0.25 * (3 + 0.5 * 3 * (3 - 1))),
    "igt": ({}, 0.75 * 1 + 0.25 * 3),
    "dual_ema": ({"momentum_carry": 0.5}, 0.75 * 1 + 0.25 * 3),
}


def run(name: str, gradients: list[tuple[Tensor, Tensor]], **options: Any) -> list[Tensor]:
    """Directions of an estimator along pairs `(c_new, c_old)`, every buffer started at the first gradient."""
    row = ESTIMATORS[name]
    given = {"momentum": 0.9, "steps": 0, "total_steps": 50, **row.options, **options}
    buffers = {buffer: [gradients[0][0].clone()] for buffer in row.names(given)}
    given = row.at(given)
    return [row.update(buffers, [new], [old], given)[0].clone() for new, old in gradients]


def pairs(steps: int = 50, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(steps)]
    return [(new, new if k == 0 else old) for k, (new, old) in enumerate(made)]


def gap(some: list[Tensor], other: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(some, other, strict=True))


@pytest.mark.parametrize("name", HAND)
def test_two_hand_steps(name: str) -> None:
    options, expected = HAND[name]
    one, two, old = (torch.full((2,), value) for value in (NEW[0], NEW[1], OLD[1]))
    first, second = run(name, [(one, one), (two, old)], momentum=B, **options)
    assert first.tolist() == [1.0, 1.0]  # M^0 = c_new, for every estimator, without a special first step
    assert second.tolist() == [expected, expected]


def test_dual_ema_third_step_uses_the_slower_average() -> None:
    ones = [torch.full((1,), value) for value in (1.0, 3.0, 2.0)]
    third = run("dual_ema", [(g, g) for g in ones], momentum=B, momentum_carry=0.5)[-1]
    assert third.item() == 0.75 * (0.5 * 1 + 0.5 * 3) + 0.25 * 2


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "adamw"])
def test_gradients_are_not_written_to(name: str) -> None:
    given = pairs(4)
    kept = [(new.clone(), old.clone()) for new, old in given]
    run(name, given)
    assert gap([t for pair in given for t in pair], [t for pair in kept for t in pair]) == 0


IDENTITIES = [
    ("mvr3", {"q": 1.0}, "mvr1", {}),
    ("mvr2", {"q": 1.0}, "ema", {}),
    ("mars", {"gamma": 1.0, "clip": None}, "mvr1", {}),
    ("mars", {"gamma": 0.0, "clip": None}, "ema", {}),
    ("mars_approximate", {"gamma": 0.0, "clip": None}, "ema", {}),
    ("limuon", {}, "mvr1", {}),
    ("dual_ema", {"momentum_carry": 0.9}, "ema", {}),
    ("igt", {}, "ema", {}),
    ("mvr1", {"gamma": 0.0}, "ema", {}),
    ("limuon", {"gamma": 0.0}, "ema", {}),
    ("mvr3", {"gamma": 0.0}, "mvr2", {"gamma": 0.0}),
    ("mvr3", {"q": 1.0, "gamma": 0.4}, "mvr1", {"gamma": 0.4}),
    ("mars", {"gamma": 0.4, "clip": None}, "mvr1", {"gamma": 0.4}),
]


@pytest.mark.parametrize(("one", "options", "other", "others"), IDENTITIES)
def test_identities(one: str, options: dict, other: str, others: dict) -> None:
    assert gap(run(one, pairs(), **options), run(other, pairs(), **others)) <= EXACT


@pytest.mark.parametrize("gamma", [0.0, 0.025, 0.25, 0.5, 1.0])
def test_the_damped_estimate_lies_between_ema_and_mvr1(gamma: float) -> None:
    """mvr1(gamma) = (1 - gamma) ema + gamma mvr1, on the same gradients from the same start."""
    ends = zip(run("ema", pairs()), run("mvr1", pairs()), strict=True)
    between = [(1 - gamma) * ema + gamma * mvr1 for ema, mvr1 in ends]
    assert gap(run("mvr1", pairs(), gamma=gamma), between) <= EXACT


@pytest.mark.parametrize("name", ["mvr2", "mvr3"])
def test_the_nested_recursions_without_correction_are_an_ema_of_an_ema(name: str) -> None:
    q = 0.3
    inner = run("ema", pairs(), momentum=1 - q)
    assert gap(run(name, pairs(), gamma=0.0, q=q), run("ema", [(g, g) for g in [pairs()[0][0], *inner[1:]]])) <= EXACT


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "adamw"])
def test_without_noise_the_gradient_itself(name: str) -> None:
    gradient = pairs(1)[0][0]
    given = ESTIMATORS[name].options | {"clip": None}
    assert gap(run(name, [(gradient, gradient)] * 20, **given), [gradient] * 20) <= EXACT


@pytest.mark.parametrize("name", ["mvr1", "mvr2", "mvr3", "mars", "limuon"])
def test_equal_pairs_give_plain_momentum(name: str) -> None:
    """Where the weights did not move, c_old = c_new, and the correction vanishes."""
    given = [(new, new) for new, _ in pairs()]
    options = {"q": 1.0, "clip": None}
    assert gap(run(name, given, **options), run("ema", given)) <= EXACT


def test_mvr3_is_mvr2_plus_transport() -> None:
    """The reading documented for mvr3: `M += b (c_new - c_old)` beside mvr2's own recursion on the same G."""
    b, q, given = 0.9, 0.3, pairs()
    estimate, momentum = given[0][0].clone(), given[0][0].clone()
    expected = []
    for new, old in given:
        estimate = new + (1 - q) * (estimate - old)
        momentum = b * momentum + (1 - b) * estimate + b * (new - old)
        expected.append(momentum)
    assert gap(run("mvr3", given, momentum=b, q=q), expected) <= EXACT


def test_mars_clips_the_corrected_gradient() -> None:
    one, two, old = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])
    second = run("mars", [(one, one), (two, old)], momentum=B, gamma=1.0, clip=1.0)[1]
    assert torch.allclose(second, 0.25 * torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("method", ["mars", "mars-approximate"])
def test_mars_clips_the_first_gradient_too(method: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = lightning_gluon.Gluon([weight], method=method, momentum=B)

    def closure() -> None:
        weight.grad = torch.eye(2) * 1000

    optimizer.step(closure)
    assert torch.allclose(optimizer.state[weight]["momentum"].norm(), torch.tensor(1 - B))
    assert torch.allclose(weight, torch.eye(2) * -0.02, atol=1e-4)


# ---------------------------------------------------------------- variance


def predicted(name: str, b: float, sigma: float, spread: float, path: list[float]) -> float:
    """`sqrt(E (M - grad f)^2)` at the end of a path, for `grad f = x`, samples `(1 + s) x + n`.

    With e = M - grad f,

        mvr1  e <- b e + (1 - b) n + s (x - b x_prev)
        ema   e <- b (e + x_prev - x) + (1 - b) (n + s x)
    """
    variance, bias = sigma**2 + (spread * path[0]) ** 2, 0.0
    for previous, x in itertools.pairwise(path):
        if name == "mvr1":
            variance = b**2 * variance + ((1 - b) * sigma) ** 2 + (spread * (x - b * previous)) ** 2
        else:
            variance = b**2 * variance + (1 - b) ** 2 * (sigma**2 + (spread * x) ** 2)
            bias = b * (bias + previous - x)
    return math.sqrt(variance + bias**2)


def measured(name: str, b: float, sigma: float, spread: float, path: list[float], samples: int) -> float:
    """The same by simulation: every coordinate is an independent run."""
    generator = torch.Generator().manual_seed(0)

    def pair(k: int) -> tuple[Tensor, Tensor]:
        n, s = (torch.randn(samples, generator=generator, dtype=torch.float64) for _ in range(2))
        points = path[k], path[max(0, k - 1)]
        new, old = ((1 + spread * s) * x + sigma * n for x in points)
        return new, old

    final = run(name, [pair(k) for k in range(len(path))], momentum=b)[-1]
    return (final - path[-1]).square().mean().sqrt().item()


@pytest.mark.parametrize("speed", [0.05, 0.2])
@pytest.mark.parametrize("b", [0.9, 0.97])
def test_variance_is_reduced_by_the_factor_of_the_theory(b: float, speed: float) -> None:
    """On a quadratic walked through at a given speed; 120 steps x 20,000 runs, standard error of a ratio 0.7 %."""
    path, budget = [speed * k for k in range(120)], 20_000
    noise = {"sigma": 1.0, "spread": 0.02}
    errors = {name: measured(name, b, path=path, samples=budget, **noise) for name in ("ema", "mvr1")}
    theory = {name: predicted(name, b, path=path, **noise) for name in ("ema", "mvr1")}
    factor = theory["ema"] / theory["mvr1"]
    assert factor > 1.5  # the lag b / (1 - b) * speed of the EMA, against the noise both have
    assert errors["ema"] / errors["mvr1"] == pytest.approx(factor, rel=0.03)
    assert errors["mvr1"] == pytest.approx(theory["mvr1"], rel=0.03)


def test_variance_floor_without_drift() -> None:
    """Standing still, mvr1 and ema average alike: variance `(1 - b) / (1 + b)` of one sample's."""
    b, path = 0.9, [0.0] * 120
    for name in ("ema", "mvr1"):
        error = measured(name, b, sigma=1.0, spread=0.0, path=path, samples=20_000)
        assert error == pytest.approx(math.sqrt((1 - b) / (1 + b)), rel=0.03)
