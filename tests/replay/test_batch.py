"""Batches are copied down to their tensors, whatever holds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gluon.replay.batch import copy_batch


def test_batches_keep_their_types_and_what_is_one_object() -> None:
    class Graph:
        def __init__(self, x: Tensor) -> None:
            self.x = x

        def to(self, device: Any) -> Graph:
            return self

    class Images(list):
        pass

    x = torch.zeros(2)
    batch = {"graph": Graph(x), "images": Images([x]), "size": torch.Size([2]), "again": x}
    other = copy_batch(batch)
    assert [type(item) for item in other.values()] == [Graph, Images, torch.Size, Tensor]
    other["again"] += 1
    assert (other["graph"].x.tolist(), other["images"][0].tolist()) == ([1.0, 1.0], [1.0, 1.0])
    assert x.tolist() == [0.0, 0.0]


def test_batches_are_copied_down_to_their_tensors() -> None:
    from collections import OrderedDict, UserDict, namedtuple
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Sample:
        x: Tensor
        label: str

    Point = namedtuple("Point", "x y")
    x = torch.zeros(2)
    batch = [x, (x, "s"), Point(x, 1), OrderedDict(a=x), UserDict(a=x), Sample(x, "l"), None, 3]
    other = copy_batch(batch)
    x += 1
    assert [type(item) for item in other] == [type(item) for item in batch]
    tensors = [other[0], other[1][0], other[2].x, other[3]["a"], other[4]["a"], other[5].x]
    assert all(tensor.tolist() == [0.0, 0.0] for tensor in tensors)
    assert other[5].label == "l"
