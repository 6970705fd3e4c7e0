from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from lightning_gluon import Gluon
from lightning_gluon.norms.spectral import Spectral
from lightning_gluon.smoothness.fit import RunningFit, SmoothnessFit, fit, noise_only
from lightning_gluon.smoothness.readings import Pair, derive, measure

EXACT = 1e-12  # objective above scipy's, in units of the largest sample squared; measured 6e-15


def objective(point, x, y, penalty):
    residual = y - point[0] - point[1] * x
    return (residual**2).sum() + penalty * (np.maximum(0, residual) ** 2).sum()


@pytest.mark.parametrize("seed", range(40))
def test_fit_is_the_minimum_that_scipy_finds(seed):
    rng = np.random.default_rng(seed)
    count, penalty = rng.integers(1, 60), rng.choice([0.0, 1.0, 5.0, 100.0])
    x = rng.lognormal(0, rng.uniform(0.01, 2), count) * 10 ** rng.uniform(-4, 4)
    noise = rng.normal(0, rng.uniform(0, 1), count)
    y = (rng.uniform(-1, 3) + rng.uniform(-1, 2) * x / x.max() + noise) * 10 ** rng.uniform(-4, 4)
    found = fit(y, x, penalty)
    unit_x, unit_y = abs(x).max(), abs(y).max()
    scaled = (x / unit_x, y / unit_y, penalty)
    starts = [(1.0, 1.0), (0.0, 1.0), (found.L0 / unit_y, found.L1 * unit_x / unit_y)]
    options = {"method": "L-BFGS-B", "bounds": [(0, None)] * 2, "options": {"ftol": 1e-16, "gtol": 1e-12}}
    best = min(minimize(objective, start, scaled, **options).fun for start in starts)
    mine = objective((found.L0 / unit_y, found.L1 * unit_x / unit_y), *scaled)
    assert mine <= best + EXACT
    assert found.L0 >= 0
    assert found.L1 >= 0


def test_fit_by_hand():
    # Constant x leaves the split open: all to L1. Of y = 0 and y = 1 the one above weighs 1 + 5: the mean is 6/7.
    found = fit([0.0, 1.0], [2.0, 2.0])
    assert pytest.approx((0.0, 3 / 7)) == (found.L0, found.L1)
    assert (found.above, found.samples) == (0.5, 2)
    assert pytest.approx(0.25) == fit([0.0, 1.0], [2.0, 2.0], penalty=0.0).L1
    falling = fit([3.0, 2.0, 1.0], [1.0, 2.0, 3.0], penalty=0.0)  # a negative slope is not allowed
    assert pytest.approx((2.0, 0.0)) == (falling.L0, falling.L1)
    assert fit([-1.0, -2.0], [1.0, 2.0]) == SmoothnessFit(0.0, 0.0, pytest.approx(-9.0), 0.0, 2)


def test_fit_of_exact_data_has_goodness_one_and_passes_over_what_is_not_finite():
    gradient = torch.linspace(1, 5, 20, dtype=torch.float64)
    values = 3 + 2 * gradient
    values[3] = math.nan
    gradient[5] = math.inf
    found = fit(values, gradient)
    assert (found.L0, found.L1, found.goodness, found.samples) == pytest.approx((3, 2, 1, 18), rel=1e-6)
    assert found.above == 0
    assert found(2.0) == pytest.approx(7.0)
    assert found.radius(2.0, kappa=0.5) == pytest.approx(1 / 7)


def test_radius_without_curvature_is_infinite():
    assert SmoothnessFit(0.0, 0.0, 0.0, 0.0, 1).radius(1.0) == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0]), "one `grad_dual_norm` per `L_hat`, but got 2 and 1"),
        (([math.nan], [1.0]), "at least one finite sample"),
        (([], []), "at least one finite sample"),
        (([1.0], [1.0], -1.0), "`penalty` to satisfy 0 <= penalty < inf, but got -1.0"),
        (([1.0], [1.0], math.nan), "`penalty` to satisfy 0 <= penalty < inf, but got nan"),
        (([1.0], [1.0], math.inf), "`penalty` to satisfy 0 <= penalty < inf, but got inf"),
    ],
)
def test_fit_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(*arguments)


def test_running_fit_forgets_and_resumes():
    running = RunningFit(window=3)
    assert running.fit() is None
    for value in (100.0, 2.0, 4.0, 6.0, math.nan):
        running.add(value, value / 2 if value < 100 else 1.0)
    assert pytest.approx(2.0) == running.fit().L1
    other = RunningFit(window=3)
    other.load_state_dict(running.state_dict())
    assert other.fit() == running.fit()
    with pytest.raises(ValueError, match="whole number >= 2, but got 1"):
        RunningFit(window=1)


# ---------------------------------------------------------------- a function with known constants, layer by layer


