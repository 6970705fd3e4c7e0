"""Methods with norms of tables: replays of their definitions, what they reduce to, what needs no norm of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import METHODS, Gluon, configure_optimizers
from lightning_gluon.norms.balanced import Balanced
from lightning_gluon.norms.clipped import ClippedRow
from lightning_gluon.norms.spectral import Spectral
from tests._toys import gradients
from tests.norms._draw import normal

RATE = 0.02
SHAPES = {"hidden": (6, 10), "embedding": (9, 6), "head": (7, 6), "router": (3, 6), "bias": (8,)}


def run(method: str, steps: int = 5, **options: Any) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Return the weights of one parameter per role, which all start at one, and their gradients."""
    params = {role: nn.Parameter(torch.ones(shape, dtype=torch.float64)) for role, shape in SHAPES.items()}
    groups = [{"params": [parameter], "role": role} for role, parameter in params.items()]
    optimizer = Gluon(groups, lr=RATE, method=method, orthogonalizer="svd", noise_floor=0.0, **options)
    seen: dict[str, list[Tensor]] = {role: [] for role in SHAPES}
    for step in range(steps):
        gradients(list(params.values()), step)
        for role, parameter in params.items():
            assert parameter.grad is not None
            seen[role].append(parameter.grad.clone())
        optimizer.step()
    return {role: parameter.detach() for role, parameter in params.items()}, seen


def polar(x: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return math.sqrt(max(1, x.shape[0] / x.shape[1])) * u @ v


def rows(m: Tensor) -> Tensor:
    return m / m.norm(dim=1, keepdim=True)


def centred(m: Tensor) -> Tensor:
    u = rows(m - m.mean(0))
    return u - u.mean(0)


def replay(seen: list[Tensor], direction: Any, rate: float, decay: float, nesterov: bool = False) -> Tensor:
    """Return the weights of `M = .95 M + .05 g`, `W <- (1 - lr decay) W - rate D`."""
    weight, m = torch.ones_like(seen[0]), torch.zeros_like(seen[0])
    for g in seen:
        m = 0.95 * m + 0.05 * g
        u = 0.95 * m + 0.05 * g if nesterov else m
        weight = (1 - RATE * decay) * weight - rate * direction(u)
    return weight


def test_symmetry_compatible_is_its_definition() -> None:
    found, seen = run("symmetry-compatible")
    wanted = {
        "hidden": replay(seen["hidden"], polar, 0.02, 0.001),
        "embedding": replay(seen["embedding"], rows, 0.5, 0.0),
        "head": replay(seen["head"], centred, 0.005, 0.0),
        "router": replay(seen["router"], centred, 0.003, 0.0),
    }
    for role, weight in wanted.items():
        torch.testing.assert_close(found[role], weight, rtol=0, atol=1e-10)


def clipped(x: Tensor) -> Tensor:
    """Return `sign(x) min(3, tau |x|) / d`, tau by bisection."""
    low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e6).double()
    for _ in range(100):
        tau = (low + high) / 2
        short = (tau * x.abs()).clamp_max(3).square().sum(1, keepdim=True) < x.shape[1]
        low, high = torch.where(short, tau, low), torch.where(short, high, tau)
    return x.sign() * (high * x.abs()).clamp_max(3) / x.shape[1]


def test_af_muon_is_its_definition() -> None:
    found, seen = run("af-muon")
    wanted = {
        "hidden": replay(seen["hidden"], polar, 0.02, 0.0, nesterov=True),
        "embedding": replay(seen["embedding"], clipped, 0.6, 0.0),
        "head": replay(seen["head"], clipped, 0.6, 0.0),
        "bias": replay(seen["bias"], lambda x: x / x.square().mean().sqrt(), 3e-4, 0.0),
    }
    for role, weight in wanted.items():
        torch.testing.assert_close(found[role], weight, rtol=0, atol=1e-10)


def test_clipped_at_one_it_steps_tables_by_signs() -> None:
    found, seen = run("af-muon", row_clip=1.0)
    weight = replay(seen["head"], lambda x: x.sign() / x.shape[1], 0.6, 0.0)
    torch.testing.assert_close(found["head"], weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["gluon", "gluon-nesterov", "gluon-lowrank"])
def test_routers_step_by_centred_rows(method: str) -> None:
    found, _ = run(method, steps=1)
    step = (1 - found["router"]) / (RATE * METHODS[method].rules["router"].radius)
    torch.testing.assert_close(step.sum(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert step.norm(dim=1).mean().item() == pytest.approx(1 / math.sqrt(6), rel=0.3)


@pytest.mark.parametrize("method", ["muon", "scion", "limuon", "lionmuon"])
def test_rows_of_papers_without_routers_step_them_as_hidden_matrices(method: str) -> None:
    assert METHODS[method].rules["router"] == METHODS[method].rules["hidden"]


def test_norms_of_tables_are_chosen_by_rules() -> None:
    net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False))
    asked = {"0.weight": {"role": "embedding", "norm": "clipped_row"}, "2.weight": {"role": "head", "norm": "row"}}
    optimizer = configure_optimizers(net, lr=RATE, rules=asked, row_scaling="sign", row_clip=2.0)
    groups = {group["role"]: group for group in optimizer.param_groups}
    assert (groups["embedding"]["norm"], groups["embedding"]["row_clip"]) == ("clipped_row", 2.0)
    assert (groups["head"]["norm"], groups["head"]["row_scaling"]) == ("row", "sign")
    assert "row_clip" not in groups["head"] and groups["hidden"]["norm"] == "spectral"
    assert ClippedRow().scaling == groups["embedding"]["row_scaling"]


# ---------------------------------------------------------------- polar factors of one side, and hybrids


def inverse_root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return vectors / values.sqrt() @ vectors.T


def test_polar_factors_of_one_side_are_the_spectral_lmo() -> None:
    spectral = Spectral("none", "svd")
    wide, tall = normal(6, 10), normal(10, 6)
    torch.testing.assert_close(inverse_root(wide @ wide.T) @ wide, spectral.lmo(wide), rtol=0, atol=1e-10)
    torch.testing.assert_close(tall @ inverse_root(tall.T @ tall), spectral.lmo(tall), rtol=0, atol=1e-10)


def test_centring_after_the_polar_factor_of_centred_rows_changes_nothing() -> None:
    g = normal(4, 10)
    u = Spectral("none", "svd").lmo(g - g.mean(0))
    torch.testing.assert_close(u - u.mean(0), u, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_hybrids_are_balances(shape: tuple[int, int]) -> None:
    """Rows of length 1 before the polar factor are an equilibration, after it a balance without a memory."""
    g = normal(*shape)
    spectral = Spectral("none", "svd")
    first = Balanced("none", "svd", equilibrate="rows")
    torch.testing.assert_close(first.lmo(g), spectral.lmo(rows(g)), rtol=0, atol=1e-10)
    second = Balanced("muon", "svd", balance="rows", balance_momentum=0.0)
    torch.testing.assert_close(second.lmo(g), rows(spectral.lmo(g)), rtol=0, atol=1e-10)
