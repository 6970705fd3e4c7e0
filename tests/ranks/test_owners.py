"""Owners and rounds, in numbers."""

from __future__ import annotations

import random

from lightning_gluon.ranks.owners import assign, cut_rounds


def test_equal_items_are_spread_evenly() -> None:
    owners = assign([1.0] * 12, 4)
    assert [owners.count(rank) for rank in range(4)] == [3, 3, 3, 3]


def test_loads_are_within_grahams_bound() -> None:
    random.seed(0)
    for _ in range(20):
        costs = [random.choice([1.0, 3.0, 7.0, 20.0]) for _ in range(60)]
        owners = assign(costs, 4)
        loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(4)]
        assert max(loads) <= max(sum(costs) / 4, max(costs)) * 4 / 3


def test_fewer_items_than_ranks() -> None:
    assert assign([2.0, 1.0], 5) == [0, 1]
    assert assign([], 5) == []


def test_every_item_has_one_round() -> None:
    random.seed(1)
    costs = [random.random() for _ in range(40)]
    sizes = [random.randrange(1, 9) for _ in range(40)]
    owners = assign(costs, 3)
    rounds = cut_rounds(owners, costs, sizes, limit=10)
    assert sorted(index for items in rounds for index in items) == list(range(40))
    for items in rounds:
        assert items == sorted(items)
        for rank in range(3):
            own = [sizes[index] for index in items if owners[index] == rank]
            assert sum(own) <= 10 or len(own) == 1


def test_a_large_item_is_a_round_of_its_own() -> None:
    assert cut_rounds([0, 0, 0], [1.0, 9.0, 1.0], [1, 100, 1], limit=4) == [[1], [0, 2]]
