"""Clipped rows: the conditions of the maximum, and the norms at both ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_gluon.norms.clipped import ClippedRow
from lightning_gluon.norms.entries import Sign
from lightning_gluon.norms.slices import RowNorm
from lightning_gluon.testing import check_norm
from tests.norms._draw import normal


def bisected(x: Tensor, c: float) -> Tensor:
    """Return the definition's row, `tau` by bisection: `sum d^2 = min(n, c^2 |supp x|)`."""
    goal = min(len(x), c * c * int((x != 0).sum()))
    low, high = 0.0, 1.0
    while (high * x.abs()).clamp_max(c).square().sum() < goal - 1e-12 and high < 1e30:
        high *= 2
    for _ in range(200):
        tau = (low + high) / 2
        short = (tau * x.abs()).clamp_max(c).square().sum() < goal
        low, high = (tau, high) if short else (low, tau)
    return x.sign() * (high * x.abs()).clamp_max(c)


def heavy(rows: int, columns: int) -> Tensor:
    """Return rows with a few large entries, so that some of them are clipped."""
    return normal(rows, columns) * normal(rows, columns, seed=1).exp() ** 2


@pytest.mark.parametrize("clip", [1.0, 1.3, 2.0, 3.0, 30.0])
@pytest.mark.parametrize("columns", [1, 4, 37])
def test_rows_are_those_of_the_definition(clip: float, columns: int) -> None:
    g = heavy(6, columns)
    g[1, columns // 2 :] = 0  # few entries
    g[2] = 0
    g[3] = -2.5  # all alike
    d = ClippedRow("rms", clip=clip).lmo(g)
    torch.testing.assert_close(d, torch.stack([bisected(row, clip) for row in g]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("clip", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("scaling", ["rms", "sign", "none"])
def test_the_contract_of_norms(clip: float, scaling: str) -> None:
    check_norm(ClippedRow(scaling, clip=clip))


def test_one_is_sign_and_a_large_bound_is_the_row_norm() -> None:
    g = heavy(5, 12)
    g[1, 3:] = 0
    signs, bound = Sign(), ClippedRow(clip=1.0)
    assert torch.equal(bound.lmo(g), signs.lmo(g)) and torch.equal(bound.lmo(g.float()), signs.lmo(g.float()))
    torch.testing.assert_close(bound.dual_norm(g), signs.dual_norm(g))
    torch.testing.assert_close(bound.norm(g), signs.norm(g))
    for scaling in ("rms", "sign", "none"):
        rows, loose = RowNorm(scaling), ClippedRow(scaling, clip=100.0)
        torch.testing.assert_close(loose.lmo(g), rows.lmo(g), rtol=0, atol=1e-12)
        torch.testing.assert_close(loose.dual_norm(g), rows.dual_norm(g))
        torch.testing.assert_close(loose.norm(g), rows.norm(g))


def test_both_bounds_hold_and_one_of_them_is_reached() -> None:
    d = ClippedRow("rms", clip=2.0).lmo(heavy(50, 40))
    rms, most = d.square().mean(-1).sqrt(), d.abs().amax(-1)
    assert (rms <= 1 + 1e-12).all() and (most <= 2).all()
    assert (torch.maximum(rms, most / 2) >= 1 - 1e-12).all() and (most == 2).any()


def test_entries_far_apart_in_size_lose_nothing() -> None:
    g = torch.tensor([[1.0, 1e-9, 2e-9, 0.0]], dtype=torch.float64)
    d = ClippedRow("rms", clip=1.2).lmo(g)
    rest = math.sqrt(4 - 2 * 1.44)  # what two entries at the bound leave
    torch.testing.assert_close(d, torch.tensor([[1.2, rest, 1.2, 0.0]], dtype=torch.float64), rtol=0, atol=1e-12)
