"""A second pass through a module that leaves no trace in its buffers, attributes, metric states and logs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

__all__ = ["Buffers", "untouched"]

OWN = frozenset(nn.Module().__dict__)  # what every module has: parameters, buffers and submodules are handled apart
CONTAINERS = (list, dict, set, deque)


class Buffers:
    """The buffers of a module (batch-norm statistics, counters) as they are now, to be put back later.

    Args:
        root: The module; its submodules belong to it.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> before = Buffers(norm)
        >>> _ = norm(torch.randn(4, 2))
        >>> before.restore_()
        >>> norm.num_batches_tracked.item()
        0
    """

    def __init__(self, root: nn.Module) -> None:
        self._saved = [
            (module._buffers, name, buffer, buffer.detach().clone())
            for module in root.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @torch.no_grad()
    def restore_(self) -> None:
        """Put back every buffer, the objects and their values."""
        for owner, name, buffer, value in self._saved:
            owner[name] = buffer
            _write_(buffer, value)


@contextmanager
def untouched(trainer: Any, root: nn.Module) -> Iterator[None]:
    """Silence logging, and on leaving put back every attribute and every metric state of a module and its submodules.

    Attributes come back by name, the contents of lists, dicts, sets and deques one level deep, metric states by value.
    What a module changes elsewhere - in objects that are not modules, in files, on the network - is not seen.

    Args:
        trainer: The Trainer, whose loggers are exchanged for silent ones.
        root: The LightningModule.

    Yields:
        Nothing; run the pass inside.
    """
    saved = [_Attributes(module) for module in root.modules()]
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        for module in root.modules():
            if callable(getattr(module, "log_dict", None)) and hasattr(module, "training_step"):
                module.__dict__.update(log=_silent, log_dict=_silent, print=_silent)
        yield
    finally:
        trainer.loggers = loggers
        for attributes in saved:
            attributes.restore_()


class _Attributes:
    """The plain attributes of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.saved = dict(module.__dict__)
        self.contents = [
            (value, dict(value) if isinstance(value, dict) else list(value))
            for name, value in self.saved.items()
            if name not in OWN and isinstance(value, CONTAINERS)
        ]
        states = self.saved.get("_defaults", ()) if hasattr(module, "add_state") else ()  # a torchmetrics metric
        self.states = [
            (self.saved[name], self.saved[name].detach().clone())
            for name in states
            if isinstance(self.saved.get(name), Tensor)
        ]

    @torch.no_grad()
    def restore_(self) -> None:
        present = self.module.__dict__
        for name in present.keys() - self.saved.keys():
            del present[name]
        present.update(self.saved)
        for value, content in self.contents:
            _refill_(value, content)
        for state, value in self.states:
            _write_(state, value)


def _write_(target: Tensor, value: Tensor) -> None:
    """Copy, whatever the version counter says: batch norm writes without a trace in `_version`."""
    expanded = any(stride == 0 and size > 1 for stride, size in zip(target.stride(), target.shape, strict=True))
    if not expanded:  # one entry seen many times cannot have been written to
        target.copy_(value)


def _refill_(value: Any, content: Any) -> None:
    """Put the same objects back into a container, if they are not there already."""
    if isinstance(value, dict):
        if value.keys() != content.keys() or any(value[key] is not item for key, item in content.items()):
            value.clear()
            value.update(content)
    elif isinstance(value, set):
        value.intersection_update(content)
        value.update(content)
    elif len(value) != len(content) or any(one is not other for one, other in zip(value, content, strict=True)):
        value.clear()
        value.extend(content)


def _silent(*args: Any, **kwargs: Any) -> None:
    """Stand in for `log` and `print`."""
