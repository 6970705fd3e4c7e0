"""What callbacks with a `Probe` share: when a sample is due, when its passes are run, and that nothing is left."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor

from lightning_gluon.replay.probe import Probe, listen

__all__ = ["Probing", "loss_scale", "repeatable"]


class Probing(Callback):
    """Look at two neighbouring iterates every so many optimizer steps.

    A subclass sets `_trainer` and `_probe` at the start of training, calls `_listen`, and counts `steps`.

    Args:
        every_n_steps: Optimizer steps between two samples.

    Raises:
        ValueError: If `every_n_steps` is below 1 or not whole.
    """

    def __init__(self, every_n_steps: int) -> None:
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(
                f"Expected `every_n_steps` to be a whole number, every_n_steps >= 1, but got {every_n_steps!r}."
            )
        self.every_n_steps = every_n_steps
        self.steps = 0
        self._probe: Probe | None = None
        self._moving: set[Tensor] = set()  # frozen parameters that steps write to
        self._trainer: Any = None
        self._end: Callable[[], None] | None = None

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the Trainer as it was, and keep what a checkpoint of the finished run holds."""
        self._unlisten()

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Repeat the micro-batch at the last iterate, where a sample is due."""
        if self._probe is not None:
            self._probe.run()

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Begin a window."""
        if self._probe is not None:
            self._probe.begin()

    def _listen(self) -> None:
        self._end = listen(self._trainer.strategy, self._entry)

    def _entry(self, training_step: Callable, args: tuple, kwargs: dict) -> None:
        """Keep what the coming micro-batch needs to be repeated."""
        if self._probe is not None and self._due(self.steps):
            self._probe.arm(self._trainer, training_step, args, kwargs, self._moving)

    def _due(self, steps: int) -> bool:
        return (steps + 1) % self.every_n_steps == 0

    def _unlisten(self) -> None:
        if self._end is not None:
            self._end()
        self._end = None
        self._moving.clear()

    def _release(self) -> None:
        self._unlisten()
        self._probe = None


def repeatable(pl_module: Any) -> bool:
    """Return whether a training step can be run again: not under manual optimization, nor if it draws its own batch."""
    draws = "dataloader_iter" in inspect.signature(pl_module.training_step).parameters
    return pl_module.automatic_optimization and not draws


def loss_scale(trainer: Any) -> float:
    """Return the factor that gradients carry under fp16, else 1."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()
