"""Bad input to the optimizer: an error that names the parameter, its shape and the remedy, before anything changed."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import nn

from lightning_gluon import Gluon
from tests import _models as models


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 5))


def backward(net: nn.Module, step: int) -> None:
    net.zero_grad()
    net(torch.randn(8, 12, generator=torch.Generator().manual_seed(step))).square().mean().backward()


BAD_OPTIONS = [
    (dict(method="glouon"), r"`method` to be one of gluon, .*scion, .* got 'glouon'"),
    (dict(lr=-0.1), r"`lr` of group 'hidden' to satisfy 0 <= lr"),
    (dict(lr=math.nan), r"`lr` of group"),
    (dict(lr=None), r"`lr` of group 'hidden' is missing"),
    (dict(momentum=1.0), r"`momentum` of group .* 0 <= momentum < 1, but got 1.0"),
    (dict(momentum=-0.1), r"`momentum`"),
    (dict(weight_decay=-1), r"`weight_decay`"),
    (dict(radius={"hidden": -1.0}), r"`radius` of group 'hidden' to satisfy"),
    (dict(radius={"hiden": 1.0}), r"keys of `radius` to be among hidden, .* got 'hiden'"),
    (dict(radius=0.5), r"`radius` to map roles to radii"),
    (dict(orthogonalizer="cholesky"), r"`orthogonalizer` of group 'hidden' to be one of polar_express"),
    (dict(on_nonfinite="shrug"), r"`on_nonfinite` .* raise, skip, ignore"),
    (dict(rank=4), r"Unknown option `rank` for method 'gluon-nesterov'. Expected one of: .*momentum_dtype"),
    (dict(method="limuon", rank=0), r"`rank` of group 'hidden' to be a whole number >= 1"),
    (dict(method="limuon", oversampling=-1), r"`oversampling` .* >= 0, but got -1"),
    (dict(method="limuon", reference="stepp"), r"`reference` .* copy, step, step8"),
    (dict(method="gluon", reference="step"), r"Unknown option `reference` for method 'gluon'"),
    (dict(method="gluon-mvr2", q=0.0), r"`q` of group .* 0 < q <= 1"),
    (dict(method="mars", gamma=-1), r"`gamma`"),
    (dict(momentum_dtype="int4"), r"`momentum_dtype` of group 'hidden' to be a floating-point dtype"),
    (dict(scaling="mup"), r"`scaling` of group 'hidden' to be one of rms"),
    (dict(lr="0.02"), r"`lr` of group 'hidden' to satisfy 0 <= lr < inf, but got '0.02'"),
    (dict(lr="auto"), r"`lr` of group 'hidden' to be a number, but got 'auto', which .*configure_optimizers` knows"),
    (dict(momentum="0.9"), r"`momentum` of group .* but got '0.9'"),
    (dict(weight_decay={"hiden": 0.1}), r"keys of `weight_decay` to be among hidden, .* got 'hiden'"),
    (dict(orthogonalizer_steps=0), r"`orthogonalizer_steps` .* whole number >= 1, or None for the default, but got 0"),
    (dict(orthogonalizer_steps=2.5), r"`orthogonalizer_steps` .* but got 2.5"),
    (dict(orthogonalizer_dtype="float8_e4m3fn"), r"`orthogonalizer_dtype` .* one of bfloat16, .*'float8_e4m3fn'"),
    (dict(method="limuon", rank=True), r"`rank` .* but got True"),
    (dict(method="limuon", seed=1.5), r"`seed` of group 'hidden' to be a whole number, but got 1.5"),
    (dict(method="gluon-mvr2", q="0.1"), r"`q` of group .* but got '0.1'"),
    (dict(method="mars", gamma=None), r"`gamma` of group .* but got None"),
    (dict(method="adamw", betas=0.9), r"`betas` of group 'hidden' to be two numbers, but got 0.9"),
    (dict(method="adamw", betas=(0.9, 0.95, 0.99)), r"`betas` of group 'hidden' to be two numbers"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gluon(network(), **{"lr": 0.02, **options})


def test_bad_parameters() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    with pytest.raises(ValueError, match="empty list of parameters"):
        Gluon([], lr=0.1)
    with pytest.raises(ValueError, match="Expected a module with parameters, but ReLU has none"):
        Gluon(nn.ReLU(), lr=0.1)
    with pytest.raises(ValueError, match="'param_1' is given twice"):
        Gluon([weight, weight], lr=0.1)
    with pytest.raises(ValueError, match=r"norm of matrices, but 'hidden_0' has shape \(3,\)"):
        Gluon([{"params": [nn.Parameter(torch.zeros(3))], "role": "hidden"}], lr=0.1)
    with pytest.raises(TypeError, match="complex64; an LMO needs real"):
        Gluon([nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))], lr=0.1)
    with pytest.raises(TypeError, match="Expected a module, a partition"):
        Gluon(weight, lr=0.1)
    with pytest.raises(TypeError, match=r"Expected a module, a partition, .* got NoneType"):
        Gluon(None, lr=0.1)
    for unordered in ({weight}, [{"params": {weight}}]):
        with pytest.raises(TypeError, match=r"in an order that is the same in every run, .* but got a set"):
            Gluon(unordered, lr=0.1)
    with pytest.raises(ValueError, match="every group to have `params`, but one has only: role"):
        Gluon([{"role": "hidden"}], lr=0.1)
    with pytest.raises(ValueError, match=r"`use_muon` is not an option here.* role='hidden' for True"):
        Gluon([{"params": [weight], "use_muon": False}], lr=0.1, method="muon")
    with pytest.raises(ValueError, match="`role` of group 'x' to be one of hidden"):
        Gluon([{"params": [weight], "role": "x"}], lr=0.1)
    with pytest.raises(ValueError, match="one number or 1, but got 2"):
        Gluon([{"params": [weight], "role": "hidden", "radius": [1.0, 2.0]}], lr=0.1)
    with pytest.raises(ValueError, match=r"one number as `radius` of group 'bias': AdamW has one learning rate"):
        Gluon([{"params": [weight], "role": "bias", "radius": [1.0]}], lr=0.1, method="muon")
    with pytest.warns(UserWarning, match="no trainable parameter has that role"):
        Gluon([weight], lr=0.1, radius={"head": 2.0})


def test_bad_late_groups() -> None:
    optimizer = Gluon(network(), lr=0.1)
    with pytest.raises(ValueError, match=r"`param_group` to be a dict with `params`, but got list"):
        optimizer.add_param_group([nn.Parameter(torch.zeros(3))])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`param_group` to be a dict with `params`, but got \['lr'\]"):
        optimizer.add_param_group({"lr": 0.1})
    with pytest.raises(TypeError, match="but got a set"):
        optimizer.add_param_group({"params": {nn.Parameter(torch.zeros(3))}})
    assert len(optimizer.param_groups) == 3


def test_options_are_checked_before_the_module_is_routed() -> None:
    net = nn.Module()
    net.table = nn.Parameter(torch.zeros(3, 4))  # no rule fits
    with pytest.raises(ValueError, match="Unknown option `nesterov`"):
        Gluon(net, lr=0.1, nesterov=True)


def test_no_state_at_all() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.1)
    with pytest.raises(ValueError, match=r"with `state` and `param_groups`, but got \['0.weight', "):
        optimizer.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match=r"but got NoneType"):
        optimizer.load_state_dict(None)  # type: ignore[arg-type]


def test_state_of_a_model_with_other_frozen_parameters() -> None:
    net = network()
    whole = Gluon(net, lr=0.1).state_dict()
    net[0].requires_grad_(False)
    part = Gluon(net, lr=0.1)
    with pytest.raises(ValueError, match=r"hidden \(1\), .* and no parameter '0.weight'. .*same parameters frozen"):
        part.load_state_dict(whole)
    with pytest.raises(ValueError, match=r"and a new parameter '0.weight'"):
        Gluon(network(), lr=0.1).load_state_dict(part.state_dict())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("limuon", r"group 'hidden' is of estimator 'nesterov', but this optimizer has 'limuon' there. Resume with"),
        ("signsgd", r"group 'hidden' is of norm 'spectral', but this optimizer has 'max'"),
    ],
)
def test_state_of_another_method(method: str, message: str) -> None:
    net = network()
    saved, other = Gluon(net, lr=0.02), Gluon(net, lr=0.03, method=method)
    backward(net, 0)
    saved.step()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved.state_dict())
    assert not other.state and other.param_groups[0]["lr"] == 0.03
    with pytest.raises(ValueError, match=r"is of norm None"):
        state = torch.optim.AdamW([{"params": g["params"]} for g in other.param_groups]).state_dict()
        other.load_state_dict(state)


def test_sparse_gradients() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = Gluon([{"params": [table.weight], "role": "embedding"}], lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"gradient of 'embedding_0' is sparse.*sparse=False"):
        optimizer.step()


def test_missing_second_gradient() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.02, method="gluon-mvr1")
    optimizer.two_point = "loop"
    backward(net, 0)
    optimizer.step()
    backward(net, 1)
    with pytest.raises(RuntimeError, match=r"gradients at the previous iterate are missing: call `step\(closure\)`"):
        optimizer.step()


def test_gradients_that_were_not_taken_at_the_transported_point() -> None:
    net = network()
    optimizer = Gluon(net, lr=0.1, method="gluon-igt")
    optimizer.two_point = "loop"
    for step in range(3):
        with optimizer.at_reference() if optimizer.needs_reference else contextlib.nullcontext():
            backward(net, step)
        optimizer.step()
    before = [p.detach().clone() for p in net.parameters()]
    for step in range(2):
        backward(net, step)
        with pytest.raises(RuntimeError, match=r"at the weights, not at the transported point: call `step\(closure\)`"):
            optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    optimizer.two_point = "closure"
    optimizer.step(lambda: backward(net, 3))


@pytest.mark.parametrize(
    ("policies", "moves"), [("ignore raise", None), ("raise ignore", True), ("ignore skip", False)]
)
def test_every_group_says_what_a_gradient_that_is_not_finite_does(policies: str, moves: bool | None) -> None:
    first, second = (nn.Parameter(torch.eye(3)) for _ in range(2))
    groups = [{"params": [p], "on_nonfinite": how} for p, how in zip((first, second), policies.split(), strict=True)]
    optimizer = Gluon(groups, lr=0.1)
    first.grad, second.grad = torch.eye(3), torch.full((3, 3), math.nan)
    with (
        contextlib.nullcontext()
        if moves is not None
        else pytest.raises(FloatingPointError, match="in 'param_0_hidden_2'")
    ):
        optimizer.step()
    assert torch.equal(first, torch.eye(3)) != bool(moves)


def test_mixed_groups_with_their_own_options() -> None:
    net = models.network()
    optimizer = Gluon(
        [
            {"params": [net[0].weight, net[2].weight], "role": "hidden", "momentum": 0.5, "scaling": "muon"},
            {"params": [net[5].weight], "role": "head", "norm": "row", "radius": 3.0},
            {
                "params": [p for p in net.parameters() if p.ndim == 1],
                "role": "bias",
                "estimator": "adamw",
                "norm": "identity",
            },
        ],
        lr=0.02,
    )
    for k in range(3):
        models.backward(net, k)
        optimizer.step()
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5, 0.9, 0.9]
    assert "exp_avg" in optimizer.state[net[0].bias] and "momentum" in optimizer.state[net[5].weight]
