"""Saved states: one sentence for what does not fit, and nothing has changed then."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gluon import METHODS, Gluon
from lightning_gluon.step.state import state_layout
from tests import _models as models
from tests._toys import needed

State = dict[str, Any]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def train(net: nn.Module, optimizer: Gluon, steps: int = 2) -> None:
    def closure() -> None:
        net.zero_grad()
        net(torch.ones(2, 6)).square().sum().backward()

    for _ in range(steps):
        optimizer.step(closure)


def group_of(state: State, name: str = "hidden") -> dict[str, Any]:
    return next(group for group in state["param_groups"] if group["name"] == name)


def buffers_of(state: State) -> dict[str, Any]:
    return state["state"][group_of(state)["params"][0]]


DAMAGED: list[tuple[str, str, Callable[[State], object], str]] = [
    ("a missing buffer", "mars-approximate", lambda s: buffers_of(s).pop("momentum"),
     r"lacks `momentum` of '0.weight'. Load a state that was saved whole"),
    ("a missing second buffer", "gluon-mvr2", lambda s: buffers_of(s).pop("gradient_estimate"),
     "lacks `gradient_estimate` of '0.weight'"),
    ("a missing reference", "gluon-mvr1", lambda s: buffers_of(s).pop("previous"), "lacks `previous` of '0.weight'"),
    ("a missing moment", "adamw", lambda s: buffers_of(s).pop("exp_avg_sq"), "lacks `exp_avg_sq` of '0.weight'"),
    ("a missing count", "adamw", lambda s: buffers_of(s).pop("step"), "lacks `step` of '0.weight'"),
    ("a buffer of another shape", "gluon", lambda s: buffers_of(s).update(momentum=torch.zeros(3)),
     r"`momentum` of '0.weight' has shape \(3,\), but \(8, 6\) belongs to this parameter"),
    ("a text as momentum", "gluon", lambda s: buffers_of(s).update(momentum="os.system"),
     r"the saved `momentum` of '0.weight' to be a tensor, but got str"),
    ("whole numbers as momentum", "gluon", lambda s: buffers_of(s).update(momentum=torch.ones(8, 6, dtype=torch.int)),
     r"`momentum` of '0.weight' has dtype torch.int32, but torch.float32 belongs there"),
    ("a momentum that is not finite", "gluon", lambda s: buffers_of(s)["momentum"][0].fill_(math.nan),
     r"`momentum` of '0.weight' is not finite. Load an earlier state"),
    ("a negative learning rate", "gluon", lambda s: group_of(s).update(lr=-0.1),
     r"cannot be loaded. Expected `lr` of group 'hidden' to satisfy 0 <= lr < inf, but got -0.1"),
    ("a negative radius", "gluon", lambda s: group_of(s).update(radius=-1.0), r"`radius` of group 'hidden'.* got -1.0"),
    ("a short list of radii", "gluon", lambda s: group_of(s, "bias").update(radius=[1.0]),
     r"`radius` of group 'bias' to be one number or 5, but got 1"),
    ("radii for AdamW", "muon", lambda s: group_of(s, "bias").update(radius=[1.0] * 5), "AdamW has one learning rate"),
    ("a momentum above one", "gluon", lambda s: group_of(s).update(momentum=1.5), r"`momentum` .* got 1.5"),
    ("an unknown policy", "gluon", lambda s: group_of(s).update(on_nonfinite="hope"), r"`on_nonfinite` .* got 'hope'"),
    ("a text as steps", "gluon", lambda s: group_of(s).update(steps="7"), r"`steps` .* whole number >= 0, but got '7'"),
    ("a missing option", "limuon", lambda s: group_of(s).pop("rank"), r"saved group 'hidden' lacks `rank`"),
    ("a missing learning rate", "gluon", lambda s: group_of(s).pop("lr"), r"saved group 'hidden' lacks `lr`"),
    ("one name twice", "gluon", lambda s: group_of(s, "bias")["param_names"].__setitem__(1, "0.bias"),
     r"saved group 'bias' to have one name per parameter"),
    ("too few names", "gluon", lambda s: group_of(s, "bias")["param_names"].pop(), "one name per parameter"),
    ("a list of buffers", "gluon", lambda s: s.update(state=[1]), r"`state` of the saved optimizer to map parameters"),
    ("groups without parameters", "gluon", lambda s: group_of(s).pop("params"), "list of dicts with `params`"),
    ("a group that is none", "gluon", lambda s: s["param_groups"].append("x"), "list of dicts with `params`"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "change", "message"), [d[1:] for d in DAMAGED], ids=[d[0] for d in DAMAGED])
def test_damaged_states_are_refused_in_one_sentence(
    method: str, change: Callable[[State], object], message: str
) -> None:
    net = network()
    optimizer = Gluon(net, lr=0.02, method=method)
    train(net, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(before)
    change(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, buffers in before["state"].items():
        assert all(torch.equal(after["state"][key][name], value) for name, value in buffers.items())


@pytest.mark.parametrize("reference", ["step", "step8"])
def test_groups_without_an_own_reference_are_held_to_that_of_the_others(reference: str) -> None:
    net = network()
    optimizer = Gluon(net, lr=0.02, method="muon-mvr", reference=reference)
    train(net, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][group_of(state, "bias")["params"][0]].pop("displacement")
    with pytest.raises(ValueError, match=r"lacks `displacement` of '0.bias'"):
        optimizer.load_state_dict(state)


def test_a_run_that_ignores_what_is_not_finite_may_hold_it() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.02, on_nonfinite="ignore")
    train(net, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    buffers_of(state)["momentum"].fill_(math.inf)
    optimizer.load_state_dict(state)


@pytest.mark.parametrize("method", METHODS)
def test_the_layout_is_what_a_step_leaves_and_a_state_restores(method: str) -> None:
    net = network()
    optimizer = Gluon(net, lr=0.02, method=method, momentum_dtype="bfloat16", total_steps=8, **needed(method))
    train(net, optimizer)
    reference = optimizer._reference.kind
    for _ in range(2):
        for group in optimizer.param_groups:
            for index, parameter in enumerate(group["params"]):
                kept = {key: (v.shape, v.dtype) for key, v in optimizer.state[parameter].items()}
                layout = state_layout(group, index, reference).entries
                assert kept == {key: (v.shape, v.dtype) for key, v in layout.items()}
        optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_state_keeps_its_dtype_on_resume(dtype: torch.dtype) -> None:
    for momentum_dtype in (None, "bfloat16"):
        net = models.network(dtype)
        optimizer = Gluon(net, lr=0.02, momentum_dtype=momentum_dtype)
        models.backward(net, 0)
        optimizer.step()
        expected = torch.bfloat16 if momentum_dtype else torch.promote_types(dtype, torch.float32)
        resumed = Gluon(models.network(dtype), lr=0.02, momentum_dtype=momentum_dtype)
        resumed.load_state_dict(optimizer.state_dict())
        for some in (optimizer, resumed):
            assert {state["momentum"].dtype for state in some.state.values()} == {expected}
        assert all(p.dtype == dtype for p in net.parameters())


def test_load_matches_by_name_not_by_position() -> None:
    net = models.network()
    named = list(net.named_parameters())
    optimizer = Gluon(named, lr=0.02)
    models.backward(net, 0)
    optimizer.step()
    shuffled = Gluon(named[::-1], lr=0.02)
    shuffled.load_state_dict(optimizer.state_dict())
    for p in net.parameters():
        assert torch.equal(shuffled.state[p]["momentum"], optimizer.state[p]["momentum"])


def test_load_into_another_model_changes_nothing() -> None:
    net = models.network()
    optimizer = Gluon(net, lr=0.02)
    models.backward(net, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    other = Gluon([(f"x{name}", p) for name, p in models.network().named_parameters()], lr=0.03)
    with pytest.raises(ValueError, match=r"groups hidden .* but this optimizer has|lacks '.*0\.weight'"):
        other.load_state_dict(saved)
    assert not other.state and other.param_groups[0]["lr"] == 0.03


def test_state_is_matched_without_the_names_of_wrappers() -> None:
    net = models.network()
    optimizer, wrapped = Gluon(net, lr=0.1), Gluon(torch.compile(net, backend="eager"), lr=0.2)
    assert wrapped.param_groups[0]["param_names"][0] == "_orig_mod.0.weight"
    models.backward(net, 0)
    optimizer.step()
    wrapped.load_state_dict(optimizer.state_dict())
    assert wrapped.param_groups[0]["lr"] == 0.1
    assert torch.equal(wrapped.state[net[0].weight]["momentum"], optimizer.state[net[0].weight]["momentum"])
