"""What a second pass must not leave behind: buffers, attributes, metric states, logs, batches."""

from __future__ import annotations

import random
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_gluon.replay import snapshot
from lightning_gluon.replay.snapshot import ModuleBuffers, Moment, untouched
from lightning_gluon.two_point.streams import rng_state, set_rng_state
from tests._two_point import (
    Inner,
    Memory,
    trainer,
)


def test_buffers_written_to_and_replaced_come_back() -> None:
    norm = nn.BatchNorm1d(2)
    norm.register_buffer("wide", torch.zeros(1).expand(5))  # cannot be written to, and must not be
    mean, before = norm.running_mean, ModuleBuffers(norm)
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


def test_what_is_changed_in_place_comes_back() -> None:
    model = Inner()
    model.total, model.shadow, model.log_of = torch.zeros(()), {"a": torch.zeros(2)}, defaultdict(list)
    model.streams = [torch.Generator(), random.Random(1), np.random.default_rng(1), np.random.RandomState(1)]
    model.register_buffer("queue", None)

    def draws() -> list[float]:
        one, two, three, four = model.streams
        return [torch.rand((), generator=one).item(), two.random(), three.random(), four.random_sample()]

    with untouched(trainer(), model):
        first = draws()
        model.total += 1
        model.shadow["a"].add_(1)
        model.log_of["x"].append(1)
        model.queue = torch.ones(2)
    assert (model.total.item(), model.shadow["a"].tolist(), dict(model.log_of)) == (0.0, [0.0, 0.0], {})
    assert model.queue is None
    assert draws() == first


def test_a_pass_can_start_from_an_earlier_moment() -> None:
    model = Inner()
    model.count, model.seen, model.teacher = 0, [], nn.Linear(2, 2).requires_grad_(False)
    before = model.teacher.weight.clone()
    moving: set[Tensor] = set()
    for moved in (1, 2):  # the first time that a frozen parameter moves there is no copy of where it was
        start = Moment(model, moving)
        model.count += 1
        model.seen.append(1)
        model.teacher.weight.data.mul_(2)
        with untouched(trainer(), model, start):
            assert (model.count, len(model.seen)) == (moved - 1, moved - 1)
            if moved == 2:
                assert torch.equal(model.teacher.weight, 2 * before)
            model.teacher.weight.data.mul_(2)
        assert moving == {model.teacher.weight}
        assert torch.equal(model.teacher.weight, 2**moved * before)
        assert (model.count, len(model.seen)) == (moved, moved)


def test_what_a_validation_left_behind_is_left_alone() -> None:
    """Such tensors cannot be written to in training, neither by the step nor by us."""
    model = Inner()
    with torch.inference_mode():
        model.register_buffer("cache", torch.ones(2) * 1)
        model.other = torch.ones(2) * 1
        model.mean.reset()
    with untouched(trainer(), model):
        model.cache, model.other = torch.zeros(2), torch.zeros(2)
    assert (model.cache.tolist(), model.other.tolist()) == ([1.0, 1.0], [1.0, 1.0])


def test_the_silent_logger_knows_its_folder(tmp_path: Path) -> None:
    runner = trainer(logger=CSVLogger(tmp_path, name="run"))
    wanted = [getattr(runner.logger, name) for name in ("name", "version", "save_dir", "log_dir", "root_dir")]
    with untouched(runner, Inner()):
        silent = runner.logger
        assert [getattr(silent, name) for name in ("name", "version", "save_dir", "log_dir", "root_dir")] == wanted
        assert isinstance(silent, CSVLogger)
        assert runner.log_dir == wanted[3]
        silent.log_metrics({"a": 1.0})
        silent.experiment.add_scalar("a", 1.0)
    assert not list(tmp_path.rglob("*.csv"))


def test_streams_of_all_devices_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr("torch.cuda.random._lazy_init", lambda: None)
    monkeypatch.setattr("torch.cuda.random._lazy_call", lambda call, **_: call())
    monkeypatch.setattr(torch.cuda, "default_generators", tuple(streams))
    monkeypatch.setattr("torch.cuda.random.device_count", lambda: len(streams))
    before = rng_state()
    drawn = [torch.rand(3, generator=stream).tolist() for stream in streams]
    set_rng_state(before)
    assert [torch.rand(3, generator=stream).tolist() for stream in streams] == drawn


def test_ctrl_c_while_all_is_put_back_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Inner()
    model.register_buffer("queue", torch.zeros(2))
    model.teacher, model.count = nn.Linear(2, 2).requires_grad_(False), 0
    before, moving = model.teacher.weight.clone(), {model.teacher.weight}
    real = snapshot.set_rng_state

    def interrupted(state: Any) -> None:
        real(state)
        if model.count:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(snapshot, "set_rng_state", interrupted)
    runner = trainer(logger=Memory())
    loggers = runner.loggers
    with pytest.raises(KeyboardInterrupt), untouched(runner, model, Moment(model, moving)):
        model.count = 1
        model.queue += 1
        model.teacher.weight.data.mul_(2)
    assert (model.count, model.queue.tolist()) == (0, [0.0, 0.0])
    assert torch.equal(model.teacher.weight, before)
    assert runner.loggers is loggers
