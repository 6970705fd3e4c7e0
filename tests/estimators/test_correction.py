"""The damped correction and the scaled look-ahead: replays from the definitions, both ends, and what they cost."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from tests.estimators._replay import EXACT, STEPS, gap, gradient, optimizer_of, replayed, start, take, trained

B = 0.9
TWO = ["gluon-mvr1", "gluon-mvr2", "gluon-mvr3", "muon-mvr", "limuon", "mars"]


def test_nesterov_by_its_definition() -> None:
    m: list[Tensor] = []

    def estimate(step: int, path: list[Tensor]) -> tuple[Tensor, Tensor]:
        g = gradient(step, path[-1])
        m.append(B * m[-1] + (1 - B) * g if m else g)
        return path[-1], B * m[-1] + (1 - B) * g

    assert gap(trained("gluon-nesterov"), replayed(estimate)) <= EXACT


@pytest.mark.parametrize(("method", "share"), [("gluon-igt", 1.0), ("gluon-lookahead", 0.2)])
def test_lookahead_by_its_definition(method: str, share: float) -> None:
    m: list[Tensor] = []

    def estimate(step: int, path: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = path[-1]
        ahead = x - path[-2] if step else torch.zeros_like(x)
        g = gradient(step, x + share * B / (1 - B) * ahead)
        m.append(B * m[-1] + (1 - B) * g if m else g)
        return x, m[-1]

    assert gap(trained(method), replayed(estimate)) <= EXACT


def quadratic(method: str, **options: Any) -> list[Tensor]:
    """Return the iterates on gradients whose slope is the same everywhere."""
    weight = nn.Parameter(start())
    optimizer = optimizer_of(weight, method, **options)
    path = []
    for step in range(STEPS):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)

        def closure(noise: Tensor = noise) -> None:
            weight.grad = 2 * weight.detach() + noise

        optimizer.step(closure)
        path.append(weight.detach().clone())
    return path


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_to_first_order_a_lookahead_is_the_damped_correction(share: float) -> None:
    """On a quadratic it is exactly, with the share for gamma and one gradient in place of two."""
    found = quadratic("gluon-igt", lookahead=share)
    assert gap(found, quadratic("gluon-mvr1", gamma=share)) <= EXACT
    assert gap(found, quadratic("gluon")) > 1e-3


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_gamma_by_its_definition(gamma: float) -> None:
    """M <- b (M + gamma D) + (1 - b) c_new with D = c_new - c_old."""
    m: list[Tensor] = []

    def estimate(step: int, path: list[Tensor]) -> tuple[Tensor, Tensor]:
        new = gradient(step, path[-1])
        old = gradient(step, path[-2]) if step else new
        m.append(B * (m[-1] + gamma * (new - old)) + (1 - B) * new if m else new)
        return path[-1], m[-1]

    expected = replayed(estimate)
    assert gap(trained("gluon-mvr1", gamma=gamma), expected) <= EXACT
    assert gap(trained("limuon", gamma=gamma), expected) <= EXACT  # without a rank the carry is full


@pytest.mark.parametrize(("method", "transport"), [("gluon-mvr2", 0.0), ("gluon-mvr3", B)])
def test_gamma_of_the_nested_recursions_by_their_definition(method: str, transport: float) -> None:
    """G <- (1 - q) (G + gamma D) + q c_new; M <- b M + (1 - b) G, in mvr3 plus gamma b D."""
    q, gamma, kept = 0.3, 0.4, {}

    def estimate(step: int, path: list[Tensor]) -> tuple[Tensor, Tensor]:
        new = gradient(step, path[-1])
        difference = new - gradient(step, path[-2]) if step else torch.zeros_like(new)
        kept["g"] = (1 - q) * (kept.get("g", new) + gamma * difference) + q * new
        kept["m"] = B * kept.get("m", new) + (1 - B) * kept["g"] + transport * gamma * difference
        return path[-1], kept["m"]

    assert gap(trained(method, q=q, gamma=gamma), replayed(estimate)) <= EXACT


@pytest.mark.parametrize("method", TWO)
def test_no_correction_costs_nothing(method: str) -> None:
    net = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 4))
    calls = []

    def closure() -> None:
        calls.append(1)
        net.zero_grad()
        net(torch.ones(2, 12)).square().sum().backward()

    optimizer = Gluon(net, lr=0.02, method=method, gamma=0.0)
    assert optimizer.reference_point is None and not optimizer.needs_reference
    for _ in range(3):
        optimizer.step(closure)
    assert len(calls) == 3 == optimizer.gradient_evaluations
    assert optimizer.memory()["by_kind"]["reference"] == 0
    assert not any("previous" in optimizer.state[parameter] for parameter in net.parameters())


def test_no_lookahead_is_the_ema_bit_for_bit() -> None:
    assert gap(trained("gluon-igt", lookahead=0.0), trained("gluon")) == 0
    assert gap(trained("limuon", gamma=0.0), trained("gluon")) == 0
    weight = nn.Parameter(start())
    optimizer = optimizer_of(weight, "gluon-igt", lookahead=0.0)
    weight.grad = gradient(0, weight.detach())
    optimizer.step()
    weight.grad = gradient(1, weight.detach())
    optimizer.step()  # no point to take it at
    assert set(optimizer.state[weight]) == {"momentum"}


@pytest.mark.parametrize("fold", [True, "bfloat16"])
@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_folded_gradients_of_a_damped_correction(fold: bool | str, gamma: float) -> None:
    """`.grad` holds `c_new - f c_old`, f = b gamma / (1 - b (1 - gamma)), and the step is the same."""
    weight = nn.Parameter(start())
    optimizer = optimizer_of(weight, "gluon-mvr1", fold=fold, gamma=gamma)
    optimizer.two_point = "loop"
    path = [weight.detach().clone()]

    def accumulate(step: int) -> None:
        x = weight.detach().clone()
        (weight * gradient(step, x)).sum().backward()

    for step in range(6):
        weight.grad = None
        accumulate(step)
        if optimizer.needs_reference:
            with optimizer.at_reference(), optimizer.folding():
                accumulate(step)
        optimizer.step()
        path.append(weight.detach().clone())
    bound = 1e-12 if fold is True else 0.02
    assert gap(path, trained("gluon-mvr1", steps=6, gamma=gamma)) <= bound


CASES: list[tuple[str, dict[str, Any]]] = [
    ("gluon-nesterov", {}),
    ("gluon-lookahead", {}),
    ("gluon-mvr1", {"gamma": 0.3}),
    ("gluon-mvr2", {"gamma": 0.3, "reference": "step"}),
    ("gluon-mvr3", {"gamma": 0.0}),
]


@pytest.mark.parametrize(("method", "options"), CASES)
def test_resume_is_exact(method: str, options: dict[str, Any]) -> None:
    weight, other = nn.Parameter(start()), nn.Parameter(start())
    optimizer = optimizer_of(weight, method, **options)
    for step in range(3):
        take(optimizer, weight, step)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = optimizer_of(other, method, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        other.copy_(weight)
    for step in range(3, 6):
        take(optimizer, weight, step)
        take(resumed, other, step)
    assert torch.equal(weight, other)


@pytest.mark.parametrize(("saved", "present"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_loaded_state_brings_its_own_gamma(saved: float, present: float) -> None:
    """As other options do: whether the previous iterate is there is asked of the saved groups."""
    weight, other = nn.Parameter(start()), nn.Parameter(start())
    optimizer, resumed = (optimizer_of(w, "gluon-mvr1", gamma=g) for w, g in ((weight, saved), (other, present)))
    for step in range(2):
        take(optimizer, weight, step)
    resumed.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        other.copy_(weight)
    for step in range(2, 4):
        take(optimizer, weight, step)
        take(resumed, other, step)
    assert torch.equal(weight, other)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("gluon-igt", {"lookahead": 1.5}, r"`lookahead` of group 'hidden' to satisfy 0 <= lookahead <= 1, but got 1.5"),
        (
            "gluon-mvr1",
            {"gamma": -0.1},
            r"`gamma` of group 'hidden' to satisfy 0 <= gamma < inf or be 'auto', but",
        ),
        ("gluon", {"lookahead": 0.5}, r"Unknown option `lookahead` for method 'gluon'"),
        ("gluon", {"gamma": 0.5}, r"Unknown option `gamma` for method 'gluon'"),
    ],
)
def test_values_that_are_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizer_of(nn.Parameter(start()), method, **options)
