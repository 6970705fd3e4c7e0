"""Callbacks of the tasks: sample answers while training, answers of `predict` in a file, the best model exported."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_gluon.tasks.export import new_folder
from lightning_gluon.valid import one_of, whole

__all__ = ["ExportBest", "SampleAnswers", "WriteAnswers"]


class SampleAnswers(Callback):
    """Log answers to the first held-out prompts after every validation.

        x_t = argmax_x p(x | x_<t)    unless the module's `generation` samples

    They go to `answers.jsonl` in the folder of the logger, and as text to TensorBoard or W&B. Random streams stay as
    they are, so that a run with it is the run without it.

    Shapes: text.

    Args:
        count: Number of prompts.

    Raises:
        ValueError: If the count is not positive.

    References:
        `generate` of transformers.

    Example:
        >>> SampleAnswers(count=2).count
        2
    """

    def __init__(self, count: int = 4) -> None:
        whole(1)("count", count)
        self.count = count

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer, and write the answers down.

        Args:
            trainer: The Trainer.
            pl_module: A module that answers in `predict_step`.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if trainer.sanity_checking or not hasattr(data, "prompts"):
            return
        batch = data.prompts(self.count)
        with torch.random.fork_rng():
            answers = pl_module.predict_step(batch, 0)
        if not trainer.is_global_zero:
            return
        table = [{"step": trainer.global_step, **row} for row in answer_rows(batch, answers)]
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        append_lines(folder / "answers.jsonl", table)
        for logger in trainer.loggers:
            _log_text(logger, table, trainer.global_step)


def _log_text(logger: Any, table: Sequence[dict[str, Any]], step: int) -> None:
    """Log rows to a logger that takes text."""
    if hasattr(logger, "log_text"):  # W&B
        columns = list(table[0])
        values = [list(row.values()) for row in table]
        logger.log_text("answers", columns=columns, data=values, step=step)
    elif hasattr(logger.experiment, "add_text"):  # TensorBoard
        texts = []
        for row in table:
            texts += [row["prompt"], row["answer"]]
        logger.experiment.add_text("answers", "\n\n".join(texts), step)


def answer_rows(batch: Mapping[str, Sequence[str]], answers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the `answers` to a `batch` as rows of a table."""
    for place, answer in enumerate(answers):
        yield {
            "prompt": batch["prompts"][place],
            "answer": answer,
            "reference": batch["references"][place],
        }


def append_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append `rows` to a `file` of JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


class WriteAnswers(BasePredictionWriter):
    """Write the answers of `predict` to a file of JSON lines, with their prompts and the right answers.

    Args:
        path: The file. On several ranks each has its own, with its number before the ending.

    Example:
        >>> str(WriteAnswers("runs/answers.jsonl").path)
        'runs/answers.jsonl'
    """

    def __init__(self, path: str = "answers.jsonl") -> None:
        super().__init__(write_interval="batch")
        self.path = Path(path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove what an earlier run wrote.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            stage: Only `predict` writes.
        """
        if trainer.world_size > 1:
            self.path = self.path.with_suffix(f".{trainer.global_rank}{self.path.suffix}")
        if stage == "predict":
            self.path.unlink(missing_ok=True)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the answers of a batch."""
        rows = answer_rows(batch, prediction)
        append_lines(self.path, rows)


class ExportBest(Callback):
    """Keep the best model so far as a folder that transformers or timm loads.

        best <- min(best, m)    with the metric m, or max by `mode`; exported if that changes it

    Shapes: plain numbers.

    Args:
        folder: The folder; it is replaced as a whole.
        monitor: Metric to go by.
        mode: `min` or `max`.
        merge: Whether adapters become part of the weights.

    Raises:
        ValueError: If the mode is unknown.

    References:
        Lightning's `ModelCheckpoint`, which keeps checkpoints in the same way.

    Example:
        >>> ExportBest("runs/best", monitor="val/token_accuracy", mode="max").better(0.6, 0.5)
        True
    """

    def __init__(
        self, folder: str, monitor: str = "val/loss", mode: Literal["min", "max"] = "min", merge: bool = False
    ) -> None:
        self.folder = folder
        self.monitor = monitor
        self.merge = merge
        one_of("min", "max")("mode", mode)
        self.sign = {"min": 1, "max": -1}[mode]
        self.best: float | None = None

    def better(self, value: float, best: float | None) -> bool:
        """Tell whether a value is better than the best so far.

        Args:
            value: Of the metric.
            best: The best so far; None if there is none.

        Returns:
            True if it is; a value that is no number never is.
        """
        if math.isnan(value):
            return False
        return best is None or self.sign * value < self.sign * best

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Export the model if it is the best.

        Args:
            trainer: The Trainer.
            pl_module: A module with `export`.

        Raises:
            ValueError: If the metric was not logged.
        """
        if trainer.sanity_checking or getattr(trainer, "fast_dev_run", False):
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"Expected `monitor` to be logged, but got {self.monitor!r}: {[*trainer.callback_metrics]}."
            )
        value = float(trainer.callback_metrics[self.monitor])
        if not self.better(value, self.best):
            return
        self.best = value
        if trainer.is_global_zero:
            with new_folder(self.folder, replace=True) as part:
                pl_module.export(part, groups=trainer.optimizers[0].param_groups, merge=self.merge)

    def state_dict(self) -> dict[str, float | None]:
        """Return the best value."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Go on from the best value."""
        self.best = state["best"]
