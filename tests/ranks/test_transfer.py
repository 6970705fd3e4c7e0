"""Transfers over real ranks: what goes to owners, what comes back, and what all ranks decide together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.ranks.collectives import all_gather, all_to_all
from lightning_gluon.ranks.groups import ONE_RANK, MeshGroups, Ranks
from lightning_gluon.ranks.layout import Layout, layout_of
from lightning_gluon.ranks.packing import TensorForm, tensors_in, total_room, write_packed
from lightning_gluon.ranks.pieces import PieceState, is_sharded, local, local_gradient, wrap
from lightning_gluon.ranks.transfer import Parcel, Transfer
from lightning_gluon.ranks.whole import WholeNorms
from lightning_gluon.step.sharing import TURNS, Sharing
from tests.ranks._gloo import Ranks as Processes
from tests.ranks._layouts import mesh_of, placed, shard, whole

CPU = torch.device("cpu")


def test_packed_tensors_of_several_dtypes_come_out_as_they_went_in() -> None:
    sent = [
        torch.arange(5.0),
        torch.ones(0, 3),
        torch.tensor([[True]]),
        torch.arange(6, dtype=torch.bfloat16).view(3, 2).T,
    ]
    forms = [TensorForm.of(tensor) for tensor in sent]
    buffer = torch.zeros(total_room(forms), dtype=torch.uint8)
    write_packed(buffer, sent)
    for one, other in zip(sent, tensors_in(buffer, forms), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype


def exchanged() -> None:
    """Send the rank's number as often as it says, in two dtypes, and nothing where it says zero."""
    ranks = Ranks.of(dist.group.WORLD)
    sent = [[torch.full((to,), float(ranks.place)), torch.full((1,), to, dtype=torch.int8)] for to in range(ranks.size)]
    own = [TensorForm((ranks.place,), torch.float32), TensorForm((1,), torch.int8)]
    found = all_to_all(ranks, sent, [own] * ranks.size, CPU).wait()
    for source, (numbers, code) in enumerate(found):
        assert numbers.tolist() == [float(source)] * ranks.place
        assert code.tolist() == [ranks.place]
    nothing = all_gather(ranks, [], [[]] * ranks.size, CPU).wait()
    assert nothing == [[]] * ranks.size
    mine = [torch.full((2 * ranks.place,), float(ranks.place))]
    forms = [[TensorForm((2 * rank,), torch.float32)] for rank in range(ranks.size)]
    for rank, (row,) in enumerate(all_gather(ranks, mine, forms, CPU).wait()):
        assert row.tolist() == [float(rank)] * (2 * rank)


def travelled(sizes: dict[str, int], spread: tuple[Any, ...]) -> None:
    """Collect pieces at every owner in turn, and share what it makes of them."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    places = [Replicate() if one is None else Shard(one) for one in spread]
    mesh, expected = mesh_of(**sizes), torch.arange(35.0).view(7, 5)
    parameter = nn.Parameter(distribute_tensor(expected, mesh, places, src_data_rank=None))
    layout = layout_of("weight", parameter, MeshGroups())
    parcels = [Parcel(layout, owner) for owner in range(layout.slots)]
    transfer = Transfer(parcels, CPU)
    pieces = [local(parameter) + owner for owner in range(layout.slots)]
    found = transfer.collect(pieces, torch.tensor([layout.shards.place])).wait()
    came = found.whole
    assert [note.item() for note in found.notes] == list(range(layout.shards.size if layout.shards.group else 0))
    me = layout.copies.place * layout.shards.size + layout.shards.place
    assert list(came) == [me]
    assert torch.equal(came[me], expected + me)
    halves = {me: came[me].double() / 2}
    back = transfer.share(halves, [torch.float64] * layout.slots).wait()
    for owner, piece in enumerate(back):
        assert torch.equal(piece, layout.own.of((expected + owner).double() / 2))
    news = transfer.spread({me: [torch.tensor([me])]}, [[TensorForm((1,), torch.int64)]] * layout.slots)
    assert [row.item() for (row,) in news] == list(range(layout.slots))
    (norm,) = WholeNorms([layout])([local(parameter)])
    assert math.isclose(norm.item(), expected.norm().item(), rel_tol=1e-6)


def test_tensors_go_where_they_belong(two_ranks: Processes) -> None:
    two_ranks.call(exchanged)
    two_ranks.call(travelled, {"shard": 2}, (0,))
    two_ranks.call(travelled, {"shard": 2}, (1,))
    two_ranks.call(travelled, {"copy": 2}, (None,))


@pytest.mark.slow
def test_tensors_go_where_they_belong_on_a_grid(four_ranks: Processes) -> None:
    four_ranks.call(exchanged)
    four_ranks.call(travelled, {"shard": 4}, (0,))
    four_ranks.call(travelled, {"copy": 2, "shard": 2}, (None, 0))
    four_ranks.call(travelled, {"shard": 2, "copy": 2}, (1, None))
    four_ranks.call(travelled, {"rows": 2, "columns": 2}, (0, 1))


def wrapped() -> None:
    """Keep pieces in a state, and gradients that are sums over ranks."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = mesh_of(shard=dist.get_world_size())
    parameter = nn.Parameter(distribute_tensor(torch.zeros(3, 4), mesh, [Shard(0)], src_data_rank=None))
    state = PieceState({}, parameter)
    state["momentum"] = torch.ones_like(local(parameter))
    state["scale"] = torch.ones(len(local(parameter)), 1)
    state["step"] = torch.zeros(())
    assert state.state["momentum"].shape == (3, 4) and state.state["scale"].shape == (3, 1)
    assert not is_sharded(state.state["step"]) and state["momentum"].shape == local(parameter).shape
    state["momentum"].add_(1)
    assert torch.equal(whole(state.state["momentum"]), torch.full((3, 4), 2.0))
    plain = nn.Parameter(torch.ones(2))
    assert wrap(plain, plain) is plain and local(plain) is plain
    same = nn.Parameter(distribute_tensor(torch.zeros(3), mesh, [Replicate()], src_data_rank=None))
    gradient = DTensor.from_local(torch.ones(3), mesh, [Partial()], run_check=False)
    assert local_gradient(same, gradient).tolist() == [float(dist.get_world_size())] * 3


