"""A note of whether a run has begun: before, an error is one line; afterwards nothing of it may be lost."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["FirstBatch"]


class FirstBatch(Callback):
    """A callback that knows whether a batch has reached the model.

    Attributes:
        seen: Whether one has.

    Example:
        >>> first = FirstBatch()
        >>> trainer = Trainer(callbacks=[first], accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> first.seen
        False
    """

    def __init__(self) -> None:
        self.seen = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Note the first batch of a training."""
        self.seen = True

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the first batch of a validation, a test or a prediction."""
        self.seen = True

    on_test_batch_start = on_validation_batch_start
    on_predict_batch_start = on_validation_batch_start
