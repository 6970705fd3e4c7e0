"""Norms of rows, columns and vectors by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_gluon.norms.entries import Max, Sign
from lightning_gluon.norms.slices import ColumnNorm, Euclidean, RMSVector, RowNorm
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
