"""A repair of Lightning's epoch counter after a resume from the last step of an epoch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["CountEpochs"]


class CountEpochs(Callback):
    """Count the epoch that Lightning forgets to count, so that checkpoints of a resumed run resume in the right epoch.

    Lightning (2.6.6) does not announce the epoch that follows a resume from a checkpoint taken at an epoch's last step.
    A checkpoint written by that run then looks like one of a finished epoch: resumed again, it repeats a whole epoch.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[CountEpochs()], accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Inside an epoch there is one more epoch begun than done."""
        progress: Any = trainer.fit_loop.epoch_progress
        if progress.current.ready == progress.current.processed:
            progress.increment_ready()
            progress.increment_started()
