"""Two gloo processes equal one: both gradients are averaged over the ranks, once per window."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, Subset

from lightning_gluon import configure_optimizers
from tests._two_point import QUIET, SaveAt, data, free_port, gluon, state

CLOSE = 1e-6  # measured: 3e-7 in fp32, from the order of the sums


@dataclass(frozen=True)
class Case:
    """One way to train."""

    strategy: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=lambda: {"method": "gluon-mvr1"})
    accumulate: int = 2
    precision: str = "32-true"
    halves: bool = False  # one process takes as micro-batches what two take at once
    spare: str = ""  # when a second part of the model is used: in "odd" or "even" batches, or "apart" by the ranks


UNUSED = {"find_unused_parameters": True}
CASES = {
    "plain": Case(),
    "bucket view": Case({"gradient_as_bucket_view": True}),
    "unused": Case(UNUSED, spare="odd"),
    "unused at the end": Case(UNUSED, spare="even"),
    "unused on one rank": Case(UNUSED, spare="apart"),
    "igt": Case(options={"method": "gluon-igt"}),
    "mvr2 step": Case(UNUSED, {"method": "gluon-mvr2", "reference": "step"}),
    "auto": Case(options={"method": "gluon-mvr1", "gamma": "auto"}, halves=True),
    "static": Case({"static_graph": True}, accumulate=1, precision="64-true"),  # torch allows no accumulation there
}


class Small(pl.LightningModule):
    """Without dropout and batch norm, which depend on how a batch is split."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.spare = nn.Linear(8, 3).requires_grad_(bool(case.spare))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        turn, size = batch_idx % 2, self.trainer.world_size
        share, weight = slice(None), 1.0
        if self.case.spare == "apart":  # one process has the samples of both ranks
            share, weight = (slice(turn, None, 2), 0.5) if size == 1 else (share, float(self.global_rank == turn))
        elif self.case.spare != ("odd" if turn else "even"):
            weight = 0.0
        if weight:
            loss = loss + weight * self.spare(self.net[:2](batch[0][share])).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, lr=0.05, orthogonalizer="svd", noise_floor=0.0, **self.case.options)


def train(case: Case, path: Path, ranks: int, rank: int = 0, **given: Any) -> dict[str, Tensor]:
    """Return the state at the end, and the gradients of a window that a checkpoint was taken in."""
    torch.manual_seed(1)
    model, samples = Small(case), data(batches=5, size=4)
    options = {
        "accumulate_grad_batches": case.accumulate,
        "precision": case.precision,
        "gradient_clip_val": 0.5,
        "max_epochs": 2,
        "callbacks": [SaveAt(path, 1, 2)],
    }
    if case.halves:
        options.update(accumulate_grad_batches=2 // ranks, gradient_clip_val=None)
    runner = pl.Trainer(**{**QUIET, **options, **given}, use_distributed_sampler=False)
    share = DistributedSampler(samples, ranks, rank, shuffle=False)  # of two ranks, even and odd samples of a batch
    loader = DataLoader(samples, batch_size=4 // ranks, sampler=share)
    if case.halves and ranks == 1:
        order = [4 * batch + sample for batch in range(5) for sample in (0, 2, 1, 3)]
        loader = DataLoader(Subset(samples, order), batch_size=2)
    runner.fit(model, loader)
    runner.strategy.barrier()
    if case.halves:
        moments = {group["name"]: torch.tensor(group["gamma_moments"]) for group in gluon(runner).param_groups}
        return {**state(model, gluon(runner)), **moments}
    window = torch.load(path, weights_only=True)["optimizer_states"][0].get("window", {})
    sums = {f"{part}.{name}": value for part, some in window.items() for name, value in some.items()}
    return {**state(model, gluon(runner)), **sums}


def worker(folder: Path, names: list[str]) -> None:
    """Train every case on this rank and save what came out."""
    rank = int(os.environ["LOCAL_RANK"])
    for name in names:
        plugins = {"process_group_backend": "gloo", "cluster_environment": LightningEnvironment()}
        strategy = DDPStrategy(**plugins, **CASES[name].strategy)
        ends = train(CASES[name], folder / f"{name}.ckpt", 2, rank, strategy=strategy, devices=2)
        torch.save(ends, folder / f"{name}.{rank}.pt")


def launch(folder: Path, names: list[str]) -> None:
    shared = {"PYTHONPATH": os.pathsep.join(sys.path)}  # this tree's package, whatever is installed
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), *names]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **shared, "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=240)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(error[-3000:] for error in errors)


def check(folder: Path, names: list[str]) -> None:
    launch(folder, names)
    for name in names:
        ranks = [torch.load(folder / f"{name}.{rank}.pt") for rank in range(2)]
        one = train(CASES[name], folder / "one.ckpt", 1)
        assert one.keys() == ranks[0].keys()
        for key, value in one.items():
            assert torch.equal(ranks[0][key], ranks[1][key]), (name, key)
            assert (ranks[0][key].double() - value.double()).abs().max() <= CLOSE, (name, key)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    check(tmp_path, ["plain", "bucket view", "unused", "unused at the end", "unused on one rank", "igt", "auto"])


@pytest.mark.slow
def test_two_processes_equal_one_in_more_ways(tmp_path: Path) -> None:
    check(tmp_path, ["mvr2 step", "static"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(Path(sys.argv[1]), sys.argv[2:])
