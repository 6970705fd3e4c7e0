"""The public contract: every registered row keeps it, rows that break a promise are caught, needs are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lightning_gluon import METHODS, Estimator, register_method, register_norm
from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.norms import NORMS, Norm, RowNorm, Spectral
from lightning_gluon.norms.needs import Context
from lightning_gluon.testing import check_estimator, check_method, check_norm
from tests._toys import Balanced, Paired, Weighted, method_of, needed

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
    check_method(name, **needed(name))


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
class Cut(Spectral):
    separable: ClassVar[tuple[int, ...]] = (-2,)


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
        (Cut(orthogonalizer="svd"), "the LMO of a piece is the piece of the LMO"),
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


# ------------------------------------------------------------------ needs


@pytest.mark.parametrize("norm", [Weighted(), Balanced(), Paired()], ids=lambda norm: type(norm).__name__)
def test_norms_with_needs_keep_the_contract(norm: Norm) -> None:
    check_norm(norm)


@pytest.mark.parametrize("norm", [Weighted, Balanced])
def test_methods_with_needs_keep_the_contract(norm: type[Norm]) -> None:
    """State of the norm is complete after the first step and resumes bit for bit."""
    register_norm("toy", norm)
    register_method("toy-gluon", method_of("toy"))
    check_method("toy-gluon")
