"""Norms of rows, columns and vectors by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_gluon.norms.entries import Max, Sign
from lightning_gluon.norms.slices import CentredRow, ColumnNorm, Euclidean, RMSVector, RowNorm
from lightning_gluon.testing import check_norm
from tests.norms._draw import normal


def test_vector_norms_by_hand():
    g = torch.tensor([[3.0, 4.0], [0.0, -1.0]])
    assert (Sign().norm(g).item(), Sign().dual_norm(g).item()) == (8.0, 4.0)
    assert (Max().norm(g).item(), Max().dual_norm(g).item()) == (4.0, 8.0)
    assert RowNorm().norm(g).item() == pytest.approx(5 / 2**0.5)
    assert RowNorm().dual_norm(g).item() == pytest.approx(6 * 2**0.5)
    assert ColumnNorm().dual_norm(g).item() == pytest.approx((3 + 17**0.5) * 2**0.5)
    assert Euclidean().norm(g).item() == pytest.approx(26**0.5)
    assert RMSVector().norm(g).tolist() == pytest.approx([12.5**0.5, 0.5**0.5])
    torch.testing.assert_close(RowNorm().lmo(g), torch.tensor([[0.6, 0.8], [0.0, -1.0]]) * 2**0.5)
    torch.testing.assert_close(RMSVector().lmo(g), torch.tensor([[0.6, 0.8], [0.0, -1.0]]) * 2**0.5)


def test_column_norm_is_the_row_norm_of_the_transpose():
    g = normal(6, 10)
    assert torch.equal(ColumnNorm().lmo(g), RowNorm().lmo(g.T).T)


def test_zero_rows_stay_zero():
    """Tokens that a batch does not contain must not move."""
    g = normal(5, 4)
    g[2] = 0
    d = RowNorm().lmo(g)
    assert torch.equal(d[2], torch.zeros(4, dtype=torch.float64))
    assert d[3].norm().item() == pytest.approx(2.0)


@pytest.mark.parametrize(("scaling", "length"), [("rms", 2.0), ("sign", 0.5), ("none", 1.0)])
def test_rows_have_the_length_of_their_scaling(scaling: str, length: float) -> None:
    g = normal(5, 4)
    for norm in (RowNorm(scaling), CentredRow(scaling)):
        check_norm(norm)
    assert RowNorm(scaling).lmo(g).norm(dim=1).tolist() == pytest.approx([length] * 5)
    assert ColumnNorm(scaling).lmo(g.T).norm(dim=0).tolist() == pytest.approx([length] * 5)
    if scaling == "sign":
        assert RowNorm(scaling).lmo(g).norm() == pytest.approx(Sign().lmo(g).norm().item())


def test_an_unknown_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`scaling` of rows to be one of rms, sign, none, but got 'muon'"):
        RowNorm("muon")


def test_centred_rows_are_the_definition() -> None:
    g = normal(6, 10)
    m = g - g.mean(0)
    u = m / m.norm(dim=1, keepdim=True)
    torch.testing.assert_close(CentredRow("none").lmo(g), u - u.mean(0), rtol=0, atol=1e-12)


def test_centred_rows_do_not_see_a_shift_and_are_the_best_up_to_one() -> None:
    """`<G, D>` is the dual norm of the centred gradient: no shift of rows of length 1 does better."""
    g, shift = normal(6, 10), normal(10)
    norm = CentredRow("none")
    d = norm.lmo(g)
    torch.testing.assert_close(norm.lmo(g + shift), d, rtol=0, atol=1e-12)
    centred = g - g.mean(0)
    assert (g * d).sum() == pytest.approx(RowNorm("none").dual_norm(centred).item(), rel=1e-12)
    torch.testing.assert_close(d.sum(0), torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-12)
    assert 1 < norm.norm(d) <= norm.longest


def test_centring_leaves_no_noise() -> None:
    norm = CentredRow("rms")
    alike = normal(1, 10).float().expand(7, 10)
    assert torch.equal(norm.lmo(alike), torch.zeros(7, 10))
    two = torch.stack([normal(10), normal(10)])
    assert not norm.lmo(two).any()
    assert torch.equal(norm.lmo(normal(1, 10)), RowNorm("rms").lmo(normal(1, 10)))
