"""Views: every way to read a parameter as matrices gathers, scatters and covers all entries."""

from __future__ import annotations

import pytest
import torch

from lightning_gluon.norms.views import MatrixView, covers

CASES = {
    "matrix": ((6, 4), (MatrixView.whole((6, 4)),)),
    "stored transposed": ((4, 6), (MatrixView.whole((4, 6), transposed=True),)),
    "experts": ((3, 6, 4), (MatrixView.whole((3, 6, 4)),)),
    "experts, transposed": ((3, 4, 6), (MatrixView.whole((3, 4, 6), transposed=True),)),
    "kernel": ((6, 4, 3, 3), (MatrixView.conv((6, 4, 3, 3)),)),
    "transposed kernel": ((4, 6, 3), (MatrixView.conv((4, 6, 3), transposed=True),)),
    "grouped kernel": ((6, 2, 3), (MatrixView.conv((6, 2, 3), groups=3),)),
    "vector": ((5,), (MatrixView.flat((5,)),)),
    "array": ((2, 3, 4), (MatrixView.flat((2, 3, 4)),)),
    "fused": ((9, 4), MatrixView.blocks((9, 4), sizes=(4, 3, 2))),
    "fused, transposed": ((4, 9), MatrixView.blocks((4, 9), sizes=(4, 3, 2), transposed=True)),
    "grouped queries": ((12, 4), MatrixView.grouped((12, 4), sizes=(3, 2, 1), groups=2)),
    "grouped queries, transposed": ((4, 12), MatrixView.grouped((4, 12), sizes=(3, 2, 1), groups=2, transposed=True)),
    "gated kernel": ((6, 4, 3), MatrixView.grouped((6, 4, 3), sizes=(3, 3), kernel_dims=1)),
    "interleaved": ((12, 4), MatrixView.interleaved((12, 4), groups=2, parts=3)),
    "interleaved, transposed": ((4, 12), MatrixView.interleaved((4, 12), groups=2, parts=3, transposed=True)),
}
every_case = pytest.mark.parametrize(("shape", "views"), CASES.values(), ids=CASES)


@every_case
def test_views_cover_every_entry_once(shape: tuple[int, ...], views: tuple[MatrixView, ...]) -> None:
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    seen = torch.cat([view.gather(numbers).flatten() for view in views])
    assert sorted(seen.tolist()) == list(range(numbers.numel()))
    assert covers(views, shape) and not covers(views[:-1], shape)


@every_case
def test_scatter_undoes_gather(shape: tuple[int, ...], views: tuple[MatrixView, ...]) -> None:
    source = torch.randn(shape)
    target = torch.zeros(shape)
    for view in views:
        matrices = view.gather(source)
        assert tuple(matrices.shape) == view.matrix and view.shapes == [view.matrix[1:]] * view.matrix[0]
        view.scatter_(target, matrices)
    assert torch.equal(target, source)


@every_case
def test_views_are_kept_as_plain_values(shape: tuple[int, ...], views: tuple[MatrixView, ...]) -> None:
    assert all(MatrixView(*view.astuple()) == view for view in views)


def test_rows_of_grouped_queries_by_hand() -> None:
    """Two groups of (3 queries, 2 keys, 1 value): the rows of a part stand in every group."""
    rows = torch.arange(12.0)[:, None].expand(12, 4)
    queries, keys, values = MatrixView.grouped((12, 4), sizes=(3, 2, 1), groups=2)
    assert queries.gather(rows)[0, :, 0].tolist() == [0, 1, 2, 6, 7, 8]
    assert keys.gather(rows)[0, :, 0].tolist() == [3, 4, 9, 10]
    assert values.gather(rows)[0, :, 0].tolist() == [5, 11]


def test_a_view_shares_storage_with_the_parameter() -> None:
    parameter = torch.zeros(9, 4)
    MatrixView.blocks((9, 4), sizes=(4, 3, 2))[1].of(parameter).fill_(1.0)
    assert parameter[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0]
