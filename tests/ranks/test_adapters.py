"""Adapters whose factors and frozen maps are cut over ranks: the partner of each factor travels with it."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from lightning_gluon import Gluon
from tests.ranks._gloo import Ranks
from tests.ranks._gradients import Case, compare_all
from tests.ranks._layouts import AdaptedLinear, build, mesh_of

CASES = [
    Case("gluon", model="adapters"),
    Case("gluon-mvr1", {"weight_decay": 0.1}, model="adapters"),
    Case("muon", model="adapters"),
]


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
