"""A second pass through a module that leaves no trace in its buffers, attributes, metric states, streams and logs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from torch import Tensor, nn

from lightning_gluon.two_point.signals import held
from lightning_gluon.two_point.streams import own_stream, rng_state, set_rng_state

PutBack: TypeAlias = Callable[[], Any]

OWN = frozenset(nn.Module().__dict__)  # what every module has: parameters, buffers and submodules are handled apart
CONTAINERS = (list, dict, set, deque)
PLAIN_TYPES = (bool, int, float, str)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class ModuleBuffers:
    """The buffers of a module (batch-norm statistics, counters) as they are now, to be put back later.

    Args:
        root: The module; its submodules belong to it.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> before = ModuleBuffers(norm)
        >>> _ = norm(torch.randn(4, 2))
        >>> before.restore_()
        >>> norm.num_batches_tracked.item()
        0
    """

    def __init__(self, root: nn.Module) -> None:
        self._objects = _copied(module._buffers for module in root.modules())
        self._values: dict[Tensor, Tensor] = {}
        for _, saved in self._objects:
            for buffer in saved.values():
                if buffer is not None:
                    self._values[buffer] = buffer.detach().clone()

    @torch.no_grad()
    def restore_(self) -> None:
        """Put back every buffer, the objects and their values."""
        for present, saved in self._objects:
            present.update(saved)
        for buffer, value in self._values.items():
            _write_(buffer, value)


class Frozen:
    """Frozen parameters, which a step may write to, by moving its own teacher.

    To copy all of them would cost a frozen model's memory, so each is only added up until it is first seen to have
    changed.

    Args:
        root: The module.
        moving: Those known to be written to, which is added to.
    """

    def __init__(self, root: nn.Module, moving: set[Tensor]) -> None:
        self.moving = moving
        self._copies: dict[Tensor, Tensor] = {}
        self._resting: list[Tensor] = []
        for parameter in filter(_is_frozen, root.parameters()):
            if parameter in moving:
                self._copies[parameter] = parameter.detach().clone()
            else:
                self._resting.append(parameter)
        self._sums = _sums(self._resting)

    def notice(self) -> None:
        """Add those that have changed since to those known to be written to."""
        if not self._resting:
            return
        changed = _sums(self._resting) != self._sums
        for parameter, moved in zip(self._resting, changed.tolist(), strict=True):
            if moved:
                self.moving.add(parameter)

    def restore_(self) -> None:
        """Copy them back."""
        for parameter, value in self._copies.items():
            parameter.copy_(value)


class Moment:
    """State that a pass through a module may change, as it is now, to come back to: with it a pass can be repeated.

    That is buffers, attributes, what containers among them hold, tensors among them or in their dicts, metric states,
    frozen parameters, and random streams, global ones and the module's own.

    Args:
        root: The module; its submodules belong to it.
        moving: Frozen parameters known to be written to, which is added to; `None` leaves them all out.
    """

    def __init__(self, root: nn.Module, moving: set[Tensor] | None = None) -> None:
        self._rng = rng_state()
        self._buffers = ModuleBuffers(root)
        self._attributes = _copied(map(vars, root.modules()))
        self._contents = list(_contents(self._values()))
        self.frozen = None if moving is None else Frozen(root, moving)

    def _values(self) -> Iterator[Any]:
        for _, saved in self._attributes:
            for name, value in saved.items():
                if name not in OWN:
                    yield value

    @property
    def moving(self) -> set[Tensor] | None:
        """Frozen parameters known to be written to."""
        if self.frozen is None:
            return None
        return self.frozen.moving

    def notice(self) -> None:
        """Add the frozen parameters that have changed since to those known to be written to."""
        if self.frozen is not None:
            self.frozen.notice()

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
        if self.frozen is not None:
            self.frozen.restore_()


@contextmanager
def untouched(trainer: Trainer, root: nn.Module, start: Moment | None = None) -> Iterator[None]:
    """Silence logging, and on leaving put back all that a pass may have changed in a module and its submodules.

    What a module changes elsewhere - in objects that are not modules, in files, on the network - is not seen.

    Args:
        trainer: The Trainer, whose loggers are exchanged for silent ones.
        root: The LightningModule.
        start: The module as it was before the pass that is repeated, which the pass inside starts from.

    Yields:
        Nothing; run the pass inside.
    """
    if start is not None:
        start.notice()
    now = Moment(root, None if start is None else start.moving)
    loggers = trainer.loggers
    try:
        if start is not None:
            start.restore_()
        trainer.loggers = [_Mute(logger) for logger in loggers]
        for module in root.modules():
            if _logs(module):
                module.__dict__.update(log=_silent, log_dict=_silent, print=_silent)
        yield
    finally:
        with held():  # Ctrl-C waits: half of it would leave a teacher's weights torn
            trainer.loggers = loggers
            now.restore_()


def _logs(module: nn.Module) -> bool:
    """Return whether this is a LightningModule, of either package."""
    log = getattr(module, "log_dict", None)
    return callable(log) and hasattr(module, "training_step")


def _of_the_real_one(name: str) -> property:
    return property(lambda mute: getattr(mute._logger, name, None))


class _Mute(DummyLogger):
    """A logger that logs nothing, but passes for the real one and knows its folder."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    __class__ = property(lambda mute: type(mute._logger))
    name = _of_the_real_one("name")
    version = _of_the_real_one("version")
    save_dir = _of_the_real_one("save_dir")
    log_dir = _of_the_real_one("log_dir")
    root_dir = _of_the_real_one("root_dir")


