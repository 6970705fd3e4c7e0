"""What a momentum can hold: gradients beyond it stop the step like those that are not finite."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon
from tests import _models as models


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def train(net: nn.Module, optimizer: Gluon, steps: int = 2) -> None:
    def closure() -> None:
        net.zero_grad()
        net(torch.ones(2, 6)).square().sum().backward()

    for _ in range(steps):
        optimizer.step(closure)


@pytest.mark.parametrize("policy", ["raise", "skip", "ignore"])
def test_a_gradient_beyond_the_range_of_its_momentum(policy: str) -> None:
    net = network()
    optimizer = Gluon(net, lr=0.02, momentum_dtype="float16", on_nonfinite=policy)
    train(net, optimizer)
    before = [p.detach().clone() for p in net.parameters()]
    net[0].weight.grad[0, 0] = 1e6
    if policy == "raise":
        with pytest.raises(FloatingPointError, match=r"too large for its `momentum_dtype` in '0.weight' \(8, 6\)"):
            optimizer.step()
    else:
        optimizer.step()
    moved = [not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]
    assert any(moved) == (policy == "ignore")
    train(net, optimizer)
    assert all(p.isfinite().all() for p in net.parameters())
    assert all(state["momentum"].isfinite().all() for state in optimizer.state.values())


def test_a_sum_of_gradients_beyond_the_range_stays_in_it() -> None:
    """STORM's recursion adds three numbers that fit; what is kept is the largest number that does."""
    weight = nn.Parameter(torch.eye(3))
    optimizer = Gluon([{"params": [weight], "role": "hidden"}], lr=0.02, method="gluon-mvr1", momentum_dtype="float16")
    for scale in (6e4, -6e4, 6e4):

        def closure(scale: float = scale) -> None:
            here = 1 if optimizer.state and torch.equal(weight, optimizer.state[weight]["previous"]) else -1
            weight.grad = torch.full((3, 3), scale * here)

        optimizer.step(closure)
    assert optimizer.state[weight]["momentum"].isfinite().all() and weight.isfinite().all()


def test_bfloat16_has_the_range_of_the_gradients() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.02, momentum_dtype="bfloat16")
    train(net, optimizer)
    net[0].weight.grad[0, 0] = 1e30
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())


def test_moments_of_adamw_are_in_the_dtype_of_the_weights() -> None:
    """`momentum_dtype` is not theirs, so its range is not either."""
    net = network()
    optimizer = Gluon(net, lr=0.02, method="muon", momentum_dtype="float16")
    train(net, optimizer)
    net[0].bias.grad[0] = 1e6
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_second_gradient_that_is_not_finite_is_called_that() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.02, method="gluon-mvr1")
    train(net, optimizer)
    optimizer.two_point = "callback"
    optimizer.reference_gradients = {p: torch.full_like(p, math.nan) for p in net.parameters()}
    with pytest.raises(FloatingPointError, match=r"Non-finite gradient in '0.weight' .* and 5 more"):
        optimizer.step()


def test_nonfinite_gradients() -> None:
    for mode in ("raise", "skip", "ignore"):
        net = models.network()
        optimizer = Gluon(net, lr=0.02, on_nonfinite=mode)
        models.backward(net, 0)
        optimizer.step()
        before, state = models.weights(net), copy.deepcopy(optimizer.state_dict())
        models.backward(net, 1)
        net[2].weight.grad[3, 4] = math.inf
        if mode == "raise":
            with pytest.raises(FloatingPointError, match=r"Non-finite gradient in '2.weight' \(24, 24\).*on_nonfinite"):
                optimizer.step()
        else:
            optimizer.step()
        if mode == "ignore":
            assert not models.weights(net).isfinite().all()
        else:
            assert torch.equal(models.weights(net), before)
            after = optimizer.state_dict()
            assert after["param_groups"] == state["param_groups"]
            assert all(
                torch.equal(after["state"][i]["momentum"], state["state"][i]["momentum"]) for i in state["state"]
            )


def test_without_a_check_only_the_norms_that_are_judged_are_computed() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3, bias=False))
    optimizer = Gluon(net, lr=0.1, on_nonfinite="ignore")
    net(torch.ones(2, 6)).sum().backward()
    plan = optimizer._plans.find(optimizer.param_groups)
    assert plan is not None
    found = plan.check.norms(plan.gradients, [], plan.guard.judged)
    every = plan.check.norms(plan.gradients, [])
    assert found is not None and every is not None
    names = [name for chunk in plan.chunks for name in chunk.names]
    read = torch.tensor([name in ("0.weight", "0.bias") for name in names])
    assert torch.equal(found, every * read)
    for group in optimizer.param_groups:
        group["noise_floor"] = 0.0
    assert plan.guard.judged == []
