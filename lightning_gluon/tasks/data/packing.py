"""Examples in rows of bounded length, and rows in batches."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gluon.tasks.batches import IGNORED
from lightning_gluon.tasks.data.conversations import Example

__all__ = ["collate", "pack"]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put examples into rows: the longest first, each into the row that it fills best (best fit decreasing).

    Args:
        lengths: Tokens of each example.
        capacity: Tokens of a row.

    Returns:
        The examples of each row.

    Example:
        >>> pack([3, 5, 2, 4], 7)
        [[1, 2], [3, 0]]
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left in each row, and its number; in order
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[example]
        place = bisect_left(room, (length, -1))
        if place == len(room):
            rows.append([])
            left, row = capacity, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(example)
        insort(room, (left - length, row))
    return rows


def collate(rows: Sequence[Sequence[Example]], *, filler: int, width: int | None = None) -> dict[str, Tensor]:
    """Return a batch of rows.

    Nothing is predicted from one example to the next. With a width there are positions that restart with every
    example, by which models of transformers keep attention inside it. Without one, padding stands behind the only
    example of a row, where a causal model does not see it.

    Args:
        rows: Examples of each row.
        filler: Token behind them.
        width: Tokens of a row; None takes those of the longest.

    Returns:
        `input_ids` and `labels`, of shape `(rows, width)`, and `position_ids` if there is a width.

    Example:
        >>> import numpy as np
        >>> one = Example(np.array([5, 6, 7]), np.array([False, True, True]))
        >>> batch = collate([[one, one.cut(2)]], filler=0, width=6)
        >>> batch["labels"].tolist(), batch["position_ids"].tolist()
        ([[-100, 6, 7, -100, 6, -100]], [[0, 1, 2, 0, 1, 0]])
    """
    columns = width or max(_row_length(row) for row in rows)
    batch = {
        "input_ids": torch.full((len(rows), columns), filler),
        "labels": torch.full((len(rows), columns), IGNORED),
        "position_ids": torch.zeros(len(rows), columns, dtype=torch.long),
    }
    for number, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.tokens)
            place = (number, slice(start, end))
            _write_example(batch, place, example)
            start = end
    if width is None:
        del batch["position_ids"]
    return batch


def _row_length(row: Sequence[Example]) -> int:
    return sum(len(example.tokens) for example in row)


def _write_example(batch: dict[str, Tensor], place: tuple[int, slice], example: Example) -> None:
    """Write an example at its place of a batch."""
    tokens = torch.from_numpy(example.tokens)
    uncounted = torch.from_numpy(~example.counted)
    labels = tokens.masked_fill(uncounted, IGNORED)
    labels[0] = IGNORED  # nothing of its own document stands before it
    batch["input_ids"][place] = tokens
    batch["labels"][place] = labels
    batch["position_ids"][place] = torch.arange(len(tokens))
