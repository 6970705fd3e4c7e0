"""The public contract: every registered row keeps it, rows that break a promise are caught, needs are given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import METHODS, Estimator, Gluon, register_estimator, register_method, register_norm
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import Method, Rule
from lightning_gluon.norms import NORMS, Euclidean, Norm, RowNorm, Spectral
from lightning_gluon.norms.needs import Context, Statistic
from lightning_gluon.roles import ROLES
from lightning_gluon.step.decay import DECAYS, Decay
from lightning_gluon.step.retraction import RETRACTIONS, Retraction
from lightning_gluon.testing import check_estimator, check_method, check_norm

pytestmark = pytest.mark.usefixtures("tables")


def made(name: str) -> Norm:
    options = {"orthogonalizer": "svd"} if issubclass(NORMS[name], Spectral) else {}
    return NORMS[name](**options)


@pytest.mark.parametrize("name", [name for name in NORMS if NORMS[name].stacks and name != "spectral_conv"])
def test_registered_norms_keep_the_contract(name: str) -> None:
    check_norm(made(name))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_registered_estimators_keep_the_contract(name: str) -> None:
    check_estimator(ESTIMATORS[name])


@pytest.mark.parametrize("name", METHODS)
def test_registered_methods_keep_the_contract(name: str) -> None:
    check_method(name)


# ------------------------------------------------------------------ what the contract catches


@dataclass(frozen=True)
class Biased(RowNorm):
    def lmo(self, g: Tensor) -> Tensor:
        return super().lmo(g + 1e-3)


@dataclass(frozen=True)
class Long(RowNorm):
    attains: ClassVar[bool] = False

    def lmo(self, g: Tensor) -> Tensor:
        return 1.5 * super().lmo(g)


@dataclass(frozen=True)
class Writing(RowNorm):
    def lmo(self, g: Tensor) -> Tensor:
        direction = super().lmo(g)
        g.zero_()
        return direction


@dataclass(frozen=True)
class Mixing(RowNorm):
    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        return super().lmo_(stack, context).flip(0)


@pytest.mark.parametrize(
    ("norm", "promise"),
    [
        (Biased(), r"<G, D\(G\)> = \|\|G\|\|_\*|D\(0\) = 0|D\(c G\) = D\(G\)"),
        (Long(), r"\|\|D\(G\)\|\| <= 1"),
        (Writing(), "leaves its input|<= |="),
        (Mixing(), r"lmo_\(stack\) = lmo\(stack\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_norms_that_break_a_promise(norm: Norm, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_norm(norm)


def _growing(buffers, new, old, options):
    return list(torch._foreach_add(new, buffers["momentum"]))


def _writing(buffers, new, old, options):
    direction = [g.clone() for g in new]
    old[0].mul_(1 + 1e-12)
    return direction


def _replacing(buffers, new, old, options):
    buffers["momentum"] = list(torch._foreach_lerp(buffers["momentum"], new, 0.1))
    return buffers["momentum"]


def _neighbours(buffers, new, old, options):
    momentum = buffers["momentum"]
    torch._foreach_lerp_(momentum, new, 0.1)
    spread = sum((g - m).square().sum() for g, m in zip(new, momentum, strict=True))
    return [m * (1 + spread) for m in momentum]


@pytest.mark.parametrize(
    ("update", "promise"),
    [
        (_growing, "constant gradients"),
        (_writing, "only read"),
        (_replacing, "in place"),
        (_neighbours, "neighbours"),
    ],
)
def test_estimators_that_break_a_promise(update: Any, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_estimator(Estimator(update))


# ------------------------------------------------------------------ needs: one toy part with each


@dataclass(frozen=True)
class Weighted(Euclidean):
    """Reads the weights: the direction is that of the momentum plus the weights."""

    matrices: ClassVar[bool] = True
    attains: ClassVar[bool] = False
    reads_weights: ClassVar[bool] = True

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        assert context.weights is not None
        return self.lmo(stack + context.weights)


@dataclass(frozen=True)
class Balanced(Euclidean):
    """Keeps a running mean of the rows' squares."""

    matrices: ClassVar[bool] = True
    attains: ClassVar[bool] = False
    statistics: ClassVar[tuple[Statistic, ...]] = (Statistic("row_square", lambda rows, columns: (rows, 1)),)

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        square = context.statistics["row_square"]
        square.lerp_(stack.square().mean(-1, keepdim=True), 0.5)
        return self.lmo(stack / square.sqrt().clamp_min(1e-30))


@dataclass(frozen=True)
class Paired(Euclidean):
    """Reads the other factor of a product: the direction is scaled by its length before the step."""

    matrices: ClassVar[bool] = True
    attains: ClassVar[bool] = False
    reads_partner: ClassVar[bool] = True

    def lmo_(self, stack: Tensor, context: Context) -> Tensor:
        lengths = torch.stack([1 / (1 + partner.norm()) for partner in context.partners])
        return self.lmo(stack) * lengths[:, None, None]


@pytest.mark.parametrize("norm", [Weighted(), Balanced(), Paired()], ids=lambda norm: type(norm).__name__)
def test_norms_with_needs_keep_the_contract(norm: Norm) -> None:
    check_norm(norm)


def method_of(norm: str) -> Method:
    gluon = METHODS["gluon"]
    return replace(gluon, rules={**gluon.rules, "hidden": Rule(norm, "ema"), "input": Rule(norm, "ema")})


@pytest.mark.parametrize("norm", [Weighted, Balanced])
def test_methods_with_needs_keep_the_contract(norm: type[Norm]) -> None:
    """State of the norm is complete after the first step and resumes bit for bit."""
    register_norm("toy", norm)
    register_method("toy-gluon", method_of("toy"))
    check_method("toy-gluon")


def gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def test_a_norm_reads_the_weights_of_its_stack() -> None:
    register_norm("toy", Weighted)
    params = [nn.Parameter(torch.randn(3, 5, dtype=torch.float64)) for _ in range(3)]
    optimizer = Gluon([{"params": params, "role": "hidden", "norm": "toy"}], lr=0.1)
    gradients(params, 0)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    for p, x in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), x - 0.1 * (p.grad + x) / (p.grad + x).norm(), rtol=0, atol=1e-12)


def test_a_norm_keeps_statistics_per_matrix() -> None:
    """Two shapes, several steps: every matrix has statistics of its own, in the state and in a loaded state."""
    register_norm("toy", Balanced)
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 5), (3, 5), (4, 2))]
    optimizer = Gluon([{"params": params, "role": "hidden", "norm": "toy"}], lr=0.1, momentum=0.0)
    x = [p.detach().clone() for p in params]
    square = [torch.zeros(p.shape[0], 1, dtype=torch.float64) for p in params]
    for step in range(3):
        gradients(params, step)
        optimizer.step()
        for index, p in enumerate(params):
            square[index] = 0.5 * square[index] + 0.5 * p.grad.square().mean(-1, keepdim=True)
            d = p.grad / square[index].sqrt()
            x[index] = x[index] - 0.1 * d / d.norm()
            torch.testing.assert_close(p.detach(), x[index], rtol=0, atol=1e-12)
    assert optimizer.state[params[2]]["row_square0"].shape == (1, 4, 1)
    assert optimizer.memory()["state_bytes"] == sum(8 * (p.numel() + p.shape[0]) for p in params)


def test_a_norm_reads_its_partner_as_it_was_before_the_step() -> None:
    """Two factors that move in one step: each reads the old value of the other, whichever comes first."""
    register_norm("toy", Paired)
    a, b = (nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((2, 5), (3, 2)))
    group = {"params": [a, b], "role": "hidden", "norm": "toy", "partners": [b, a]}
    optimizer = Gluon([group], lr=0.5, momentum=0.0)
    old = {p: p.detach().clone() for p in (a, b)}
    gradients([a, b], 0)
    optimizer.step()
    for p, partner in ((a, b), (b, a)):
        expected = old[p] - 0.5 * p.grad / p.grad.norm() / (1 + old[partner].norm())
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-12)


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


class Sphere(Retraction):
    """Keeps the Frobenius norm that a matrix has before the first step."""

    statistics = (Statistic("size", lambda rows, columns: (1, 1), lambda w: w.norm(dim=(-2, -1), keepdim=True)),)

    def retract_(self, weights: Tensor, context: Context) -> None:
        weights.mul_(context.statistics["size"] / weights.norm(dim=(-2, -1), keepdim=True))


def test_a_retraction_brings_weights_back() -> None:
    RETRACTIONS["toy"] = Sphere()
    params = [nn.Parameter(torch.randn(shape)) for shape in ((3, 5), (7, 3), (4, 4))]
    sizes = [p.detach().norm().item() for p in params]
    optimizer = Gluon([{"params": params, "role": "hidden", "retract": "toy"}], lr=0.3)
    for step in range(4):
        gradients(params, step)
        optimizer.step()
    assert [p.detach().norm().item() for p in params] == pytest.approx(sizes, rel=1e-5)


# ------------------------------------------------------------------ registering


def test_registered_rows_are_found_everywhere() -> None:
    register_estimator("last", Estimator(lambda buffers, new, old, options: new, buffers=()))
    rules = {role: Rule("euclidean", "last") for role in ROLES}
    register_method("last-gradient", Method("the last gradient, normalised", "folklore", rules))
    net = nn.Linear(3, 2)
    assert {group["estimator"] for group in Gluon(net, lr=0.1, method="last-gradient").param_groups} == {"last"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: register_norm("spectral", RowNorm), ValueError, "norm called 'spectral' already"),
        (lambda: register_norm("Row Norm", RowNorm), ValueError, "name of a norm to be lower-case"),
        (lambda: register_norm("row2", RowNorm()), TypeError, "`norm` to be a subclass"),
        (lambda: register_estimator("ema", ESTIMATORS["ema"]), ValueError, "estimator called 'ema' already"),
        (lambda: register_estimator("new", len), TypeError, "`estimator` to be an `Estimator`"),
        (
            lambda: register_estimator("new", Estimator(_growing, options={"sharpness": 1.0})),
            ValueError,
            "nobody checks: sharpness",
        ),
        (lambda: register_method("gluon", METHODS["gluon"]), ValueError, "method called 'gluon' already"),
        (lambda: register_method("new", {}), TypeError, "`method` to be a `Method`"),
        (lambda: register_method("new", Method("", "", {})), ValueError, "no rule for hidden, input"),
        (
            lambda: register_method("new", Method("", "", dict.fromkeys(ROLES, Rule("wavy")))),
            ValueError,
            "norm 'wavy' and estimator 'ema', which are not both there",
        ),
    ],
)
def test_rows_that_cannot_be_registered(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_entry_points_are_loaded_before_a_method_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gluon import registry

    class Plugin:
        def load(self) -> Any:
            return lambda: register_method("plugged-in", METHODS["gluon"])

    monkeypatch.setattr(registry, "entry_points", lambda group: [Plugin()] if group == "lightning_gluon" else [])
    registry.load_plugins.cache_clear()
    assert Gluon(nn.Linear(2, 2), lr=0.1, method="plugged-in").param_groups
    registry.load_plugins.cache_clear()
