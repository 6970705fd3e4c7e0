"""Momo and NGN against their definitions, and the trainings that they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.radius import Factors, MomentumModel, Momo, Ngn, Observation, RadiusRule
from lightning_gluon.radius.control import RadiusControl
from lightning_gluon.radius.observe import StepRecord

EXACT = 1e-10  # fp64, exact singular values
LR, B, LOWEST, ALPHA = 0.3, 0.9, 0.2, 0.07
RADII = {"hidden": 1.0, "head": 2.0}
SHAPES = {"hidden": (5, 4), "head": (3, 5)}


def sample(step: int, weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a step's sample and its gradients, for a quadratic of two matrices."""
    generator = torch.Generator().manual_seed(step)
    targets = {name: torch.randn(x.shape, generator=generator, dtype=x.dtype) for name, x in weights.items()}
    gradients = {name: x - 0.3 * targets[name] for name, x in weights.items()}
    return LOWEST + 0.5 * torch.stack([g.square().sum() for g in gradients.values()]).sum(), gradients


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(99)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def steps_of(rule: RadiusRule, steps: int = 12, **options: Any) -> list[dict[str, Tensor]]:
    """Return the iterates under a rule; both matrices are spectral, unscaled."""
    params = {name: nn.Parameter(x) for name, x in start().items()}
    groups = [{"params": [p], "role": name, "norm": "spectral", "scaling": "none"} for name, p in params.items()]
    optimizer = Gluon(groups, method="gluon", lr=LR, momentum=B, radius=RADII, orthogonalizer="svd", **options)
    control = RadiusControl(rule)
    control.begin(optimizer, None)
    path = []
    for step in range(steps):
        loss, gradients = sample(step, {name: p.detach() for name, p in params.items()})
        for name, p in params.items():
            p.grad = gradients[name]
        if step == 6:  # a checkpoint and a new control
            saved = control.state_dict()
            control = RadiusControl(type(rule)(**vars(rule)))
            control.load_state_dict(saved)
            control.begin(optimizer, None)
        control.advance(StepRecord(loss))
        optimizer.step()
        path.append({name: p.detach().clone() for name, p in params.items()})
    return path


def nuclear(m: Tensor) -> Tensor:
    return torch.linalg.svdvals(m).sum()


