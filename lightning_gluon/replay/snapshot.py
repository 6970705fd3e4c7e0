"""A second pass through a module that leaves no trace in its buffers, attributes, metric states, streams and logs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from lightning_gluon.two_point.streams import own_stream, rng_state, set_rng_state

__all__ = ["Buffers", "Moment", "untouched"]

OWN = frozenset(nn.Module().__dict__)  # what every module has: parameters, buffers and submodules are handled apart
CONTAINERS = (list, dict, set, deque)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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
            (module._buffers, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in root.modules()
            for name, buffer in module._buffers.items()
        ]

    @torch.no_grad()
    def restore_(self) -> None:
        """Put back every buffer, the objects and their values."""
        for owner, name, buffer, value in self._saved:
            owner[name] = buffer
            if buffer is not None and value is not None:
                _write_(buffer, value)


class Moment:
    """All that a pass through a module may change, as it is now, to come back to: with it a pass can be repeated.

    That is buffers, attributes, what containers among them hold, tensors among them or in their dicts, metric states,
    and random streams, global ones and the module's own. Frozen parameters may be written to as well, by a step that
    moves its own teacher. To copy all of them would cost a frozen model's memory, so each is only added up until it is
    first seen to have changed.

    Args:
        root: The module; its submodules belong to it.
        moving: Frozen parameters known to be written to, which is added to; `None` leaves them all out.
    """

    def __init__(self, root: nn.Module, moving: set[Tensor] | None = None) -> None:
        self.moving = moving
        self._rng = rng_state()
        self._buffers = Buffers(root)
        self._attributes = [(module.__dict__, dict(module.__dict__)) for module in root.modules()]
        self._contents = list(_contents(value for _, saved in self._attributes for value in _own(saved)))
        frozen = [] if moving is None else [p for p in root.parameters() if _frozen(p)]
        self._copies = [(parameter, parameter.detach().clone()) for parameter in frozen if parameter in (moving or ())]
        self._resting = [parameter for parameter in frozen if parameter not in (moving or ())]
        self._sums = _sums(self._resting)

    def notice(self) -> None:
        """Add the frozen parameters that have changed since to those known to be written to."""
        if self.moving is not None and self._resting:
            changed = _sums(self._resting) != self._sums
            self.moving.update(p for p, moved in zip(self._resting, changed.tolist(), strict=True) if moved)

    @torch.no_grad()
    def restore_(self) -> None:
        """Go back."""
        set_rng_state(self._rng)
        self._buffers.restore_()
        for present, saved in self._attributes:
            for name in present.keys() - saved.keys():
                del present[name]
            present.update(saved)
        for put_back in self._contents:
            put_back()
        for parameter, value in self._copies:
            parameter.copy_(value)


@contextmanager
def untouched(trainer: Any, root: nn.Module, start: Moment | None = None) -> Iterator[None]:
    """Silence logging, and on leaving put back all that a pass may have changed in a module and its submodules.

    What a module changes elsewhere - in objects that are not modules, in files, on the network - is not seen.

    Args:
        trainer: The Trainer, whose loggers are exchanged for silent ones.
        root: The LightningModule.
        start: Where the pass inside starts from: the module as it was before the pass that is repeated.

    Yields:
        Nothing; run the pass inside.
    """
    if start is not None:
        start.notice()
    now = Moment(root, start.moving if start is not None else None)
    loggers = trainer.loggers
    try:
        if start is not None:
            start.restore_()
        trainer.loggers = [_Mute(logger) for logger in loggers]
        for module in root.modules():
            if callable(getattr(module, "log_dict", None)) and hasattr(module, "training_step"):
                module.__dict__.update(log=_silent, log_dict=_silent, print=_silent)
        yield
    finally:
        trainer.loggers = loggers
        now.restore_()


class _Mute(DummyLogger):
    """A logger that logs nothing, but passes for the real one and knows where that would."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    __class__ = property(lambda self: type(self._logger))
    name = property(lambda self: self._logger.name)
    version = property(lambda self: self._logger.version)
    save_dir = property(lambda self: self._logger.save_dir)
    log_dir = property(lambda self: getattr(self._logger, "log_dir", None))
    root_dir = property(lambda self: getattr(self._logger, "root_dir", None))


def _own(attributes: dict[str, Any]) -> Iterator[Any]:
    return (value for name, value in attributes.items() if name not in OWN)


def _contents(values: Iterable[Any]) -> Iterator[Callable[[], None]]:
    """Walk through attributes and containers; yield what puts back each thing that can be changed in place."""
    stack, seen = [(value, True) for value in values], set()
    while stack:
        value, cloned = stack.pop()
        if isinstance(value, CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            mapping = isinstance(value, dict)
            content = dict(value) if mapping else list(value)
            yield partial(_refill_, value, content)
            inner = content.values() if isinstance(content, dict) else content
            # Tensors in lists are mostly a log that grows: to copy them all at every step would cost more and more.
            stack.extend((item, mapping) for item in inner if not isinstance(item, (bool, int, float, str)))
        elif type(value) is Tensor:
            if cloned and not value.requires_grad and value.layout is torch.strided:
                yield partial(_write_, value, value.detach().clone())
        elif (wind_back := own_stream(value)) is not None:
            yield wind_back


def _frozen(parameter: Tensor) -> bool:
    return type(parameter) is nn.Parameter and not parameter.requires_grad and parameter.element_size() in BITS


def _sums(parameters: Sequence[Tensor]) -> Tensor:
    """Return a number per parameter that changes with any of its bits."""
    sums = [parameter.detach().view(BITS[parameter.element_size()]).sum() for parameter in parameters]
    return torch.stack([each.to(sums[0].device) for each in sums]) if sums else torch.empty(0)


def _write_(target: Tensor, value: Tensor) -> None:
    """Copy, whatever the version counter says: batch norm writes without a trace in `_version`."""
    expanded = any(stride == 0 and size > 1 for stride, size in zip(target.stride(), target.shape, strict=True))
    # One entry seen many times cannot have been written to, and a tensor left over by a validation cannot here.
    if not expanded and not target.is_inference():
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
