"""A progress bar that counts to the last batch there will be."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

__all__ = ["StepProgressBar", "batches_ahead"]


class StepProgressBar(RichProgressBar):
    """Lightning's bar, whose last epoch ends where `max_steps` ends it.

    Lightning (2.6.6) counts to the end of the epoch, unless the number of epochs is unlimited, and takes a batch for a
    step under `accumulate_grad_batches`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
        >>> trainer = Trainer(callbacks=[StepProgressBar()], **quiet)
        >>> trainer.progress_bar_callback.is_enabled
        True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._total: float | None = None

    @property
    def total_train_batches(self) -> int | float:
        """Batches of this epoch, as they were when it began."""
        if self._total is None:
            return super().total_train_batches
        return self._total

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches once: later the steps are some batches further."""
        self._total = None
        if trainer.max_steps > 0 and pl_module.automatic_optimization:
            self._total = batches_ahead(trainer)
        super().on_train_epoch_start(trainer, pl_module)


def batches_ahead(trainer: Trainer) -> int | float:
    """Return how many batches an epoch has before `max_steps` ends the training.

    Args:
        trainer: The Trainer, where an epoch begins or goes on after a resume.

    Returns:
        Batches of the epoch, those done before a resume included.
    """
    loop = trainer.fit_loop.epoch_loop
    done = loop.batch_progress.current.completed if loop.restarting else 0  # else they are those of the last epoch
    steps = trainer.max_steps - trainer.global_step
    window = trainer.accumulate_grad_batches
    return min(trainer.num_training_batches, done - done % window + steps * window)
