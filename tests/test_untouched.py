"""What a second pass must not leave behind: buffers, attributes, metric states, logs, batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from two_point import (
    Inner,
    Memory,
    trainer,
)

from lightning_gluon.callbacks.second_pass import copy_batch
from lightning_gluon.callbacks.untouched import Buffers, untouched


def test_buffers_written_to_and_replaced_come_back() -> None:
    norm = nn.BatchNorm1d(2)
    norm.register_buffer("wide", torch.zeros(1).expand(5))  # cannot be written to, and must not be
    mean, before = norm.running_mean, Buffers(norm)
    norm(torch.randn(4, 2))
    norm.running_var = torch.full((2,), 9.0)
    before.restore_()
    assert norm.running_mean is mean
    assert norm.running_mean.tolist() == [0.0, 0.0]
    assert norm.running_var.tolist() == [1.0, 1.0]


def test_attributes_lists_and_metrics_come_back() -> None:
    model = Inner()
    model.numbers, model.table, model.names, model.count = [1], {"a": 1}, {"x"}, 0
    model.mean.update(2.0)
    numbers, logger = model.numbers, Memory()
    runner = trainer(logger=logger)
    with untouched(runner, model):
        model.numbers.append(2)
        model.table.update(a=2, b=3)
        model.names.add("y")
        model.count += 1
        model.new = 1
        model.mean.update(10.0)
        model.log("a", 1.0)
        model.print("silent")
        runner.loggers[0].log_metrics({"a": 1.0})
    assert (model.numbers, model.table, model.names, model.count) == ([1], {"a": 1}, {"x"}, 0)
    assert model.numbers is numbers
    assert not hasattr(model, "new")
    assert "log" not in vars(model)
    assert model.mean.compute() == 2.0
    assert logger.rows == []
    assert runner.loggers == [logger]


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
