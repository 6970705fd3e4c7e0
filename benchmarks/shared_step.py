"""How much faster is an optimizer step under DDP if the ranks share its LMOs? Layers of Qwen2.5-0.5B, equal gradients.

    torchrun --nproc-per-node 2 -m benchmarks.shared_step                     # on CPUs, or a GPU per rank
    torchrun --nproc-per-node 8 -m benchmarks.shared_step --layers 24

Both ways take turns, so that a busy machine slows both, and the least time of each counts. Every rank needs its own
core. Before that, a step of both must give the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.journal import Journal
from lightning_gluon import Gluon

WIDTH, INNER, KEYS = 896, 4864, 128
RESULTS = Path("benchmarks/results/shared_step.jsonl")


def layers(count: int, device: torch.device) -> nn.Module:
    """Return the linear maps of some layers, with gradients that are the same on all ranks."""
    torch.manual_seed(0)
    shapes = [(WIDTH, WIDTH), (WIDTH, KEYS), (WIDTH, KEYS), (WIDTH, WIDTH)]
    shapes += [(WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)]
    net = nn.ModuleList([nn.Linear(*shape, bias=False) for shape in shapes * count]).to(device)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    return net


def optimizer_of(net: nn.Module, share: bool) -> Gluon:
    """Return an optimizer over hidden matrices."""
    groups = [{"params": list(net.parameters()), "role": "hidden"}]
    return Gluon(groups, lr=0.02, process_group=dist.group.WORLD, share_work=share)


def seconds(optimizer: Gluon, device: torch.device) -> float:
    """Return the time of one step, that of the slowest rank."""
    dist.barrier()
    start = time.perf_counter()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    slowest = torch.tensor(time.perf_counter() - start, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.item()


def main() -> None:
    """Measure both ways and record the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    local = int(os.environ["LOCAL_RANK"])
    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", local) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if on_gpus else "gloo")
    nets = {share: layers(given.layers, device) for share in (False, True)}
    optimizers = {share: optimizer_of(net, share) for share, net in nets.items()}
    for optimizer in optimizers.values():
        optimizer.step()  # makes the state
    pairs = zip(nets[False].parameters(), nets[True].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs), "the steps are not equal"
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(given.steps):
        for share, optimizer in optimizers.items():
            times[share].append(seconds(optimizer, device))
    alone, shared = min(times[False]), min(times[True])
    if dist.get_rank() == 0:
        ranks = dist.get_world_size()
        numbers = {"ranks": ranks, "layers": given.layers, "alone": alone, "shared": shared, "ratio": shared / alone}
        Journal(given.output).append("step", device=device.type, load=os.getloadavg()[0], **numbers)
        print(f"{ranks} ranks: {alone:.4f} s alone, {shared:.4f} s shared, ratio {shared / alone:.2f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
