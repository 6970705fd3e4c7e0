"""Blocks of 8 and 4 bits: the error is half a step at most, what lies on the grid is exact, bytes are as declared."""

from __future__ import annotations

import pytest
import torch

from lightning_gluon.estimators.quantize import BLOCK, QUANTIZERS

SHAPES = [(1, 3, 4), (2, 5, 96), (1, 7, 128), (1, 4, 129), (3, 2, 200), (1, 3, 1), (1, 1, 7)]


def drawn(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rows = 10.0 ** torch.arange(shape[1]).sub(2).clamp(max=3)  # rows of very different sizes
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (noise * rows[:, None]).to(dtype)


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_half_a_step_of_the_own_block(kind: str, shape: tuple[int, int, int]) -> None:
    grid, matrices = QUANTIZERS[kind], drawn(shape)
    restored = grid.restore(*grid.quantize(matrices), matrices)
    assert restored.shape == matrices.shape and restored.dtype == matrices.dtype
    bound = matrices.abs().amax(-1, keepdim=True) / (2 * grid.top)  # of the row, which is as large as any block of it
    assert bool(((restored - matrices).abs() <= bound * (1 + 1e-6)).all())
    assert float((restored - matrices).norm() / matrices.norm()) < {"int8": 0.01, "int4": 0.15}[kind]


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_what_lies_on_the_grid_is_exact(kind: str) -> None:
    grid = QUANTIZERS[kind]
    points = torch.arange(-grid.top, grid.top + 1, dtype=torch.float32)[None, None] * 0.5
    assert torch.equal(grid.restore(*grid.quantize(points), points), points)
    nothing = torch.zeros(1, 2, 300)
    assert torch.equal(grid.restore(*grid.quantize(nothing), nothing), nothing)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_block_does_not_feel_its_neighbour(kind: str) -> None:
    matrices = torch.cat([torch.full((1, 1, BLOCK), 1e6), torch.linspace(-1, 1, BLOCK)[None, None]], -1)
    grid = QUANTIZERS[kind]
    restored = grid.restore(*grid.quantize(matrices), matrices)
    assert float((restored - matrices).abs()[..., BLOCK:].max()) <= 0.5 / grid.top * 1.001


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_layout_is_what_is_made(kind: str, shape: tuple[int, int, int]) -> None:
    grid = QUANTIZERS[kind]
    for declared, made in zip(grid.layout(shape), grid.quantize(drawn(shape, torch.float32)), strict=True):
        assert (declared.shape, declared.dtype) == (made.shape, made.dtype)


@pytest.mark.parametrize(("kind", "per_entry"), [("int8", 1 + 4 / 128), ("int4", 0.5 + 4 / 128)])
def test_bytes_of_a_layer(kind: str, per_entry: float) -> None:
    codes, scales = QUANTIZERS[kind].layout((1, 896, 4864))
    assert codes.nbytes + scales.nbytes == per_entry * 896 * 4864
