"""A small LightningModule with everything a second pass could disturb, and Trainers that leave no files."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_gluon import Gluon, configure_optimizers

FLAT = {"noise_floor": 0.0, "orthogonalizer": "svd"}  # every gradient counts, however small


class Inner(pl.LightningModule):
    """A LightningModule inside another: it keeps a metric of its own and logs through the outer one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.mean = MeanMetric()

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.mean.update(y.detach())
        self.trainer.lightning_module.log("inner", y.detach().mean())
        return y


class Net(pl.LightningModule):
    """Dropout, batch norm, nested modules, metrics, logs of every kind, counters and lists."""

    def __init__(self, dropout: float = 0.3, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout))
        self.inner = Inner()
        self.last = nn.Linear(8, 3)
        self.metrics = MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)])
        self.seen, self.outputs = 0, []
        self.register_buffer("steps", torch.zeros(()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.last(self.inner(self.first(x)))
        loss = nn.functional.cross_entropy(logits, y)
        self.metrics(logits.softmax(-1), y)
        self.seen += len(x)
        self.outputs.append(loss.detach())
        self.steps += 1
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict(self.metrics, on_step=False, on_epoch=True)
        if self.logger is not None:
            self.logger.log_metrics({"direct": loss.item()}, step=self.seen)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.last(self.inner(self.first(batch[0]))), batch[1]))

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, **{"lr": 0.05, **self.options})


class Memory(pl.loggers.logger.Logger):
    """A logger that keeps what it is given."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """There is nothing to keep."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


def data(batches: int = 7, size: int = 4, seed: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batches * size, 4, generator=generator)
    return TensorDataset(x, torch.randint(3, (batches * size,), generator=generator))


class Loader(DataLoader):
    """A loader in fixed order that resumes inside an epoch: it saves how many batches it gave."""

    def __init__(self, dataset: TensorDataset, size: int = 4) -> None:
        super().__init__(dataset, batch_size=size)
        self.start = self.given = 0

    def __iter__(self) -> Iterator[Any]:
        start, self.start = self.start, 0
        self.given = start
        for index, batch in enumerate(super().__iter__()):
            if index >= start:
                self.given = index + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["given"]


QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "max_epochs": 1,
}


def trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(**{**QUIET, **options})


def fit(model: pl.LightningModule, *, loader: Any = None, ckpt_path: Path | None = None, **options: Any) -> pl.Trainer:
    runner = trainer(**options)
    runner.fit(model, Loader(data()) if loader is None else loader, ckpt_path=ckpt_path)
    return runner


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def gluon(runner: pl.Trainer) -> Gluon:
    return runner.optimizers[0]


def state(model: nn.Module, optimizer: Gluon) -> dict[str, Tensor]:
    """Every weight, buffer and optimizer buffer, by name."""
    found = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state[parameter].items():
                found[f"{key}.{name}"] = value.clone()
    return found


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names whose tensors are not equal bit for bit."""
    names = sorted(one.keys() | other.keys())
    return [n for n in names if n not in one or n not in other or not torch.equal(one[n], other[n])]


class Pairs(pl.Callback):
    """Keep both gradients as monitors see them: summed and unscaled, before clipping."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[str, Tensor, Tensor]]] = []

    def on_before_optimizer_step(self, runner: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        references = optimizer.reference_gradients
        if references:
            self.steps.append([
                (name, parameter.grad.clone(), references[parameter].clone())
                for name, parameter in module.named_parameters()
                if parameter.grad is not None
            ])  # fmt: skip

    def unequal(self) -> list[str]:
        return [name for step in self.steps for name, new, old in step if not torch.equal(new, old)]


class Bare(Net):
    """Without metrics, which do not follow half precision."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x = batch[0].to(self.last.weight.dtype)
        loss = nn.functional.cross_entropy(self.last(self.inner.linear(self.first(x))).float(), batch[1])
        self.log("loss", loss)
        return loss


class SaveAt(pl.Callback):
    """Save a checkpoint after one micro-batch."""

    def __init__(self, path: Path, epoch: int, batch: int) -> None:
        self.path, self.when = path, (epoch, batch)

    def on_train_batch_end(self, runner: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (runner.current_epoch, batch_idx) == self.when:
            runner.save_checkpoint(self.path)


class ByHand(Net):
    def configure_optimizers(self) -> Any:
        return Gluon(self, **{"lr": 0.05, **self.options})


class Recorder(pl.Callback):
    """Record what a replay needs: the streams and the batch before every micro-batch, the weights before every step."""

    def __init__(self) -> None:
        self.windows: list[list[tuple[Tensor, Any]]] = [[]]
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, runner: pl.Trainer, module: nn.Module, batch: Any, batch_idx: int) -> None:
        if not self.windows[-1]:
            self.weights.append({name: value.clone() for name, value in module.state_dict().items()})
        self.windows[-1].append((torch.get_rng_state(), batch))

    def on_train_batch_end(self, runner: pl.Trainer, *args: Any) -> None:
        if not runner.fit_loop._should_accumulate():
            self.windows.append([])


def gradient(
    model: nn.Module, weights: dict[str, Tensor], window: list, accumulate: int, clip: Any
) -> dict[str, Tensor]:
    """The gradient of a window at given weights, with plain autograd."""
    model.load_state_dict(weights)
    model.zero_grad()
    for rng, (x, y) in window:
        torch.set_rng_state(rng)
        loss = nn.functional.cross_entropy(model.last(model.inner.linear(model.first(x))), y)
        (loss / accumulate).backward()
    kind, value = clip
    if kind == "norm":
        nn.utils.clip_grad_norm_(model.parameters(), value)
    elif kind == "value":
        nn.utils.clip_grad_value_(model.parameters(), value)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


class Watch(pl.Callback):
    """Where the weights are, seen from hooks and from a forward hook of the module."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Tensor]] = []
        self.path: list[Tensor] = []

    def look(self, where: str, module: Any) -> None:
        self.seen.append((where, module.last.weight.detach().clone()))

    def on_fit_start(self, runner: pl.Trainer, module: Any) -> None:
        hook = lambda *_: self.look("training" if module.training else "validation", module)  # noqa: E731
        module.last.register_forward_pre_hook(hook)
        self.path = [module.last.weight.detach().clone()]

    def on_train_batch_start(self, runner: pl.Trainer, module: Any, *args: Any) -> None:
        self.look("outside", module)

    def on_after_backward(self, runner: pl.Trainer, module: Any) -> None:
        self.look("outside", module)

    def on_before_optimizer_step(self, runner: pl.Trainer, module: Any, *args: Any) -> None:
        self.look("outside", module)

    def on_save_checkpoint(self, runner: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self.seen.append(("checkpoint", checkpoint["state_dict"]["last.weight"].clone()))

    def on_train_batch_end(self, runner: pl.Trainer, module: Any, *args: Any) -> None:
        if not runner.fit_loop._should_accumulate():
            self.path.append(module.last.weight.detach().clone())
