"""Implicit gradient transport: the weights are shifted while a training step runs, and nowhere else."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests._two_point import (
    FLAT,
    Bare,
    Loader,
    Net,
    Recorder,
    Watch,
    data,
    fit,
    gluon,
    gradient,
    trainer,
)

CLIPPED = 1e-7  # measured: 0


def test_igt_shifts_the_weights_in_training_only(tmp_path: Any) -> None:
    model, watch = Net(method="gluon-igt", momentum=0.75), Watch()
    runner = trainer(callbacks=[watch], accumulate_grad_batches=2, val_check_interval=2, num_sanity_val_steps=0)
    runner.fit(model, Loader(data(batches=6)), Loader(data(batches=1)))
    runner.save_checkpoint(tmp_path / "x.ckpt")
    x = watch.path
    assert len(x) == 4
    at = {"training": [], "validation": [], "outside": [], "checkpoint": []}
    for where, weight in watch.seen:
        at[where].append(weight)
    shifted = [x[0], *(now + 3 * (now - before) for before, now in pairwise(x[:3]))]  # 3 = b / (1 - b)
    expected = {
        "training": [y for y in shifted for _ in range(2)],
        "outside": [now for now in x[:3] for _ in range(5)],  # two batch starts and backwards, one step
        "validation": x[1:],
        "checkpoint": x[-1:],
    }
    for where, weights in expected.items():
        assert len(at[where]) == len(weights), where
        for one, other in zip(at[where], weights, strict=True):
            assert torch.equal(one, other) if where != "training" else torch.allclose(one, other, atol=1e-6), where
    assert not torch.allclose(at["training"][2], x[1], atol=1e-4)
    assert gluon(runner).gradient_evaluations == 3


def test_igt_momentum_equals_a_replay() -> None:
    model, recorder = Net(method="gluon-igt", momentum=0.75, **FLAT), Recorder()
    twin = deepcopy(model)
    optimizer = gluon(fit(model, callbacks=[recorder], accumulate_grad_batches=2, gradient_clip_val=0.3))
    momentum: dict[str, Tensor] = {}
    names = [name for name, _ in twin.named_parameters()]
    for k, weights in enumerate(recorder.weights):
        before = recorder.weights[max(0, k - 1)]
        point = {n: weights[n] + (weights[n] - before[n]) * 3.0 if n in names else weights[n] for n in weights}
        new = gradient(twin.train(), point, recorder.windows[k], 2, ("norm", 0.3))
        momentum = {n: torch.lerp(momentum[n], new[n], 0.25) if k else new[n] for n in names}
    for name, parameter in model.named_parameters():
        assert (optimizer.state[parameter]["momentum"] - momentum[name]).abs().max() <= CLIPPED, name


def test_igt_survives_a_skipped_batch_and_an_exception() -> None:
    class Fails(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            if batch_idx == 5:
                raise KeyError("stop")
            return None if batch_idx == 3 else super().training_step(batch, batch_idx)

    model, watch = Fails(method="gluon-igt"), Watch()
    with pytest.raises(KeyError):
        fit(model, callbacks=[watch])
    assert torch.equal(model.last.weight, watch.path[-1])
