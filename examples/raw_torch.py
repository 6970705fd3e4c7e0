"""Train over several ranks in a loop of your own: one copy of the weights per rank (DDP), or cut over them (FSDP2).

    torchrun --nproc-per-node 2 -m examples.raw_torch --strategy ddp
    torchrun --nproc-per-node 2 -m examples.raw_torch --strategy fsdp2 --method gluon-mvr1

It runs on GPUs with NCCL if every rank has one, else on CPUs with gloo.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import lightning_gluon

WIDTH, BATCH = 64, 32


class Block(nn.Module):
    """A residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        return x + self.down(self.up(self.norm(x)).relu())


def network() -> nn.Sequential:
    """Return the model, with the same weights on all ranks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, WIDTH), Block(), Block(), nn.Linear(WIDTH, 1))


def batches(steps: int, ranks: int, rank: int) -> list[tuple[Tensor, Tensor]]:
    """Return this rank's share of every batch."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(steps, BATCH, 8, generator=random)
    targets = torch.sin(3 * inputs[..., :1]) + inputs[..., 1:2]
    return [(x[rank::ranks], y[rank::ranks]) for x, y in zip(inputs, targets, strict=True)]


def train(strategy: str, method: str, steps: int, device: torch.device) -> list[float]:
    """Train and return the mean loss of every step."""
    net = network().to(device)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    if strategy == "fsdp2":
        mesh = init_device_mesh(device.type, (ranks,))
        for block in (net[1], net[2]):
            fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh)
        model: nn.Module = net
        optimizer = lightning_gluon.Gluon(net, lr=0.02, method=method)  # sees by itself that weights are cut
    else:
        model = DistributedDataParallel(net)
        optimizer = lightning_gluon.Gluon(net, lr=0.02, method=method, process_group=dist.group.WORLD)
    losses = []
    for x, y in batches(steps, ranks, rank):
        x, y = x.to(device), y.to(device)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = mse_loss(model(x), y)  # noqa: B023 - called before the next batch
            loss.backward()
            return loss

        loss = optimizer.step(closure).detach()  # evaluated twice by a method that takes two gradients
        dist.all_reduce(loss)
        losses.append(loss.item() / ranks)
    return losses


def main() -> None:
    """Train and print the loss."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--strategy", choices=["ddp", "fsdp2"], default="ddp")
    parser.add_argument("--method", default="gluon")
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    local, ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpus = torch.cuda.device_count() >= ranks
    device = torch.device("cuda", local) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpus else "gloo")
    losses = train(given.strategy, given.method, given.steps, device)
    if dist.get_rank() == 0:
        print(f"{given.strategy} {given.method}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
