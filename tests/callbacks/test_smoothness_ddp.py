"""Two gloo processes: the same radii on both ranks, and a monitor that changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from lightning_gluon import configure_optimizers
from lightning_gluon.callbacks import QKClip, RadiusScheduler, SmoothnessMonitor
from tests._two_point import QUIET, data, free_port, gluon, state

CASES = {
    "plain": ("gluon", []),
    "monitored": ("gluon", ["monitor"]),
    "calibrate mvr1": ("gluon-mvr1", ["calibrate", "monitor"]),
    "calibrate": ("gluon", ["calibrate"]),
    "smoothness": ("gluon", ["smoothness"]),
    "momo": ("gluon", ["momo"]),
    "ngn": ("gluon", ["ngn"]),
    "floor": ("gluon", ["floor"]),
    "clip": ("gluon", ["clip"]),
}


class Heads(nn.Module):
    """Attention over the four features of a sample, as two tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.query, self.key = nn.Linear(2, 4), nn.Linear(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.unflatten(-1, (2, 2))
        query, key = (layer(tokens).unflatten(-1, (2, 2)).transpose(1, 2) for layer in (self.query, self.key))
        return nn.functional.scaled_dot_product_attention(query, key, key).flatten(1)


class Small(pl.LightningModule):
    def __init__(self, method: str, *, heads: bool = False) -> None:
        super().__init__()
        self.method = method
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3))
        if heads:
            self.net = nn.Sequential(Heads(), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, method=self.method, lr=0.05)


def train(folder: Path, name: str, rank: int) -> dict[str, Any]:
    method, names = CASES[name]
    make = {
        "monitor": lambda: SmoothnessMonitor(every_n_steps=2),
        "calibrate": lambda: RadiusScheduler("calibrate"),
        "smoothness": lambda: RadiusScheduler("smoothness", every_n_steps=2, options={"samples": 1}),
        "momo": lambda: RadiusScheduler("momo", options={"lower_bound": 1.0}),
        "ngn": lambda: RadiusScheduler("ngn"),
        "floor": lambda: RadiusScheduler("floor", options={"floor": 2.0}),
        "clip": lambda: QKClip(1e-3),
    }
    torch.manual_seed(1)
    model = Small(method, heads="clip" in names)
    plugins = {"process_group_backend": "gloo", "cluster_environment": LightningEnvironment()}
    options = {"strategy": DDPStrategy(**plugins), "devices": 2, "accumulate_grad_batches": 2, "max_epochs": 2}
    runner = pl.Trainer(**{**QUIET, **options}, callbacks=[make[n]() for n in names], default_root_dir=folder / name)
    torch.manual_seed(rank)  # different dropout on the two ranks
    runner.fit(model, DataLoader(data(batches=8), batch_size=2))
    radii = {group["name"]: group["radius"] for group in gluon(runner).param_groups}
    return {"state": state(model, gluon(runner)), "radii": radii}


def launch(folder: Path, port: int) -> None:
    shared = {"PYTHONPATH": os.pathsep.join(sys.path)}  # this tree's package, whatever is installed
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **shared, "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=240)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(error[-3000:] for error in errors)


def test_two_ranks_agree(tmp_path: Path) -> None:
    launch(tmp_path, free_port())
    found = {name: [torch.load(tmp_path / f"{name}.{rank}.pt") for rank in range(2)] for name in CASES}
    for name, (one, other) in found.items():
        assert one["radii"] == other["radii"], name
        assert all(torch.equal(value, other["state"][key]) for key, value in one["state"].items()), name
    plain, watched = found["plain"][0]["state"], found["monitored"][0]["state"]
    assert all(torch.equal(value, watched[key]) for key, value in plain.items())
    changed = [name for name, (one, _) in found.items() if one["radii"] != found["plain"][0]["radii"]]
    assert changed == ["calibrate mvr1", "calibrate", "smoothness", "momo", "ngn", "floor"]
    clipped = found["clip"][0]["state"]
    assert max(value.abs().max().item() for key, value in clipped.items() if "0.query.weight" in key) < 0.1
    assert (tmp_path / "monitored" / "smoothness.jsonl").exists()  # written by one rank alone
    assert not (tmp_path / "monitored" / "smoothness_2.jsonl").exists()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        place = Path(sys.argv[1])
        torch.save(train(place, case, int(os.environ["LOCAL_RANK"])), place / f"{case}.{os.environ['LOCAL_RANK']}.pt")