def polar(m: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(m, full_matrices=False)
    return left @ right


def dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def close(path: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    gaps = [(a[name] - b[name]).abs().max().item() for a, b in zip(path, other, strict=True) for name in a]
    return max(gaps) <= EXACT


@pytest.mark.parametrize("begin", ["gradient", "zero"])
def test_momo_is_its_definition(begin: str) -> None:
    """`t = min(lr, (l - rho F* + <M, W>)_+ / ||M||_*)`, rho the sum of the weights of `l`."""
    x, path, limited = start(), [], []
    m, average, rho = {name: torch.zeros_like(w) for name, w in x.items()}, torch.zeros(()), 0.0
    for step in range(12):
        f, g = sample(step, x)
        b = 0.0 if step == 0 and begin == "gradient" else B
        m = {name: b * m[name] + (1 - b) * g[name] for name in x}
        average, rho = b * average + (1 - b) * (f - dot(g, x)), b * rho + (1 - b)
        dual = sum(RADII[name] * nuclear(m[name]).item() for name in x)
        polyak = max(0.0, (average - rho * LOWEST + dot(m, x)).item()) / dual
        limited.append(polyak < LR)
        x = {name: w - min(LR, polyak) * RADII[name] * polar(m[name]) for name, w in x.items()}
        path.append(x)
    assert close(steps_of(Momo(LOWEST), start=begin), path)
    assert True in limited and False in limited


def test_ngn_is_its_definition() -> None:
    """`D = sum s <g, LMO(g)>`, `rho = 2 alpha f / D`, `t = lr rho / (lr + rho)`."""
    x, path = start(), []
    m = {name: torch.zeros_like(w) for name, w in x.items()}
    for step in range(12):
        f, g = sample(step, x)
        m = {name: g[name] if step == 0 else B * m[name] + (1 - B) * g[name] for name in x}
        rho = ALPHA * 2 * f / sum(RADII[name] * nuclear(g[name]) for name in x)
        t = LR * rho / (LR + rho)
        x = {name: w - t * RADII[name] * polar(m[name]) for name, w in x.items()}
        path.append(x)
    assert close(steps_of(Ngn(ALPHA)), path)


def test_reductions() -> None:
    """A bound far below what can be reached leaves the plain run, and so does a Polyak step without end."""
    plain = steps_of(Momo(-1e9))
    assert close(steps_of(Ngn(1e14)), plain)
    assert not close(steps_of(Momo(LOWEST)), plain)


@pytest.mark.parametrize("method", ["gluon", "gluon-nesterov", "gluon-dual", "gluon-mix", "muon"])
def test_the_model_of_every_kernel_is_exact_on_linear_losses(method: str) -> None:
    """For `f = <g, W> + c` with one `g` all terms but `c` cancel: the model is the loss at the weights."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    extra: dict[str, Any] = {"total_steps": 6} if method in ("gluon-dual", "gluon-mix") else {}
    optimizer = Gluon(net, lr=0.1, method=method, start="gradient", **extra)
    measurement = MomentumModel(optimizer)
    slopes = [torch.randn_like(p) for p in net.parameters()]
    adamw = [group for group in optimizer.param_groups if group["estimator"] == "adamw"]
    beside = {id(p) for group in adamw for p in group["params"]}
    before = {id(p): dict(kept) for p, kept in optimizer.state.items()}
    for _ in range(6):
        own = [(p, s) for p, s in zip(net.parameters(), slopes, strict=True) if id(p) not in beside]
        loss = 3.0 + torch.stack([(p.detach() * s).sum() for p, s in own]).sum()
        for p, s in zip(net.parameters(), slopes, strict=True):
            p.grad = s.clone()
        seen = measurement.observe(StepRecord(loss))
        assert seen["model"] == pytest.approx(loss.item(), abs=1e-9) and seen["model_weight"] == pytest.approx(1.0)
        assert set(seen["layers"]) == {name for name, p in net.named_parameters() if id(p) not in beside}
        assert {id(p): dict(kept) for p, kept in optimizer.state.items()}.keys() >= before.keys()
        optimizer.step()


def test_measuring_leaves_the_state_as_it_is() -> None:
    net = nn.Linear(4, 5)
    optimizer = Gluon(net, method="gluon-nesterov")
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    MomentumModel(optimizer).observe(StepRecord(torch.ones(())))
    assert not optimizer.state
    optimizer.step()
    kept = {p: s["momentum"].clone() for p, s in optimizer.state.items()}
    MomentumModel(optimizer).observe(StepRecord(torch.ones(())))
    assert all(torch.equal(optimizer.state[p]["momentum"], m) for p, m in kept.items())


def test_a_loss_that_is_not_finite_is_no_evidence() -> None:
    net = nn.Linear(4, 5)
    optimizer = Gluon(net)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    measurement = MomentumModel(optimizer)
    assert measurement.observe(StepRecord(torch.tensor(torch.nan))) == {} and not measurement.averages
    assert Momo()(Observation(step=0)) is None and Ngn()(Observation(step=0)) is None
    assert Momo(5.0)(Observation(step=0, base={"a": 1.0}, model=1.0, layers={"a": {"dual_norm": 1.0, "lr": 1.0}})) == (
        Factors(lmo=0.0, adamw=1.0)
    )


@pytest.mark.parametrize(
    ("method", "rule", "message"),
    [
        ("adamw", Momo(), "AdamW steps all of them"),
        ("hyperball", Ngn(), "norm of group 'hidden' to attain its dual norm, but got 'relative'"),
        ("gluon-mvr1", Momo(), "an average of past gradients, but got estimator 'mvr1'"),
        ("ef21-muon", Momo(), "an average of past gradients, but got estimator 'ef21'"),
        ("gluon-igt", Momo(), "one at the point 'transported'"),
    ],
)
def test_trainings_that_a_rule_refuses(method: str, rule: RadiusRule, message: str) -> None:
    optimizer = Gluon(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)), method=method)
    with pytest.raises(ValueError, match=message):
        RadiusControl(rule).begin(optimizer, None)


def test_groups_with_two_momenta_are_refused() -> None:
    groups = []
    for role, momentum in (("hidden", 0.9), ("head", 0.5)):
        groups.append({"params": [nn.Parameter(torch.randn(3, 4))], "role": role, "momentum": momentum})
    with pytest.raises(ValueError, match="one momentum for all groups"):
        MomentumModel(Gluon(groups))


@pytest.mark.parametrize(("rule", "option"), [(Ngn, {"alpha": 0.0}), (Momo, {"lower_bound": float("nan")})])
def test_options_out_of_range(rule: type, option: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        rule(**option)
