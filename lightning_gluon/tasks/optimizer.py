"""Modules that leave their optimizer to a callback."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule

from lightning_gluon.callbacks.gluon_optimizer import GluonOptimizer

__all__ = ["OptimizerByCallback"]


class OptimizerByCallback(LightningModule):
    """A module whose optimizer is that of a `GluonOptimizer` among the callbacks of the Trainer.

    Lightning refuses a module without `configure_optimizers` before it calls `setup` of any callback. It asks the
    module for callbacks of its own earlier, and that is when the optimizer takes over here.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GluonOptimizer("gluon", lr=0.02)], accelerator="cpu", logger=False)
        >>> module = OptimizerByCallback()
        >>> module.trainer = trainer
        >>> module.configure_callbacks()
        []
    """

    def configure_callbacks(self) -> Sequence[Callback]:
        """Let the optimizer of the Trainer's callbacks take over; add no callback."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GluonOptimizer) and callback.active:
                callback.bind(self)
        return []
