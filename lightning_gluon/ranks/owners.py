"""Owners of whole matrices: the largest first to the rank with the least work, then every rank's own cut in rounds."""

from __future__ import annotations

from collections.abc import Sequence


def assign(
    costs: Sequence[float],
    ranks: int,
) -> list[int]:
    """Return an owner for every item: the most costly first, to the rank with the least work so far.

    Ties go by the order of items and of ranks, so that all ranks find the same owners.

    Args:
        costs: Cost of every item.
        ranks: Number of ranks.

    Returns:
        The rank of every item.

    References:
        R. L. Graham, "Bounds on Multiprocessing Timing Anomalies", 1969: at most 4/3 of the best largest load.

    Example:
        >>> assign([1, 3, 2, 2], 2)
        [0, 0, 1, 1]
    """
    loads = [0.0] * ranks
    owners = [0] * len(costs)
    for index in largest_first(range(len(costs)), costs):
        owner = loads.index(min(loads))
        owners[index] = owner
        loads[owner] += costs[index]
    return owners


def cut_rounds(
    owners: Sequence[int],
    costs: Sequence[float],
    sizes: Sequence[int],
    limit: int,
) -> list[list[int]]:
    """Return the items of every round: each rank takes its own in batches of bounded size, the most costly first.

    Args:
        owners: Rank of every item.
        costs: Cost of every item.
        sizes: Entries of every item.
        limit: Entries of a batch; a larger item is a batch of its own.

    Returns:
        Items of each round, in their order; round t holds batch t of every rank.

    Example:
        >>> cut_rounds([0, 0, 1], costs=[1, 3, 2], sizes=[4, 4, 4], limit=4)
        [[1, 2], [0]]
    """
    rounds: list[list[int]] = []
    for owner in sorted(set(owners)):
        own = [index for index, other in enumerate(owners) if other == owner]
        for turn, batch in enumerate(_batches(largest_first(own, costs), sizes, limit)):
            if turn == len(rounds):
                rounds.append([])
            rounds[turn] += batch
    return [sorted(items) for items in rounds]


def largest_first(
    items: Sequence[int],
    costs: Sequence[float],
) -> list[int]:
    """Return items by falling cost, equal ones in their order."""
    return sorted(items, key=lambda index: -costs[index])


def _batches(
    items: Sequence[int],
    sizes: Sequence[int],
    limit: int,
) -> list[list[int]]:
    batches: list[list[int]] = []
    held = limit
    for index in items:
        if not batches or held + sizes[index] > limit:
            batches.append([])
            held = 0
        batches[-1].append(index)
        held += sizes[index]
    return batches
