"""Adapters whose factors and frozen maps are cut over ranks: the partner of each factor travels with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributed.fsdp import fully_shard

from lightning_gluon import Gluon
from tests.ranks._gloo import Ranks
from tests.ranks._gradients import Case, compare_all
from tests.ranks._layouts import AdaptedLinear, build, mesh_of
from tests.ranks._training import Run, far, fit, fit_all

CASES = [
    Case("gluon", model="adapters"),
    Case("gluon-mvr1", {"weight_decay": 0.1}, model="adapters"),
    Case("muon", model="adapters"),
]
CLOSE = 1e-11  # in fp64


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp"])
def test_adapters_take_the_step_of_one_rank(two_ranks: Ranks, strategy: str) -> None:
    norms = {group["norm"]: len(group["params"]) for group in Gluon(build("adapters"), lr=0.1).param_groups}
    assert norms["factor"] == 8
    for report in two_ranks.call(compare_all, CASES[:2], strategy)[0]:
        assert report.estimators["blocks.0.up.weight"] == "frozen"
        assert report.gathers == 0 and not any(report.differing.values()), report


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp"])
def test_adapters_on_four_ranks(four_ranks: Ranks, strategy: str) -> None:
    for report in four_ranks.call(compare_all, CASES[:2], strategy)[0]:
        assert not any(report.differing.values()), report


def test_adapters_of_peft_train_as_in_one_process(two_ranks: Ranks) -> None:
    pytest.importorskip("peft")
    run = Run("fsdp2", "gluon", {"orthogonalizer": "svd"}, model="lora", steps=3, double=True)
    expected = fit(replace(run, strategy="one"))
    start = {name: one.detach().double().numpy() for name, one in build("lora").named_parameters()}
    moved = {name for name, one in expected.items() if not np.array_equal(one, start[name])}
    assert len(moved) == 12 and all("lora_" in name for name in moved)
    for (weights,) in two_ranks.call(fit_all, [run], timeout=200):
        assert far(weights, expected) <= CLOSE


def apart() -> None:
    """Cut one factor of a pair alone."""
    net = AdaptedLinear(6, 8)
    fully_shard(net.lora_B, mesh=mesh_of(shard=2))
    optimizer = Gluon(net, lr=0.1)
    net.lora_A.weight.grad = torch.ones(3, 6)
    optimizer.step()


def test_a_pair_that_is_cut_apart_is_refused(two_ranks: Ranks) -> None:
    for outcome in two_ranks.attempt(apart, timeout=60):
        assert "'lora_A.weight' lies on several ranks, but norm 'factor' reads another" in str(outcome.error)
        assert "Cut both alike" in str(outcome.error)
