"""Adapters whose factors are cut over ranks: refused with a remedy, and the remedy trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from lightning_gluon import Gluon, partition
from tests.ranks._gloo import Ranks
from tests.ranks._layouts import mesh_of, whole


class Adapter(nn.Module):
    """Both factors of a LoRA, as torchtune keeps them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lora_A = nn.Linear(6, 3, bias=False)
        self.lora_B = nn.Linear(3, 8, bias=False)
        self.alpha, self.rank = 6, 3

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(x))


def cut() -> Adapter:
    net = Adapter()
    fully_shard(net, mesh=mesh_of(shard=2))
    return net


def train(rules: dict[str, str] | None) -> float:
    """Take a step, and return how far the second factor has moved."""
    net = cut()
    before = whole(net.lora_B.weight).clone()
    optimizer = Gluon(partition(net, rules=rules), lr=0.1)
    net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    return (whole(net.lora_B.weight) - before).abs().max().item()


def test_cut_factors_are_refused_with_a_remedy_that_trains(two_ranks: Ranks) -> None:
    for outcome in two_ranks.attempt(train, None, timeout=60):
        assert "'lora_A.weight' is spread over ranks" in str(outcome.error)
        assert "role 'hidden' by `rules`" in str(outcome.error)
    moved = two_ranks.call(train, {"*": "hidden"}, timeout=60)
    assert moved[0] == moved[1] > 0
