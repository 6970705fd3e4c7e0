"""Regions of ranks, against torch's own chunks."""

from __future__ import annotations

import pytest
import torch

from lightning_gluon.ranks.regions import MeshCut, Region, region_at


@pytest.mark.parametrize("shape", [(8, 6), (5, 3), (1, 4), (0, 3), (7,)])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_regions_are_torchs_chunks(shape: tuple[int, ...], parts: int) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    chunks = list(tensor.chunk(parts)) if tensor.numel() else []
    pieces = [region_at(shape, [MeshCut(0, parts)], [place]).of(tensor) for place in range(parts)]
    for chunk, piece in zip(chunks, pieces, strict=False):
        assert torch.equal(chunk, piece)
    assert all(piece.numel() == 0 for piece in pieces[len(chunks) :])
    assert torch.equal(torch.cat(pieces), tensor)


@pytest.mark.parametrize(
    "cuts",
    [(MeshCut(0, 2, strided=True), MeshCut(0, 3)), (MeshCut(0, 2), MeshCut(1, 3)), (MeshCut(1, 2), MeshCut(0, 2))],
)
def test_regions_of_a_grid_hold_every_entry_once(cuts: tuple[MeshCut, MeshCut]) -> None:
    count = torch.zeros(7, 5, dtype=torch.long)
    for one in range(cuts[0].parts):
        for other in range(cuts[1].parts):
            region_at((7, 5), cuts, (one, other)).of(count).add_(1)
    assert torch.equal(count, torch.ones_like(count))


def test_what_is_strided_is_cut_last() -> None:
    cuts = [MeshCut(0, 2, strided=True), MeshCut(0, 2)]
    rows = [region_at((8, 1), cuts, (one, other)).offset[0] for one in range(2) for other in range(2)]
    assert rows == [0, 4, 2, 6]


def test_a_region_shares_storage() -> None:
    tensor = torch.zeros(4, 4)
    Region((1, 2), (2, 2)).of(tensor).fill_(1)
    assert tensor.sum() == 4
    assert Region.whole((4, 4)).of(tensor) is tensor
    assert Region((1, 2), (2, 2)).numel == 4
