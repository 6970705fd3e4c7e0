"""Values that a callback measures between two logging steps, sent to every logger of the Trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["check_log", "log_values", "should_log"]


def check_log(trainer: Any, log: bool | None, name: str) -> bool:
    """Return whether to log: `None` means wherever there is a logger.

    Args:
        trainer: The Trainer.
        log: The callback's own argument.
        name: Name of the callback, for the error.

    Returns:
        Whether to log.

    Raises:
        ValueError: If logging is asked for and there is no logger.
    """
    if log and not trainer.loggers:
        raise ValueError(
            f"`{name}(log=True)` needs a logger, but the Trainer has none. Give it one, such as "
            "`Trainer(logger=CSVLogger('runs'))`, or leave `log` out."
        )
    return bool(trainer.loggers) if log is None else log


def should_log(trainer: Any) -> bool:
    """Return whether Lightning logs at this step (every `log_every_n_steps`)."""
    return bool(trainer.fast_dev_run or trainer._logger_connector.should_update_logs)


def log_values(trainer: Any, values: Mapping[str, float]) -> None:
    """Send finite values to every logger, against the optimizer step, and to `trainer.callback_metrics`.

    Args:
        trainer: The Trainer.
        values: Values by key.
    """
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        logger.log_metrics(finite, step=step)
    tensors = torch.tensor(list(finite.values()), device=trainer.strategy.root_device)  # what other callbacks expect
    trainer.callback_metrics.update(zip(finite, tensors, strict=True))
