"""A least-squares problem without noise, on which a ramp ends where a step is longer than what is left."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_gluon import configure_optimizers
from tests._two_point import FLAT, Loader, data, fit


class Slope(pl.LightningModule):
    """mean (W x - A x)^2 / 2, without noise: the loss falls until the step is longer than what is left."""

    def __init__(self, method: str = "gluon", schedule: str = "constant", **options) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.target = torch.eye(4)
        self.options = {"method": method, "schedule": schedule, "lr": 0.1, **FLAT, **options}
        self.steps: list[tuple[float, float]] = []

    def training_step(self, batch, batch_idx):
        return (self.layer(batch[0]) - batch[0] @ self.target).square().mean()

    def on_before_zero_grad(self, optimizer):
        group = self.trainer.optimizers[0].param_groups[0]
        self.steps.append((group["lr"], group["radius"]))

    def configure_optimizers(self):
        return configure_optimizers(self, **self.options)


class Deep(Slope):
    """The same with three layers: under `muon` an LMO steps the middle one, and AdamW the others."""

    def __init__(self, method: str = "muon", schedule: str = "constant", **options) -> None:
        super().__init__(method, schedule, **options)
        self.layer = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))


def run(model, scheduler=None, *, batches: int = 120, **options):
    torch.manual_seed(0)
    callbacks = [scheduler] if scheduler else []
    return fit(model, loader=Loader(data(batches=batches, size=32), 32), callbacks=callbacks, **options)
