"""The answer of a rule, and when its only matrix is no more than a vector."""

from __future__ import annotations

import pytest

from lightning_gluon.norms.views import MatrixView
from lightning_gluon.partition.finding import Finding


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [([(1, 8)], True), ([(8, 1)], True), ([(2, 8)], False), ([(1, 8), (1, 8)], False), ([], False)],
)
def test_one_matrix_of_one_row_or_column_is_degenerate(shapes: list[tuple[int, int]], expected: bool) -> None:
    views = tuple(MatrixView.whole(shape) for shape in shapes)
    assert Finding("hidden", "because", views).is_degenerate is expected
