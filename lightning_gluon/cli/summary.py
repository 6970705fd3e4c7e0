"""The end of a fit in a few lines: what it reached, what that cost, and where everything is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gluon.optimizer import Gluon
from lightning_gluon.replay.lightning import is_trial
from lightning_gluon.replay.optimizers import own_optimizers

__all__ = ["FILE", "FitSummary", "RunFacts"]

FILE = "summary.json"  # in the folder of a run

# Metrics that stand for a run without a checkpoint that watches one.
HELD_OUT = ("val", "valid", "validation")


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run at the end of `fit`; None where there is no such thing.

    Args:
        method: Row of the method table.
        lr: Learning rate, the last one of the hidden matrices.
        metric: Name of the metric.
        value: Its best value, or the last one.
        is_best: Whether it is the best one, of the checkpoints.
        steps: Optimizer steps.
        gradient_evaluations: Gradients.
        seconds: Of the whole fit, validation included.
        state_bytes: Bytes of the optimizer's persistent state.
        folder: Folder of the run.
        checkpoint: The best checkpoint.
    """

    method: str | None
    lr: float | str | None
    metric: str | None
    value: float | None
    is_best: bool
    steps: int
    gradient_evaluations: int | None
    seconds: float
    state_bytes: int | None
    folder: str | None
    checkpoint: str | None

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield the facts as people read them."""
        if self.value is not None:
            kind = "best" if self.is_best else "last"
            yield f"{self.metric} ({kind})", f"{self.value:.4g}"
        yield "optimizer steps", f"{self.steps:,}"
        if self.gradient_evaluations is not None:
            yield "gradient evaluations", f"{self.gradient_evaluations:,}"
        yield "seconds", f"{self.seconds:.1f}"
        if self.state_bytes is not None:
            yield "optimizer state", f"{self.state_bytes:,} bytes"
        if self.folder is not None:
            yield "files", self.folder
        if self.checkpoint is not None:
            yield "best checkpoint", self.checkpoint


class FitSummary(Callback):
    """A summary behind every `fit`, printed and written to `summary.json` in the folder of the run.

    Args:
        method: Row of the method table, None for an optimizer of the module's own.
        lr: Learning rate that was asked for.

    Example:
        >>> FitSummary("gluon", 0.02).method
        'gluon'
    """

    def __init__(self, method: str | None = None, lr: float | str | None = None) -> None:
        self.method = method
        self.lr = lr
        self.start = 0.0
        self._facts: RunFacts | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the facts, and write them where the logger writes."""
        folder = trainer.log_dir if trainer.loggers else None  # asked for on all ranks, which agree on it
        if is_trial(trainer) or not trainer.is_global_zero:
            return
        self._facts = self.facts(trainer, folder)
        if folder is not None and Path(folder).is_dir():
            text = json.dumps(asdict(self._facts), indent=2)
            Path(folder, FILE).write_text(text + "\n", encoding="utf-8")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the summary, below the progress bar."""
        if self._facts is None:
            return
        lines = dict(self._facts.lines())
        width = max(map(len, lines))
        for name, value in lines.items():
            print(f"{name:{width}}  {value}")
        self._facts = None

    def facts(self, trainer: Trainer, folder: str | None) -> RunFacts:
        """Return the facts.

        Args:
            trainer: The Trainer, at the end of `fit`.
            folder: Folder of the run.

        Returns:
            The facts.
        """
        saver = _watching(trainer)
        name, value = _last_metric(trainer)
        checkpoint = None
        if saver is not None and saver.best_model_score is not None:
            name, value = saver.monitor, float(saver.best_model_score)
            checkpoint = saver.best_model_path
        optimizers = list(own_optimizers(trainer))
        return RunFacts(
            method=self.method,
            lr=self.lr,
            metric=name,
            value=value,
            is_best=checkpoint is not None,
            steps=trainer.global_step,
            gradient_evaluations=_evaluations(optimizers),
            seconds=time.perf_counter() - self.start,
            state_bytes=_state_bytes(optimizers),
            folder=folder,
            checkpoint=checkpoint or None,
        )


def _watching(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that keeps the best checkpoint by a metric."""
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, ModelCheckpoint) and saver.monitor:
            return saver
    return None


def _last_metric(trainer: Trainer) -> tuple[str | None, float | None]:
    """Return the first metric of the held-out data."""
    metrics: dict[str, Any] = dict(trainer.callback_metrics)
    for name, value in metrics.items():
        if name.replace("/", "_").partition("_")[0] in HELD_OUT:
            return name, float(value)
    return None, None


def _evaluations(optimizers: list[Gluon]) -> int | None:
    counts = [optimizer.gradient_evaluations for optimizer in optimizers]
    return max(counts, default=None)


def _state_bytes(optimizers: list[Gluon]) -> int | None:
    if not optimizers:
        return None
    return sum(optimizer.memory()["state_bytes"] for optimizer in optimizers)
