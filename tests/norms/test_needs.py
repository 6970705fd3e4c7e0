"""Statistics: their shape per matrix, and where they begin."""

from __future__ import annotations

import pytest
import torch

from lightning_gluon.norms.needs import Context, Needs, Statistic


def test_a_statistic_begins_at_zero_in_fp32_or_wider() -> None:
    statistic = Statistic("row_square", lambda rows, columns: (rows, 1))
    for dtype, kept in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        first = statistic.first(torch.ones(2, 3, 5, dtype=dtype))
        assert first.shape == (2, 3, 1) and first.dtype == kept and not first.any()


def test_a_statistic_may_begin_at_the_weights() -> None:
    statistic = Statistic("size", lambda rows, columns: (1, 1), lambda w: w.norm(dim=(-2, -1), keepdim=True))
    weights = torch.randn(2, 3, 5)
    torch.testing.assert_close(statistic.first(weights).flatten(), weights.flatten(1).norm(dim=1))


def test_nothing_is_needed_by_default() -> None:
    assert (Needs.reads_weights, Needs.reads_partner, Needs.statistics) == (False, False, ())
    context = Context()
    assert context.weights is None and not context.partners and not context.statistics
    assert context.workspace is not Context().workspace


@pytest.mark.parametrize("field", ["weights", "partners", "statistics"])
def test_a_context_is_filled_by_name(field: str) -> None:
    value = object()
    assert getattr(Context(**{field: value}), field) is value
