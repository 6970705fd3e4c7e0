"""Compressors: what they send, how many bytes of it, and how far they are contractions."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gluon.estimators.compressors import COMPRESSORS, Compressor, compressor_of
from lightning_gluon.estimators.low_rank import sketch_generator
from lightning_gluon.options import CHECKS

SHAPE = (24, 40)  # 960 entries
OPTIONS: dict[str, Any] = {"compressor_share": 0.1, "compressor_rank": 3}
# compressor -> bytes in fp32, and the share of ||x||^2 that is left out at most, on average
EXPECTED = {
    "identity": (960 * 4, 0.0),
    "bf16": (960 * 2, 2**-16),
    "natural": (960 + 4, 1 / 8),
    "top-k": (96 * 8, 0.9),
    "random-k": (96 * 4, 0.9),
    "rank-r": (3 * (24 + 40) * 4, 1 - 3 / 24),
}
every = pytest.mark.parametrize("name", COMPRESSORS)


def make(name: str, **options: Any) -> Compressor:
    return compressor_of({"compressor": name, **OPTIONS, **options})


def draw(seed: int = 0) -> Any:
    return partial(sketch_generator, seed, 0, SHAPE, torch.device("cpu"))


def through(compressor: Compressor, x: Tensor, seed: int = 0) -> Tensor:
    return compressor.unpack(compressor.pack(x, draw(seed)), x, draw(seed))


def test_every_row_is_here_and_an_option() -> None:
    assert set(EXPECTED) == set(COMPRESSORS)
    for name in COMPRESSORS:
        CHECKS["compressor"]("compressor", name)


@every
def test_bytes_shape_and_contraction(name: str) -> None:
    compressor, x = make(name), torch.randn(SHAPE)
    size, most = EXPECTED[name]
    assert sum(part.nbytes for part in compressor.pack(x, draw())) == size
    received = [through(compressor, x, seed) for seed in range(200)]
    assert all(one.shape == x.shape and one.dtype == x.dtype for one in received)
    left = sum((one - x).square().sum().item() for one in received) / len(received) / x.square().sum().item()
    assert left <= most * 1.02 + 1e-12  # the mean of 200 draws of `random-k` is within 1 %


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_stays_zero_and_vectors_pass(name: str, dtype: torch.dtype) -> None:
    for shape in ((3, 4), (5,), (), (2, 3, 2, 2)):
        zero = torch.zeros(shape, dtype=dtype)
        assert torch.equal(through(make(name), zero), zero)
        x = torch.randn(shape, dtype=dtype)
        assert through(make(name), x).dtype == dtype and through(make(name), x).isfinite().all()


def test_natural_gives_the_two_powers_around_an_entry_and_their_mean() -> None:
    x = torch.tensor([3.0, -0.3, 8.0, 1e-20, -1.0, 0.0])
    received = torch.stack([through(make("natural"), x, seed) for seed in range(4000)])
    assert set(received[:, 0].tolist()) == {2.0, 4.0} and set(received[:, 1].tolist()) == {-0.25, -0.5}
    assert set(received[:, 2].tolist()) == {8.0} and set(received[:, 5].tolist()) == {0.0}
    torch.testing.assert_close(received.mean(0), x, rtol=0.03, atol=0)


def test_natural_is_exact_on_powers_of_two_and_stays_in_range() -> None:
    powers = torch.ldexp(torch.ones(100), torch.arange(-49, 51)) * torch.tensor([1.0, -1.0]).repeat(50)
    assert torch.equal(through(make("natural"), powers), powers)
    largest = torch.tensor([torch.finfo(torch.float32).max, 1.0])
    assert through(make("natural"), largest).isfinite().all()


def test_top_k_keeps_the_largest_and_random_k_the_places_that_both_sides_draw() -> None:
    x = torch.arange(1.0, 11.0) * torch.tensor([1.0, -1.0]).repeat(5)
    assert through(make("top-k", compressor_share=0.2), x).nonzero().flatten().tolist() == [8, 9]
    one, other = (through(make("random-k", compressor_share=0.3), x, seed) for seed in (0, 1))
    for received in (one, other):
        places = received.nonzero().flatten()
        assert len(places) == 3 and torch.equal(received[places], x[places])
    assert not torch.equal(one, other)


def test_rank_r_is_exact_on_its_rank_and_sends_whole_what_it_cannot_shorten() -> None:
    low = torch.randn(24, 3, dtype=torch.float64) @ torch.randn(3, 40, dtype=torch.float64)
    torch.testing.assert_close(through(make("rank-r"), low), low, rtol=0, atol=1e-10)
    small = torch.randn(4, 5)
    assert torch.equal(through(make("rank-r"), small), small)