@dataclass(frozen=True)
class _Stop:
    """A value on the walk through attributes, and whether its tensors are copied."""

    value: Any
    copied: bool = True


def _contents(values: Iterable[object]) -> Iterator[PutBack]:
    """Walk through attributes and containers; yield what puts back each thing that can be changed in place."""
    stack = [_Stop(value) for value in values]
    seen: set[int] = set()
    while stack:
        place = stack.pop()
        value, put_back = place.value, None
        if not isinstance(value, CONTAINERS):
            put_back = _put_back(place)
        elif id(value) not in seen:
            seen.add(id(value))
            put_back = _refill(value)
            stack.extend(_contained(value))
        if put_back is not None:
            yield put_back


def _put_back(place: _Stop) -> PutBack | None:
    """Return a function that puts back a tensor or a random stream; `None` for anything else."""
    value = place.value
    if type(value) is not Tensor:
        return own_stream(value)
    if not (place.copied and _is_state(value)):
        return None
    copy = value.detach().clone()
    return partial(_write_, value, copy)


def _contained(container: Any) -> Iterator[_Stop]:
    """Yield the content of a container, numbers and texts apart.

    Tensors in lists are mostly a log that grows: to copy them all at every step would cost more and more.
    """
    mapping = isinstance(container, dict)
    values = container.values() if mapping else container
    for value in values:
        if not isinstance(value, PLAIN_TYPES):
            yield _Stop(value, copied=mapping)


def _copied(mappings: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return mappings with a copy of each."""
    return [(present, dict(present)) for present in mappings]


def _is_state(tensor: Tensor) -> bool:
    return not tensor.requires_grad and tensor.layout is torch.strided


def _is_frozen(parameter: Tensor) -> bool:
    if type(parameter) is not nn.Parameter or parameter.requires_grad:
        return False
    return parameter.element_size() in BITS


def _sums(parameters: Sequence[Tensor]) -> Tensor:
    """Return a number per parameter that changes with any of its bits."""
    if not parameters:
        return torch.empty(0)
    sums = []
    for parameter in parameters:
        dtype = BITS[parameter.element_size()]
        total = parameter.detach().view(dtype).sum()
        sums.append(total.to(parameters[0].device))
    return torch.stack(sums)


def _write_(target: Tensor, value: Tensor) -> None:
    """Copy, whatever the version counter says: batch norm writes without a trace in `_version`."""
    # One entry seen many times cannot have been written to, and a tensor left over by a validation cannot here.
    if not (_is_expanded(target) or target.is_inference()):
        target.copy_(value)


def _is_expanded(tensor: Tensor) -> bool:
    axes = zip(tensor.stride(), tensor.shape, strict=True)
    repeated = [size for stride, size in axes if stride == 0]
    return max(repeated, default=1) > 1


def _refill(container: Any) -> PutBack:
    """Return a function that puts the same objects back into a container."""
    if isinstance(container, dict):
        return partial(_refill_dict_, container, dict(container))
    if isinstance(container, set):
        return partial(_refill_set_, container, set(container))
    return partial(_refill_list_, container, list(container))


def _refill_dict_(container: dict, content: dict) -> None:
    if container.keys() == content.keys() and all(container[key] is value for key, value in content.items()):
        return
    container.clear()
    container.update(content)


def _refill_set_(container: set, content: set) -> None:
    container.intersection_update(content)
    container.update(content)


def _refill_list_(container: list | deque, content: list) -> None:
    if len(container) == len(content) and all(one is other for one, other in zip(container, content, strict=True)):
        return
    container.clear()
    container.extend(content)


def _silent(*args: object, **kwargs: object) -> None:
    """Stand in for `log` and `print`."""
