"""The one exchange of weights and of gradients: in place, and undone bit for bit wherever it is cut short.

Every move says what it is about to do before it does it. Whatever is raised in between, `back_` knows from where to go
on, so that no tensor is lost and none is moved twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

import torch
from torch import Tensor

from lightning_gluon.two_point.signals import SAVING, held, undone


class Move(Protocol):
    """A tensor that can be put elsewhere and back again."""

    @property
    def away(self) -> bool:
        """True if it is not, or may not be, in its place."""

    def go_(self) -> None:
        """Put it elsewhere."""

    def back_(self) -> None:
        """Put it back from wherever it is; do nothing if it is there."""


class _Stage(Enum):
    REST = auto()
    LEAVING = auto()  # `held` is a copy of `one`, `other` is untouched
    CROSSING = auto()  # `one` has the other's values, `other` is being written to
    AWAY = auto()
    RETURNING = auto()  # `held` is a copy of `one`, `other` is untouched
    RETURNED = auto()  # `one` has its own values again, `other` is being written to


class Swap:
    """Two tensors that exchange their values through a copy of one of them.

    Args:
        one: A tensor.
        other: A tensor of the same shape and dtype.
    """

    def __init__(self, one: Tensor, other: Tensor) -> None:
        self.one, self.other = one, other
        self.held: Tensor | None = None
        self.stage = _Stage.REST

    @property
    def away(self) -> bool:
        """True from before the first write to after the last."""
        return self.stage is not _Stage.REST

    def go_(self) -> None:
        """Exchange the values."""
        self.held = self.one.clone()
        self.stage = _Stage.LEAVING
        self.one.copy_(self.other)
        self.stage = _Stage.CROSSING
        self.other.copy_(self.held)
        self.stage = _Stage.AWAY
        self.held = None

    def back_(self) -> None:
        """Exchange them again, from any stage."""
        if self.stage is _Stage.CROSSING:
            self.other.copy_(self.one)
            self.stage = _Stage.LEAVING
        if self.stage is _Stage.LEAVING:
            self._fill_(self.one)
            self.stage = _Stage.REST
        if self.stage is _Stage.AWAY:
            self.held = self.one.clone()
            self.stage = _Stage.RETURNING
        if self.stage is _Stage.RETURNING:
            self.one.copy_(self.other)
            self.stage = _Stage.RETURNED
        if self.stage is _Stage.RETURNED:
            self._fill_(self.other)
            self.stage = _Stage.REST
        self.held = None

    def _fill_(self, tensor: Tensor) -> None:
        assert self.held is not None
        tensor.copy_(self.held)


class Shift:
    """A tensor that goes to `X - s` and back: `fl(fl(X - s) + s) = X` was made sure of when `s` was stored.

    Args:
        tensor: The tensor.
        step: Returns `s`; called anew for each way, so that nothing has to be kept.
    """

    def __init__(self, tensor: Tensor, step: Callable[[], Tensor]) -> None:
        self.tensor, self.step = tensor, step
        # Where the tensor was, and its version then, while it is being written to: a new version means that it was.
        self._place: tuple[bool, int | None] = (False, None)

    @property
    def away(self) -> bool:
        """True if the tensor is at `X - s`."""
        was, version = self._place
        written = version is not None and self.tensor._version != version
        return was != written

    def go_(self) -> None:
        """Go to `X - s`."""
        step = self.step()
        self._place = (False, self.tensor._version)
        self.tensor.sub_(step)
        self._place = (True, None)

    def back_(self) -> None:
        """Come back to `X`."""
        if not self.away:
            return
        step = self.step()
        self._place = (True, self.tensor._version)
        self.tensor.add_(step)
        self._place = (False, None)


class Detour:
    """A tensor that is kept as a copy while it is changed.

    Args:
        tensor: The tensor.
        change: Writes to it, given the copy.
    """

    def __init__(self, tensor: Tensor, change: Callable[[Tensor], object]) -> None:
        self.tensor, self.change = tensor, change
        self.held: Tensor | None = None

    @property
    def away(self) -> bool:
        """True while there is a copy."""
        return self.held is not None

    def go_(self) -> None:
        """Keep a copy, and change the tensor."""
        self.held = self.tensor.clone()
        self.change(self.held)

    def back_(self) -> None:
        """Copy it back."""
        if self.held is not None:
            self.tensor.copy_(self.held)
            self.held = None


@contextmanager
def exchanged(moves: Iterable[Move]) -> Iterator[None]:
    """Make moves, and undo all of them on leaving, in reverse order.

    Args:
        moves: One per tensor.

    Yields:
        Nothing.

    Example:
        >>> weight, other = torch.ones(2), torch.zeros(2)
        >>> with exchanged([Swap(weight, other)]):
        ...     print(weight.tolist(), other.tolist())
        [0.0, 0.0] [1.0, 1.0]
        >>> weight.tolist(), other.tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    moves = list(moves)
    with held(SAVING):  # nobody may save weights that are elsewhere
        try:
            try:
                _go_(moves)
                yield
            finally:
                _back_(moves)
        finally:
            if any(move.away for move in moves):  # going back was cut short
                _back_(moves)


@held()
@torch.no_grad()
def _go_(moves: list[Move]) -> None:
    for move in moves:
        move.go_()


@held()
@torch.no_grad()
def _back_(moves: list[Move]) -> None:
    for move in reversed(moves):
        move.back_()


@dataclass
class Taken:
    """The gradients that parameters had at the end of `exchanged_gradients`."""

    gradients: dict[Tensor, Tensor] = field(default_factory=dict)


@contextmanager
def exchanged_gradients(
    params: Iterable[Tensor], gradients: Mapping[Tensor, Tensor], *, clone: bool = False
) -> Iterator[Taken]:
    """Give parameters other gradients for a while, and keep the result.

    Args:
        params: The parameters.
        gradients: Their `.grad` inside; `None` if there is none.
        clone: Copy gradients on both ways, where they live in memory that is written to by others.

    Yields:
        An object whose `gradients` are, after leaving, those that the parameters had at the end.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.ones(2)
        >>> with exchanged_gradients([weight], {}) as taken:
        ...     (3 * weight).sum().backward()
        >>> weight.grad.tolist(), taken.gradients[weight].tolist()
        ([1.0, 1.0], [3.0, 3.0])
    """
    params, taken = list(params), Taken()
    first = _present(params, clone=clone)
    with undone(lambda: _give(params, first)):
        _give(params, gradients)
        yield taken
        taken.gradients = _present(params, clone=clone)


def _present(params: Iterable[Tensor], *, clone: bool) -> dict[Tensor, Tensor]:
    found = {}
    for parameter in params:
        gradient = parameter.grad
        if gradient is not None:
            found[parameter] = gradient.clone() if clone else gradient
    return found


def _give(params: Iterable[Tensor], gradients: Mapping[Tensor, Tensor]) -> None:
    for parameter in params:
        parameter.grad = gradients.get(parameter)
