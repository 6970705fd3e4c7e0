"""Gradients ahead by averages: replays from the definitions, both ends, resume and bytes."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from tests.estimators._replay import EXACT, gap, gradient, optimizer_of, replayed, start, take, trained

B = 0.9
LENGTH = 20
METHODS = ["gluon-ema-nesterov", "gluon-anchor"]


def test_ema_nesterov_by_its_definition() -> None:
    """y = x + r v, x' = y - lr D(M), v' = c v + (1 - c) (x' - x) with c = a / (1 + a)."""
    r, a = 0.6, 0.25 * LENGTH
    kept: dict[str, Tensor] = {}

    def estimate(step: int, path: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = path[-1]
        v = kept.get("v", torch.zeros_like(x))
        if step:
            kept["v"] = v = a / (1 + a) * v + 1 / (1 + a) * (x - path[-2])
        y = x + r * v
        g = gradient(step, y)
        kept["m"] = B * kept.get("m", g) + (1 - B) * g
        return y, kept["m"]

    options = {"lookahead": r, "average_age": 0.25, "total_steps": LENGTH}
    assert gap(trained("gluon-ema-nesterov", steps=LENGTH, **options), replayed(estimate, steps=LENGTH)) <= EXACT


def test_the_anchor_gradient_by_its_definition() -> None:
    """y = x + r_k (x - e), the step taken at x, e' = c e + (1 - c) x'; r_k grows over the last part."""
    r, a, ramp = 0.45, 0.3 * LENGTH, 0.5
    kept: dict[str, Tensor] = {}

    def estimate(step: int, path: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = path[-1]
        kept["e"] = a / (1 + a) * kept["e"] + 1 / (1 + a) * x if step else x
        share = max(0.0, (step / LENGTH - (1 - ramp)) / ramp)
        g = gradient(step, x + r * share * (x - kept["e"]))
        kept["m"] = B * kept.get("m", g) + (1 - B) * g
        return x, kept["m"]

    options = {"lookahead": r, "average_age": 0.3, "ramp": ramp, "total_steps": LENGTH}
    found = trained("gluon-anchor", steps=LENGTH, **options)
    assert gap(found, replayed(estimate, steps=LENGTH)) <= EXACT
    plain = trained("gluon", steps=LENGTH)
    assert gap(found[: LENGTH // 2 + 2], plain[: LENGTH // 2 + 2]) == 0, "gluon itself up to the ramp"
    assert gap(found[-1:], plain[-1:]) > 1e-3


def test_the_lookahead_follows_the_learning_rate() -> None:
    """Of EMA-Nesterov: where the rate is half of the largest, so is the way ahead."""
    weight = nn.Parameter(start())
    optimizer = optimizer_of(weight, "gluon-ema-nesterov", total_steps=LENGTH, lookahead=0.5)
    for step in range(3):
        take(optimizer, weight, step)
    optimizer.param_groups[0]["initial_lr"] = 2 * optimizer.param_groups[0]["lr"]
    here, average = weight.detach().clone(), optimizer.state[weight]["average_step"].clone()
    with optimizer.at_reference():
        torch.testing.assert_close(weight.detach(), here + 0.25 * average)
    assert torch.equal(weight, here)
    optimizer.param_groups[0]["lr"] = 0.0
    assert not optimizer.needs_reference  # nowhere to go


@pytest.mark.parametrize("method", METHODS)
def test_no_lookahead_is_gluon_bit_for_bit(method: str) -> None:
    assert gap(trained(method, lookahead=0.0, total_steps=8), trained("gluon")) == 0
    weight = nn.Parameter(start())
    optimizer = optimizer_of(weight, method, lookahead=0.0, total_steps=8)
    take(optimizer, weight, 0)
    assert set(optimizer.state[weight]) == {"momentum"} and optimizer.reference_point is None


@pytest.mark.parametrize(("method", "key"), zip(METHODS, ["average_step", "anchor"], strict=True))
def test_bytes_and_gradients(method: str, key: str) -> None:
    """One gradient per step; beside the momentum one average, in fp32 also for half precision."""
    weight = nn.Parameter(start().bfloat16())
    optimizer = optimizer_of(weight, method, total_steps=8)
    predicted = optimizer.memory()
    assert predicted["by_kind"] == {"momentum": 4 * weight.numel(), "reference": 4 * weight.numel()}
    for step in range(8):
        take(optimizer, weight, step)
    assert optimizer.memory()["by_kind"] == predicted["by_kind"]
    assert optimizer.gradient_evaluations == 8
    assert optimizer.state[weight][key].dtype == torch.float32
    assert not optimizer.keeps_previous


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("saved_at", [1, 7])
def test_resume_is_exact(method: str, saved_at: int) -> None:
    weight, other = nn.Parameter(start()), nn.Parameter(start())
    options: dict[str, Any] = {"total_steps": 9, "average_age": 0.3}
    optimizer = optimizer_of(weight, method, **options)
    for step in range(saved_at):
        take(optimizer, weight, step)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = optimizer_of(other, method, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        other.copy_(weight)
    for step in range(saved_at, 10):
        take(optimizer, weight, step)
        take(resumed, other, step)
    assert torch.equal(weight, other)


def test_a_parameter_that_took_no_step_has_not_moved() -> None:
    """Its average step shrinks, and its weights stay bit for bit."""
    net = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    optimizer = Gluon(net, lr=0.1, method="gluon-ema-nesterov", total_steps=10)

    def closure(used: int) -> None:
        for layer in net:
            layer.zero_grad()
        sum(net[index](torch.ones(2, 4)).square().sum() for index in range(used)).backward()  # type: ignore[union-attr]

    for used in (2, 2, 1, 1):
        before = net[1].weight.detach().clone()
        average = optimizer.state.get(net[1].weight, {}).get("average_step", torch.zeros(())).norm()
        optimizer.step(lambda used=used: closure(used))
        assert torch.equal(before, net[1].weight) == (used == 1)
        if used == 1:
            assert 0 < optimizer.state[net[1].weight]["average_step"].norm() < average


def test_steps_without_a_closure_are_refused_where_the_point_is_elsewhere() -> None:
    weight = nn.Parameter(start())
    optimizer = optimizer_of(weight, "gluon-anchor", total_steps=4, ramp=0.5)
    weight.grad = gradient(0, weight.detach())
    with pytest.raises(RuntimeError, match="needs a closure, from the first step on"):
        optimizer.step()
    optimizer.two_point = "loop"
    for step in range(3):  # up to the ramp the weights are the point
        weight.grad = gradient(step, weight.detach())
        optimizer.step()
    with pytest.raises(RuntimeError, match="not at the transported point"):
        optimizer.step()
    with optimizer.at_reference():
        weight.grad = gradient(3, weight.detach())
    optimizer.step()


def test_a_state_kept_in_another_form_loads_in_groups_without_it() -> None:
    """AdamW's groups of muon-mvr keep their previous iterate as the hidden ones do."""
    nets = [nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)) for _ in range(2)]
    one, two = (Gluon(net, lr=0.1, method="muon-mvr", reference="step") for net in nets)
    one.step(lambda: nets[0](torch.ones(2, 4)).square().sum().backward())
    two.load_state_dict(one.state_dict())
    assert all("displacement" in two.state[parameter] for parameter in nets[1].parameters())
