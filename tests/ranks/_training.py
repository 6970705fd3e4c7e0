"""Trainings under Lightning's strategies, which end with the weights of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, Sampler, TensorDataset

from lightning_gluon import configure_optimizers
from lightning_gluon.callbacks import RadiusScheduler, SmoothnessMonitor
from tests._two_point import QUIET, Loader
from tests.ranks._layouts import VOCABULARY, build, mesh_of, shard, split, whole

SAMPLES, LENGTH, BATCH = 40, 12, 8
CALLBACKS = {
    "monitor": lambda: SmoothnessMonitor(every_n_steps=2),
    "smoothness": lambda: RadiusScheduler("smoothness", every_n_steps=2, options={"samples": 1}),
    "calibrate": lambda: RadiusScheduler("calibrate"),
}

# What the order of sums does to others.
TORCH: dict[str, Callable[..., Optimizer]] = {
    "torch sgd": partial(SGD, lr=0.02, momentum=0.9),
    "torch adamw": partial(AdamW, lr=0.001),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        strategy: How weights lie over the ranks; `one` is one process.
        method: Its method.
        options: Its options.
        model: Name of a model.
        steps: Optimizer steps.
        trainer: Arguments of the Trainer.
        given: Arguments of `fully_shard`, or of `DDPStrategy`.
        callbacks: Names of callbacks.
        save: A checkpoint to write, and the step after which.
        load: A checkpoint to go on from.
        double: Whether the weights are in fp64; Lightning's `64-true` is not for sharded ones.
        parts: Parts of a batch whose gradients one process adds, as so many ranks would.
        sharded: Whether every rank writes its part of a checkpoint.
    """

    strategy: str = "one"
    method: str = "gluon"
    options: dict[str, Any] = field(default_factory=dict)
    model: str = "qwen"
    steps: int = 5
    trainer: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    callbacks: Sequence[str] = ()
    save: tuple[str, int] | None = None
    load: str | None = None
    sharded: bool = True
    double: bool = False
    parts: int = 1

    def grid(self, size: int) -> tuple[int, int]:
        """Return the ranks that share the data, and those that share a layer."""
        if self.strategy == "tp":
            return 1, size
        return (size // 2, 2) if self.strategy == "fsdp+tp" else (size, 1)


class Module(pl.LightningModule):
    """A small language or image model, wrapped as the strategy asks."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.wrapped = run, False
        self.net = build(run.model).to(torch.float64 if run.double else torch.float32)
        self.losses: list[float] = []

    def configure_model(self) -> None:
        if self.wrapped:
            return
        self.wrapped = True
        strategy, given = self.run.strategy, self.run.given
        if strategy in ("tp", "fsdp+tp"):
            split(self.net, self.device_mesh["tensor_parallel"])
        if strategy in ("fsdp2", "fsdp+tp"):
            shard(self.net, self.device_mesh["data_parallel"], **given)
        elif strategy == "hsdp":
            shard(self.net, mesh_of(replicate=2, shard=self.trainer.world_size // 2), **given)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if x.is_floating_point():
            loss = cross_entropy(self.net(x.to(next(self.net.parameters()).dtype)), y)
        else:
            logits = self.net(input_ids=x[:, :-1]).logits
            loss = cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        if self.run.method in TORCH:
            return TORCH[self.run.method](self.parameters())
        return configure_optimizers(self, self.run.method, **{"lr": 0.02, **self.run.options})


class Share(Sampler):
    """The part of every batch that one rank sees."""

    def __init__(self, size: int, rank: int) -> None:
        self.own = BATCH // size
        self.rank = rank

    def __iter__(self) -> Iterator[int]:
        for start in range(0, SAMPLES, BATCH):
            first = start + self.rank * self.own
            yield from range(first, first + self.own)

    def __len__(self) -> int:
        return SAMPLES // BATCH * self.own


class SaveAt(pl.Callback):
    """Write a checkpoint after one step, on every rank."""

    def __init__(self, path: str, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def samples(model: str) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    if model in ("vit", "convolutions"):
        side = 16 if model == "vit" else 5
        images = torch.randn(SAMPLES, 3, side, side, generator=generator)
        return TensorDataset(images, torch.randint(5, (SAMPLES,), generator=generator))
    tokens = torch.randint(VOCABULARY, (SAMPLES, LENGTH), generator=generator)
    return TensorDataset(tokens, tokens)


def strategy_of(run: Run, size: int) -> Any:
    if run.strategy == "one":
        return "auto"
    environment = LightningEnvironment()
    if run.strategy == "ddp":
        return DDPStrategy(process_group_backend="gloo", cluster_environment=environment, **run.given)
    data, tensor = run.grid(size)
    strategy = ModelParallelStrategy(data, tensor, run.sharded, process_group_backend="gloo")
    strategy.cluster_environment = environment
    return strategy


def trainer_of(run: Run, size: int, folder: str, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    found = [CALLBACKS[name]() for name in run.callbacks] + list(callbacks)
    if run.save is not None:
        found.append(SaveAt(*run.save))
    options = {**QUIET, "devices": size, "max_epochs": 100, "max_steps": run.steps, "num_sanity_val_steps": 0}
    options |= {"default_root_dir": folder, "accumulate_grad_batches": run.parts, **run.trainer}
    return pl.Trainer(**options, strategy=strategy_of(run, size), callbacks=found, use_distributed_sampler=False)


class SharedLoader(Loader):
    """The batches of one rank, which go on inside an epoch after a checkpoint."""

    def __init__(self, dataset: TensorDataset, share: Share, parts: int) -> None:
        DataLoader.__init__(self, dataset, batch_size=share.own // parts, sampler=share)
        self.start = self.given = 0


def loader(run: Run, size: int, rank: int) -> SharedLoader:
    data, tensor = run.grid(size)
    return SharedLoader(samples(run.model), Share(data, rank // tensor), run.parts)


def fit(run: Run, callbacks: Sequence[pl.Callback] = ()) -> dict[str, np.ndarray]:
    """Train on the ranks that there are and return the weights, whole."""
    alone = run.strategy == "one"
    size = 1 if alone else torch.distributed.get_world_size()
    rank = 0 if alone else torch.distributed.get_rank()
    torch.manual_seed(1)
    module = Module(run)
    with TemporaryDirectory() as folder:  # for what monitors write
        trainer = trainer_of(run, size, folder, callbacks)
        trainer.fit(module, loader(run, size, rank), ckpt_path=run.load, weights_only=False if run.load else None)
    assert trainer.global_step == run.steps
    return {name: whole(one).double().numpy() for name, one in module.net.named_parameters()}


def fit_all(runs: Sequence[Run]) -> list[dict[str, np.ndarray]]:
    """Train one after another."""
    return [fit(run) for run in runs]


def far(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Return the largest difference of a weight, relative to the largest entry of its tensor."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, one in expected.items():
        difference = np.abs(found[name] - one).max()
        worst = max(worst, float(difference / max(np.abs(one).max(), 1e-30)))
    return worst
