"""Messages over real ranks: weights and bytes are those of workers inside one process, and trainings go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gluon import Exchange, Gluon, RankExchange, run_workers
from lightning_gluon.step.workers import keep_own_gradients
from tests.ranks._gloo import Ranks
from tests.ranks._layouts import DEVICE
from tests.ranks._traffic import Traffic
from tests.ranks._training import Run, far, fit
from tests.ranks.test_checkpoints import goes_on

STEPS = 4
EXACT: dict[str, Any] = {"orthogonalizer": "svd", "noise_floor": 0.0}
CLOSE = 1e-8  # in fp64; measured: 4e-10, since a sum of messages rounds otherwise, which the LMO amplifies


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)).to(DEVICE)


def loss_of(net: nn.Module, step: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * rank + step)
    return net(torch.randn(5, 6, generator=generator).to(DEVICE)).square().mean()


def walk(net: nn.Module, inner: nn.Module, exchange: Exchange, options: dict[str, Any]) -> tuple[list[Tensor], int]:
    """Train one worker, and return its weights and the bytes of its messages."""
    optimizer = Gluon(inner, lr=0.05, method="ef21-muon", workers=exchange.size, **options)
    optimizer.exchange = exchange
    if isinstance(net, DistributedDataParallel):
        net.register_comm_hook(dist.group.WORLD, keep_own_gradients(optimizer.param_groups))
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(net, step, exchange.rank).backward()
        optimizer.step()
    return [parameter.detach() for parameter in inner.parameters()], exchange.sent


def compared(options: dict[str, Any]) -> tuple[bool, int, int, tuple[dict[str, int], dict[str, int]]]:
    """Train over all ranks, and beside it as many workers in this process."""
    size = dist.get_world_size()
    inner = network()
    net = DistributedDataParallel(inner)
    with Traffic() as traffic:
        found, sent = walk(net, inner, RankExchange(dist.group.WORLD, DEVICE), options)
    nets = [network() for _ in range(size)]
    simulated = run_workers(size, lambda exchange: walk(nets[exchange.rank], nets[exchange.rank], exchange, options))
    weights, bytes_ = simulated[dist.get_rank()]
    same = all(map(torch.equal, found, weights))
    return same, sent, bytes_, (dict(traffic.calls), dict(traffic.bytes))


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_are_the_workers_of_one_process(request: pytest.FixtureRequest, size: int) -> None:
    ranks = request.getfixturevalue({2: "two_ranks", 4: "four_ranks"}[size])
    for options in ({"compressor_share": 0.05}, {"compressor": "rank-r"}, {"compressor": "natural"}):
        for same, sent, expected, (calls, traffic) in ranks.call(compared, options):
            assert same and sent == expected, options
            messages = traffic["_allgather_base_"]
            padding = 16 * 2 * 6 * (STEPS + 1)  # of every tensor to 16 bytes; at most two per parameter
            assert sent * (size - 1) <= messages <= (sent + padding) * (size - 1)
            assert calls["allreduce_"] == STEPS  # one number: whether somebody has to raise


def spoilt() -> None:
    """Give one rank a gradient that is no number."""
    inner = network()
    optimizer = Gluon(inner, lr=0.05, method="ef21-muon", workers=dist.get_world_size())
    optimizer.exchange = RankExchange(dist.group.WORLD, DEVICE)
    for parameter in inner.parameters():
        parameter.grad = torch.ones_like(parameter)
    if dist.get_rank() == 1:
        inner[2].weight.grad[0, 0] = torch.nan  # type: ignore[union-attr, index]
    optimizer.step()


def test_all_ranks_name_a_gradient_that_is_no_number_on_one(two_ranks: Ranks) -> None:
    for outcome in two_ranks.attempt(spoilt, timeout=60):
        assert "FloatingPointError: Non-finite gradient in '2.weight'" in str(outcome.error)


def test_a_training_goes_on_exactly(two_ranks: Ranks, tmp_path: Path) -> None:
    run = Run("ddp", "ef21-muon", {"compressor_share": 0.05})
    assert goes_on({2: two_ranks}, run, (2, 2), "ddp", str(tmp_path / "saved.ckpt")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["one", "ddp"])
def test_other_workers_begin_anew(two_ranks: Ranks, four_ranks: Ranks, tmp_path: Path, strategy: str) -> None:
    """Messages in full lose nothing, so neither does beginning anew."""
    run = Run("ddp", "ef21-muon", {**EXACT, "compressor": "identity"}, double=True)
    size = 1 if strategy == "one" else 4
    ranks = {1: two_ranks, 2: two_ranks, 4: four_ranks}
    assert goes_on(ranks, run, (2, size), strategy, str(tmp_path / "saved.ckpt")) <= CLOSE


def test_full_messages_are_data_parallel_training(two_ranks: Ranks) -> None:
    options = {**EXACT, "compressor": "identity"}
    found = two_ranks.call(fit, Run("ddp", "ef21-muon", options, double=True))
    expected = fit(Run("one", "gluon", EXACT, double=True))
    assert max(far(weights, expected) for weights in found) <= CLOSE