def test_state_is_kept_as_pieces(two_ranks: Processes) -> None:
    two_ranks.call(wrapped)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def decided(asked: bool | str) -> tuple[bool | None, list[Tensor]]:
    """Step under data parallelism until the ranks have decided whether they share."""
    net = network()
    optimizer = Gluon(net, lr=0.1, process_group=dist.group.WORLD, share_work=asked)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2 * TURNS + 1):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer._plans.sharing.decided, [parameter.detach() for parameter in net.parameters()]


def test_ranks_decide_alike_whether_they_share(two_ranks: Processes) -> None:
    (first, weights), (second, others) = two_ranks.call(decided, "auto")
    assert first is second and first in (True, False)
    for asked in (True, False):
        for choice, expected in two_ranks.call(decided, asked):
            assert choice is asked
            assert all(map(torch.equal, weights, expected)) and all(map(torch.equal, others, expected))


def test_one_rank_has_nothing_to_decide() -> None:
    assert Sharing(ONE_RANK, "auto").decided is True
    with pytest.raises(ValueError, match="`share_work` to be True, False or 'auto', but got 'some'"):
        Gluon(network(), share_work="some")
    with pytest.raises(ValueError, match="Expected no `compile` with `share_work=True`"):
        Gluon(network(), share_work=True, compile=True)


def refused(message: str, options: dict[str, Any]) -> None:
    net = network()
    shard(net, mesh_of(shard=dist.get_world_size()))
    if "momentum_dtype" in options:
        with pytest.raises(NotImplementedError, match=message):
            Gluon(net, lr=0.1, **options)
        return
    optimizer = Gluon(net, lr=0.1, **options)
    before = [whole(parameter) for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = placed(torch.ones(parameter.shape), parameter)
    with pytest.raises(NotImplementedError, match=message):
        optimizer.step()
    assert all(torch.equal(whole(parameter), own) for parameter, own in zip(net.parameters(), before, strict=True))


def test_what_shards_cannot_do_is_refused(two_ranks: Processes) -> None:
    two_ranks.call(refused, "`compile` does not work where weights are spread over ranks", {"compile": True})
    two_ranks.call(refused, "`momentum_dtype='int8'` of group 'hidden' does not work", {"momentum_dtype": "int8"})
    options = {"method": "gluon-lowrank", "rank": 1, "feedback": "int8"}
    two_ranks.call(refused, "lies on several ranks, but `feedback` is kept by rows", options)


def test_layouts_of_plain_tensors_are_whole() -> None:
    layout = layout_of("weight", torch.zeros(2, 3), MeshGroups())
    assert layout == Layout((2, 3), layout.regions) and layout.slots == 1 and layout.own.size == (2, 3)
    assert not layout.cuts


class Block(nn.Module):
    """A norm whose gradient is a sum over the ranks under sequence parallelism, and the two halves of an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(self.norm(x)).tanh())


def in_sequence(method: str) -> float:
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    torch.manual_seed(0)
    alone, net = Block(), Block()
    net.load_state_dict(alone.state_dict())
    plan = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(net, mesh_of(tensor=2), plan)
    x = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(1))
    for model in (alone, net):
        optimizer = Gluon(model, lr=0.05, method=method)
        for _ in range(4):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert isinstance(net.norm.weight.grad.placements[0], Partial)  # type: ignore[union-attr]
    pairs = zip(net.parameters(), alone.parameters(), strict=True)
    return max(((whole(one) - other).abs().max() / other.abs().max()).item() for one, other in pairs)


def test_gradients_that_are_sums_over_ranks_are_brought_together(two_ranks: Processes) -> None:
    for method in ("gluon", "adamw"):
        assert max(two_ranks.call(in_sequence, method)) < 1e-4  # measured: 3e-6