class Exponential:
    """f(X) = sum_i phi_i(<A_i, X_i>), ||A_i||_* = 1, phi_i'' = L0_i + L1_i phi_i': layer-wise (L0, L1) smooth."""

    constants = ((5.0, 10.0), (0.0, 4.0), (20.0, 0.5))

    def __init__(self, noise: float) -> None:
        self.noise = noise
        self.weights = nn.ParameterList([torch.randn(6, 4), torch.randn(4, 8), torch.randn(5, 5)])
        self.slopes = [slope / Spectral().dual_norm(slope) for slope in (torch.randn_like(w) for w in self.weights)]
        for weight, slope, (_, L1) in zip(self.weights, self.slopes, self.constants, strict=True):
            with torch.no_grad():  # start where phi' is about 20
                weight.copy_(Spectral(orthogonalizer="svd").lmo(slope) * math.log(20) / L1)

    def gradients(self, sample: int) -> list[torch.Tensor]:
        random = torch.Generator().manual_seed(sample)
        found = []
        for weight, slope, (L0, L1) in zip(self.weights, self.slopes, self.constants, strict=True):
            value = float((weight.detach() * slope).sum())
            derivative = (math.exp(L1 * value) * (20 * L1 + L0) / 20 - L0) / L1
            found.append((derivative + self.noise * float(torch.randn((), generator=random))) * slope)
        return found


def estimates(noise: float, radius: float, steps: int = 240) -> list[list[dict[str, float]]]:
    """Walk down with both gradients of every sample; return the readings by layer."""
    torch.manual_seed(3)
    function = Exponential(noise)
    optimizer = Gluon(function.weights.parameters(), lr=radius, momentum=0.0, orthogonalizer="svd")
    layers, found, last = optimizer.layers(), [[] for _ in function.constants], None
    for sample in range(steps):
        new = function.gradients(sample)
        if last is not None:
            pairs = []
            here = [weight.detach().clone() for weight in function.weights]
            with torch.no_grad():
                for weight, before in zip(function.weights, last[0], strict=True):
                    weight.copy_(before)
                old = function.gradients(sample)
                for weight, present in zip(function.weights, here, strict=True):
                    weight.copy_(present)
            for index, layer in enumerate(layers):
                pairs.append(Pair(layer, new[index], last[0][index], last[1][index], old=old[index]))
            for readings, raw in zip(found, measure(pairs), strict=True):
                readings.append(derive(raw))
        last = ([weight.detach().clone() for weight in function.weights], new)
        for weight, gradient in zip(function.weights, new, strict=True):
            weight.grad = gradient
        optimizer.step()
    return found


@pytest.mark.parametrize(("noise", "close"), [(0.0, 0.06), (0.3, 0.12)])
def test_same_sample_estimate_recovers_known_constants(noise, close):
    for readings, (L0, L1) in zip(estimates(noise, 0.001), Exponential.constants, strict=True):
        kept = [reading for reading in readings if reading["grad_dual_norm"] > 1]
        found = fit([r["L_hat"] for r in kept], [r["grad_dual_norm"] for r in kept])
        scale = L0 + 20 * L1
        assert abs(found.L0 - L0) < close * scale
        assert pytest.approx(L1, rel=0.15, abs=0.05) == found.L1


def test_trajectory_estimate_on_the_same_noisy_function_is_not_the_smoothness():
    # The same run: different minibatches miss the smoothness by an order of magnitude where the same sample has it.
    readings = estimates(0.3, 0.001)[2]
    same = np.median([reading["L_hat"] for reading in readings])
    paper = np.median([reading["L_trajectory"] for reading in readings])
    assert same == pytest.approx(30, rel=0.2)
    assert paper > 5 * same


@pytest.mark.parametrize("radius", [0.001, 0.01])
def test_trajectory_estimate_of_noise_returns_sqrt2_over_t(radius):
    # Minibatch noise outweighs the mean gradient: whatever t was used, L1 comes out as sqrt(2) / t.
    weight = nn.Parameter(torch.randn(24, 24))
    optimizer = Gluon([("w", weight)], lr=radius, momentum=0.9, orthogonalizer="svd")
    layer, values, gradients, last = optimizer.layers()[0], [], [], None
    for _ in range(40):
        gradient = 0.01 * weight.detach() + torch.randn(24, 24)
        if last is not None:
            reading = derive(measure([Pair(layer, gradient, *last)])[0])
            values.append(reading["L_trajectory"])
            gradients.append(reading["grad_dual_norm"])
            assert reading["noise_only"] == pytest.approx(noise_only(reading["grad_dual_norm"], radius), rel=1e-3)
            assert math.isnan(reading["L_hat"])
        last = (weight.detach().clone(), gradient)
        weight.grad = gradient
        optimizer.step()
    L1 = np.mean(np.array(values) / np.array(gradients))
    assert L1 * radius == pytest.approx(math.sqrt(2), rel=0.06)  # measured 1.43
