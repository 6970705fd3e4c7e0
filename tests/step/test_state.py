"""What groups hold and how they come back: late groups like first ones, hooks around loading, plain numbers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gluon import Gluon


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def train(net: nn.Module, optimizer: Gluon, steps: int = 1) -> None:
    def closure() -> torch.Tensor:
        net.zero_grad()
        loss = net(torch.ones(2, 6)).square().sum()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def test_hooks_see_what_is_loaded() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.02)
    train(net, optimizer)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["name"] = "old"
    resumed, seen = Gluon(net, lr=0.5), []

    def rename(_: torch.optim.Optimizer, state: dict) -> dict:
        seen.append(len(state["state"]))
        return {**state, "param_groups": [{**state["param_groups"][0], "name": "hidden"}, *state["param_groups"][1:]]}

    resumed.register_load_state_dict_pre_hook(rename)
    resumed.register_load_state_dict_post_hook(lambda loaded: seen.append(len(loaded.state)))
    for _ in range(2):
        resumed.load_state_dict(saved)
    assert seen == [len(optimizer.state)] * 4
    assert resumed.param_groups[0]["name"] == "hidden" and resumed.param_groups[0]["lr"] == 0.02


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("limuon", {"rank": np.int64(1), "seed": np.int32(3)}),
        ("muon", {"betas": (np.float32(0.9), np.float64(0.99))}),
        ("scion", {"radius": {"hidden": np.float32(2.0)}}),
    ],
)
def test_numbers_of_numpy_are_saved_as_plain_ones(method: str, options: dict) -> None:
    net = network()
    lr, decay = np.geomspace(0.01, 0.1, 3)[1], {"hidden": np.float32(0.25)}
    optimizer = Gluon(net, lr=lr, method=method, weight_decay=decay, momentum=np.float64(0.75), **options)
    late = nn.Parameter(torch.ones(4, 4))
    optimizer.add_param_group({"params": [late], "role": "hidden", "lr": np.float16(0.5), "radius": [np.float32(0.5)]})
    train(net, optimizer, 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    first, *_, last = torch.load(file, weights_only=True)["param_groups"]
    assert (first["lr"], first["momentum"], first["weight_decay"]) == (lr, 0.75, 0.25)
    assert (last["lr"], last["radius"]) == (0.5, [0.5])


@pytest.mark.parametrize(
    "group",
    [
        {},
        {"name": "late"},
        {"param_names": ["w", "b"]},
        {"radius": [2.0, 0.5], "momentum": 0.5},
        {"views": [None, None], "weight_decay": 0.7},
    ],
)
def test_late_groups_are_read_like_first_ones(group: dict) -> None:
    given = {"lr": 0.1, "weight_decay": {"hidden": 0.5, "bias": 0.25}, "radius": {"hidden": 3.0, "bias": 2.0}}
    weight, bias = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    first = Gluon([{"params": [weight, bias], **group}], **given)
    late = Gluon([{"params": [nn.Parameter(torch.ones(3))], "role": "bias", "name": "other"}], **given)
    late.add_param_group({"params": [weight, bias], **group})
    added = [
        {key: value for key, value in group.items() if not key.startswith("family")} for group in late.param_groups
    ]
    assert added[1:] == first.param_groups


def test_a_late_matrix_too_small_for_the_rank_is_carried_in_full() -> None:
    net = network()
    optimizer = Gluon([net[0].weight, net[2].weight], lr=0.1, method="limuon", rank=2)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1, 4))]})
    train(net, optimizer, 2)
    assert optimizer.param_groups[1]["rank"] == 2
