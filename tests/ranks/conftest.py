"""Ranks that all tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ranks._gloo import Ranks
from tests.ranks._layouts import DEVICE


def started(size: int) -> Iterator[Ranks]:
    if torch.device(DEVICE).type == "cuda" and torch.cuda.device_count() < size:
        pytest.skip(f"{size} GPUs are needed")
    ranks = Ranks(size)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    yield from started(2)


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[Ranks]:
    yield from started(4)
