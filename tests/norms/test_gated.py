"""The gate before the spectral LMO: a replay of the definition, and what it reduces to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.norms.gated import GatedSpectral
from lightning_gluon.norms.spectral import Spectral
from lightning_gluon.testing import check_norm
from tests._toys import gradients

# A square one, a tall and a wide one that share a stack, one column, and a convolution as wide as a linear map.
SHAPES = ((5, 5), (6, 10), (10, 6), (7, 1), (6, 2, 5))
RATE = 0.3


def polar(x: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v


def passes(u: Tensor, gate: float, form: str) -> bool:
    if form == "norm":
        return u.norm().item() >= gate
    values = torch.linalg.svdvals(u)
    gaps = [abs(a - b) for i, a in enumerate(values) for b in values[i + 1 :]]
    return min(gaps, default=math.inf) >= gate


def replay(shape: tuple[int, ...], seen: list[Tensor], gate: float, form: str) -> tuple[Tensor, int]:
    """Return where a matrix that starts at zero ends, and how many steps passed the gate."""
    weight, momentum, passed = torch.zeros(shape, dtype=torch.float64).flatten(1), torch.zeros(()), 0
    for g in (one.flatten(1) for one in seen):
        momentum = 0.95 * momentum + 0.05 * g
        u = 0.95 * momentum + 0.05 * g
        scale = math.sqrt(max(1, u.shape[0] / u.shape[1]))
        open_ = passes(u, gate, form)
        weight = weight - RATE * (scale * polar(u) if open_ else u)
        passed += open_
    return weight.view(shape), passed


def run(method: str, steps: int = 8, **options: Any) -> tuple[list[nn.Parameter], list[list[Tensor]]]:
    params = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    optimizer = Gluon([{"params": params, "role": "hidden"}], lr=RATE, method=method, **options)
    seen = []
    for step in range(steps):
        gradients(params, step)
        seen.append([p.grad.clone() for p in params if p.grad is not None])
        optimizer.step()
    return params, seen


@pytest.mark.parametrize(("form", "gate"), [("norm", 0.8), ("gap", 0.02)])
def test_a_row_is_its_definition(form: str, gate: float) -> None:
    params, seen = run("mimuon", gate=gate, gate_form=form, orthogonalizer="svd")
    counts = []
    for index, parameter in enumerate(params):
        expected, passed = replay(SHAPES[index], [gs[index] for gs in seen], gate, form)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-10)
        counts.append(passed)
    assert min(counts) < 8 and max(counts) > 0, counts  # both branches were taken


@pytest.mark.parametrize("form", ["norm", "gap"])
def test_without_a_gate_it_is_muon_bit_for_bit(form: str) -> None:
    muon, _ = run("muon")
    gated, _ = run("mimuon", gate=0.0, gate_form=form)
    option, _ = run("muon", gate=0.0)
    for one, other, third in zip(muon, gated, option, strict=True):
        assert torch.equal(one, other) and torch.equal(one, third)
    wide, _ = run("muon", gate=1.2)
    row, _ = run("mimuon", gate=1.2)
    assert all(map(torch.equal, wide, row)) and not torch.equal(wide[0], muon[0])


def test_behind_a_gate_that_is_never_passed_it_is_the_momentum() -> None:
    params, seen = run("mimuon", steps=1, gate=1e9, momentum=0.0, orthogonalizer="svd")
    for parameter, g in zip(params, seen[0], strict=True):
        torch.testing.assert_close(parameter.detach(), -RATE * g, rtol=0, atol=1e-12)


def test_the_row_asks_for_a_gate() -> None:
    with pytest.raises(ValueError, match=r"^Expected `gate` to be a number >= 0, but got None: .* 0 is Muon\.$"):
        Gluon(nn.Linear(4, 3), lr=0.1, method="mimuon")
    with pytest.raises(ValueError, match=r"`gate` of group 'hidden' to satisfy 0 <= gate < inf, but got -1"):
        Gluon(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), lr=0.1, method="mimuon", gate=-1)


@pytest.mark.parametrize("form", ["norm", "gap"])
def test_the_contract_of_norms(form: str) -> None:
    check_norm(GatedSpectral("muon", "svd", form=form))
    g = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scales = torch.tensor([1e-5, 1.0, 100.0], dtype=torch.float64)[:, None, None]
    found = GatedSpectral("rms", "svd", gate=1e-3, form=form).lmo(g * scales)
    torch.testing.assert_close(found[0], g[0] * 1e-5)
    torch.testing.assert_close(found[1:], Spectral("rms", "svd").lmo(g[1:]))


def test_one_singular_value_has_no_gap() -> None:
    column = torch.randn(6, 1, dtype=torch.float64)
    torch.testing.assert_close(GatedSpectral("none", "svd", gate=1e9, form="gap").lmo(column), column / column.norm())
