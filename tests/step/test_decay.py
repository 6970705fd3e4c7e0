"""Decays: on all entries, or by the directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon, configure_optimizers
from lightning_gluon.callbacks import GluonOptimizer
from lightning_gluon.step.decay import DECAYS, Decay
from lightning_gluon.testing import check_method
from tests._toys import gradients

pytestmark = pytest.mark.usefixtures("tables")


class Outward(Decay):
    """Shrinks the entries whose step points inwards; reads the directions."""

    reads_units = True

    def shrink_(self, weights: list[Tensor], keep: float | Tensor, units: list[Tensor]) -> None:
        for weight, unit in zip(weights, units, strict=True):
            weight.copy_(torch.where(weight * unit > 0, weight * keep, weight))


@pytest.mark.parametrize(("norm", "role"), [("spectral", "hidden"), ("identity", "bias"), ("rms", "bias")])
def test_a_decay_reads_the_directions(norm: str, role: str) -> None:
    DECAYS["outward"] = Outward()
    shape = (3, 5) if role == "hidden" else (6,)
    p = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    twin = nn.Parameter(p.detach().clone())
    options = {"orthogonalizer": "svd"} if role == "hidden" else {}
    before = p.detach().clone()
    for parameter, decay, weight_decay in ((p, "outward", 2.0), (twin, "plain", 0.0)):
        group = {"params": [parameter], "role": role, "norm": norm, "decay": decay, **options}
        optimizer = Gluon([group], lr=0.1, weight_decay=weight_decay, radius={role: 1.0})
        gradients([parameter], 0)
        optimizer.step()
    unit = before - twin.detach()
    expected = torch.where(before * unit > 0, before * (1 - 0.1 * 2.0), before) - unit
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-12)


def stepped(start: Tensor, decay: str | None, weight_decay: float = 2.0, lr: float = 0.1, **options: Any) -> Tensor:
    """Return the weights after one step along a fixed gradient."""
    p = nn.Parameter(start.clone())
    optimizer = Gluon([{"params": [p], "role": "hidden"}], lr=lr, weight_decay=weight_decay, decay=decay, **options)
    gradients([p], 0)
    optimizer.step()
    return p.detach()


EXACT: dict[str, Any] = {"orthogonalizer": "svd"}


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_cautious_decay_is_its_definition(shape: tuple[int, int]) -> None:
    start = torch.randn(shape, dtype=torch.float64)
    unit = start - stepped(start, "plain", weight_decay=0.0, **EXACT)
    expected = torch.where(start * unit > 0, start * (1 - 0.1 * 2.0), start) - unit
    torch.testing.assert_close(stepped(start, "cautious", **EXACT), expected, rtol=0, atol=1e-10)


def test_cautious_decay_with_aligned_signs_is_plain() -> None:
    zero = torch.zeros(3, 5, dtype=torch.float64)
    along = -stepped(zero, "plain", **EXACT)  # weights with the signs of the step
    assert torch.equal(stepped(along, "cautious", **EXACT), stepped(along, "plain", **EXACT))
    against = stepped(-along, "cautious", **EXACT)
    assert torch.equal(against, stepped(-along, "plain", weight_decay=0.0, **EXACT))


def test_a_decay_that_follows_the_learning_rate() -> None:
    """Under a schedule the decay is `lr (lr / initial_lr) weight_decay`; without one it is plain."""
    start = torch.randn(3, 5, dtype=torch.float64)
    assert torch.equal(stepped(start, "follows_lr", **EXACT), stepped(start, "plain", **EXACT))
    p = nn.Parameter(start.clone())
    optimizer = Gluon(
        [{"params": [p], "role": "hidden"}], lr=0.4, weight_decay=0.5, decay="follows_lr", momentum=0.0, **EXACT
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    x = start
    for step in range(3):
        lr = 0.4 / (1 + step)
        gradients([p], step)
        u, _, v = torch.linalg.svd(p.grad, full_matrices=False)
        x = x - lr * (lr / 0.4) * 0.5 * x - lr * (3 / 5) ** 0.5 * u @ v
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-10)


def test_adamw_decays_plainly() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    for decay in ("cautious", "follows_lr"):
        with pytest.raises(ValueError, match=f"Expected `decay` of group .* to be 'plain', but got '{decay}': AdamW"):
            Gluon(net, method="adamw", decay=decay)
        with pytest.raises(ValueError, match="to be 'plain', but got"):
            Gluon([{"params": [nn.Parameter(torch.ones(3))], "role": "bias", "decay": decay}], method="muon")
        decays = {group["role"]: group.get("decay") for group in Gluon(net, method="muon", decay=decay).param_groups}
        assert decays["hidden"] == decay and decays["head"] == "plain"
    assert Gluon(net, method="adamw", decay="plain").param_groups
    with pytest.raises(ValueError, match=r"`decay` of group .* to be one of plain, cautious, follows_lr, but"):
        Gluon(net, decay="shy")


@pytest.mark.parametrize("decay", DECAYS)
def test_a_run_with_a_decay_is_resumed(decay: str) -> None:
    check_method("gluon", decay=decay, weight_decay=0.5)


def test_a_saved_decay_is_taken_up() -> None:
    net = nn.Linear(4, 8)
    fresh = Gluon(net, decay="plain")
    fresh.load_state_dict(Gluon(net, decay="cautious").state_dict())
    assert {group["decay"] for group in fresh.param_groups} == {"cautious"}


def test_a_number_is_the_schedule_and_a_string_the_weights() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    common: dict[str, Any] = {"lr": 0.1, "schedule": "wsd", "total_steps": 10}
    for decay, share, kind in ((0.4, 0.4, "plain"), ("cautious", 0.2, "cautious"), (None, 0.2, "plain")):
        configured = configure_optimizers(net, decay=decay, **common)
        assert configured["lr_scheduler"]["scheduler"].schedule.decay == share
        assert {group.get("decay") for group in configured["optimizer"].param_groups} == {kind}
        callback = GluonOptimizer(decay=decay, **common)
        configured = callback.configure(net)
        assert {group.get("decay") for group in configured["optimizer"].param_groups} == {kind}
    with pytest.raises(ValueError, match="Expected `decay`"):
        GluonOptimizer("adamw", lr=0.1, decay="cautious")
