"""Train over several ranks with Lightning Fabric: one copy of the weights per rank (DDP), or cut over them (FSDP2).

python -m examples.fabric_ranks --devices 2 --strategy fsdp2
"""

from __future__ import annotations

import argparse
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss

import lightning_gluon
from examples.raw_torch import batches, network


def cut(net: nn.Module, mesh: Any) -> nn.Module:
    """Cut the weights over the ranks, the blocks one by one."""
    _, *blocks, _ = net.children()
    for block in blocks:
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(net, mesh=mesh["data_parallel"])
    return net


def strategy_of(name: str, devices: int) -> DDPStrategy | ModelParallelStrategy:
    """Return Fabric's strategy."""
    if name == "fsdp2":
        return ModelParallelStrategy(cut, data_parallel_size=devices, tensor_parallel_size=1)
    return DDPStrategy()


def train(fabric: Fabric, method: str, steps: int) -> list[float]:
    """Train and return the mean loss of every step."""
    model = fabric.setup_module(network())
    shared: dict[str, Any] = {}
    if isinstance(fabric.strategy, DDPStrategy):
        shared["process_group"] = distributed.group.WORLD
    optimizer: Any = fabric.setup_optimizers(lightning_gluon.Gluon(model, lr=0.02, method=method, **shared))
    losses = []
    for batch in batches(steps, fabric.world_size, fabric.global_rank):
        x, y = fabric.to_device(batch)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = mse_loss(model(x), y)  # noqa: B023 - called before the next batch
            fabric.backward(loss)
            return loss

        loss = optimizer.step(closure=closure)
        mean: Any = fabric.all_reduce(loss.detach(), reduce_op="mean")
        losses.append(float(mean))
    return losses


def main() -> None:
    """Train and print the loss."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--strategy", choices=["ddp", "fsdp2"], default="ddp")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--method", default="gluon")
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    strategy = strategy_of(given.strategy, given.devices)
    fabric = Fabric(accelerator=given.accelerator, devices=given.devices, strategy=strategy)
    fabric.launch()
    losses = train(fabric, given.method, given.steps)
    fabric.print(f"{given.strategy} {given.method}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
