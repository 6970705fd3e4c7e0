"""The only file that touches private parts of Lightning; it imports none of it, and works with either package name.

`PRIVATE` lists each of them with its use. A test asks the installed version for every one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

TRIED = "2.6.6"  # the newest version of Lightning that has all of them


@dataclass(frozen=True)
class Private:
    """One private part of Lightning: an attribute path that begins at an object everybody knows."""

    path: str
    use: str


PRIVATE = (
    Private("trainer.fit_loop._skip_backward", "an epoch that only renews batch-norm statistics has no backward pass"),
    Private("trainer.fit_loop._should_accumulate", "whether a checkpoint is taken inside an accumulation window"),
    Private("trainer.fit_loop._combined_loader", "a resumed run keeps its place in the data"),
    Private("trainer.fit_loop.epoch_loop._batches_that_stepped", "the x-axis of what Lightning itself logs"),
    Private("trainer._logger_connector.should_update_logs", "whether Lightning logs at this step"),
    Private("trainer._checkpoint_connector._loaded_checkpoint", "the state of a callback that is attached late"),
    Private("module._fabric", "a LightningModule under Fabric, whose `trainer` is a stand-in"),
    Private("strategy._ddp_kwargs", "a process group of one's own under DDP"),
    Private("callback._generate_state_key", "the key of a callback's state in checkpoints"),
    Private("precision._wrap_closure", "telling Lightning's closure from others, by name, in `two_point.closures`"),
    Private(
        "optimizer.do_nothing_closure", "telling `step()` in manual optimization, by name, in `two_point.closures`"
    ),
)


# ---------------------------------------------------------------- the loops


def skips_backward(trainer: Trainer) -> bool:
    """Return whether this epoch runs no backward pass: it only renews batch-norm statistics."""
    return trainer.fit_loop._skip_backward


def inside_window(trainer: Trainer) -> bool:
    """Return whether gradients of an accumulation window wait for its next micro-batch."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    failed = progress.ready != progress.processed  # an exception: that micro-batch will be run again
    return not failed and trainer.fit_loop._should_accumulate()


def stepping_batches(trainer: Trainer) -> int | None:
    """Return the optimizer steps of the whole fit, without costing a resumed run its place in the data.

    If nobody knows them, Lightning says infinite, or -1 for loaders without a length; here it is `None`. To answer,
    Lightning sets its loaders up before it has read where in the epoch the checkpoint was, and drops that state.
    Forgetting the loaders lets it set them up again at the right time.

    Args:
        trainer: The Trainer.

    Returns:
        The number of steps, or `None`.
    """
    length = trainer.estimated_stepping_batches
    if getattr(trainer, "ckpt_path", None) is not None:
        trainer.fit_loop._combined_loader = None
    return int(length) if 0 <= length < math.inf else None


# ---------------------------------------------------------------- modules and callbacks


def trainer_of(module: nn.Module) -> Any:
    """Return the Trainer that a LightningModule is attached to; `None` without one, and under Fabric."""
    if getattr(module, "_fabric", None) is not None:
        return None
    try:
        return module.trainer
    except (AttributeError, RuntimeError):  # a plain module; a LightningModule without a Trainer
        return None


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of a Trainer."""
    return trainer.callbacks  # type: ignore[attr-defined]


def add_missing(trainer: Trainer, kind: type[Callback]) -> None:
    """Add a callback of a kind, behind all others, to a Trainer that has none."""
    present = callbacks_of(trainer)
    if not any(isinstance(callback, kind) for callback in present):
        set_callbacks(trainer, [*present, kind()])


def set_callbacks(trainer: Trainer, callbacks: list[Callback]) -> None:
    """Give a Trainer a new list of callbacks: it may be walking along the old one."""
    trainer.callbacks = callbacks  # type: ignore[attr-defined]


def place_before(trainer: Trainer, callback: Callback, kind: type[Callback]) -> None:
    """Add a callback to a Trainer before those of a kind, or move it there.

    Args:
        trainer: The Trainer.
        callback: The callback.
        kind: Class of the callbacks that are to see what it has done.
    """
    present = callbacks_of(trainer)
    others = [other for other in present if other is not callback]
    places = [index for index, other in enumerate(others) if isinstance(other, kind)]
    if places:
        others.insert(places[0], callback)
        set_callbacks(trainer, others)
    elif callback not in present:
        set_callbacks(trainer, [*others, callback])


def state_key(callback: Callback, **options: object) -> str:
    """Return the key of a callback's state in checkpoints, different for different options."""
    return callback._generate_state_key(**options)


def late_state(trainer: Trainer, callback: Callback) -> Mapping[str, Any] | None:
    """Return the saved state of a callback that was attached after states were restored; `None` if there is none."""
    loaded = getattr(trainer._checkpoint_connector, "_loaded_checkpoint", None) or {}
    return loaded.get("callbacks", {}).get(callback.state_key)


# ---------------------------------------------------------------- precision and strategy


def replicas_of(trainer: Trainer) -> Any:
    """Return the process group of the ranks that hold the same weights and gradients under DDP, else `None`."""
    kinds = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    if trainer.world_size == 1 or "DDPStrategy" not in kinds or not dist.is_initialized():
        return None
    given: Any = trainer.strategy
    return given._ddp_kwargs.get("process_group") or dist.group.WORLD


def scaler_of(trainer: Trainer) -> Any:
    """Return the loss scaler under fp16, else `None`."""
    return getattr(trainer.precision_plugin, "scaler", None)


def loss_scale(trainer: Trainer) -> float:
    """Return the factor that gradients carry under fp16, else 1."""
    scaler = scaler_of(trainer)
    return 1.0 if scaler is None else scaler.get_scale()


def has_own_clipping(module: LightningModule) -> bool:
    """Return whether a module overrides `configure_gradient_clipping`."""
    home = type(module).configure_gradient_clipping.__module__
    return not home.startswith(("lightning.", "pytorch_lightning."))


# ---------------------------------------------------------------- logging


def is_trial(trainer: Trainer) -> bool:
    """Return whether this is a `fast_dev_run`, which leaves no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def check_log(trainer: Trainer, log: bool | None, name: str) -> bool:
    """Return whether to log: `None` means if there is a logger.

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


def should_log(trainer: Trainer) -> bool:
    """Return whether Lightning logs at this step (every `log_every_n_steps`)."""
    return bool(is_trial(trainer) or trainer._logger_connector.should_update_logs)


def log_values(trainer: Trainer, values: Mapping[str, float]) -> None:
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
