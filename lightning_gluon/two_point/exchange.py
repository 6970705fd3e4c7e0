"""The one exchange of weights and of gradients: in place, and undone bit for bit wherever it is cut short.

Every move says what it is about to do before it does it. Whatever is raised in between, `back_` knows from where to go
on, so that no tensor is lost and none is moved twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

import torch
from torch import Tensor

from lightning_gluon.ranks.pieces import local
from lightning_gluon.two_point.signals import SAVING, held, undone

SWAPPED = 2**24  # entries that are swapped together, at most: as many are held twice meanwhile


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
    LEAVING = auto()  # `held` are copies of `ones`, `others` are untouched
    CROSSING = auto()  # `ones` have the others' values, `others` are being written to
    AWAY = auto()
    RETURNING = auto()  # `held` are copies of `ones`, `others` are untouched
    RETURNED = auto()  # `ones` have their own values again, `others` are being written to


class Swap:
    """Tensors that exchange their values with others through a copy of them, all of a list at a time.

    Args:
        ones: Tensors; of those that are spread over ranks the pieces are exchanged.
        others: As many of the same shapes and dtypes.
    """

    def __init__(self, ones: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        self.ones, self.others = list(map(local, ones)), list(map(local, others))
        self.held: list[Tensor] | None = None
        self.stage = _Stage.REST

    @property
    def away(self) -> bool:
        """True from before the first write to after the last."""
        return self.stage is not _Stage.REST

    def go_(self) -> None:
        """Exchange the values."""
        self.held = _held_copies(self.ones)
        self.stage = _Stage.LEAVING
        torch._foreach_copy_(self.ones, self.others)
        self.stage = _Stage.CROSSING
        torch._foreach_copy_(self.others, self.held)
        self.stage = _Stage.AWAY
        self.held = None

    def back_(self) -> None:
        """Exchange them again, from any stage."""
        if self.stage is _Stage.CROSSING:
            torch._foreach_copy_(self.others, self.ones)
            self.stage = _Stage.LEAVING
        if self.stage is _Stage.LEAVING:
            self._fill_(self.ones)
            self.stage = _Stage.REST
        if self.stage is _Stage.AWAY:
            self.held = _held_copies(self.ones)
            self.stage = _Stage.RETURNING
        if self.stage is _Stage.RETURNING:
            torch._foreach_copy_(self.ones, self.others)
            self.stage = _Stage.RETURNED
        if self.stage is _Stage.RETURNED:
            self._fill_(self.others)
            self.stage = _Stage.REST
        self.held = None

    def _fill_(self, tensors: list[Tensor]) -> None:
        assert self.held is not None
        torch._foreach_copy_(tensors, self.held)


def _held_copies(tensors: list[Tensor]) -> list[Tensor]:
    copies = [torch.empty_like(tensor) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies


def merged(moves: Iterable[Move]) -> list[Move]:
    """Return moves with neighbouring swaps made one, up to a size: a GPU takes a few kernels for each then.

    Args:
        moves: One per tensor.

    Example:
        >>> tensors = [torch.ones(2) for _ in range(4)]
        >>> len(merged([Swap(tensors[:1], tensors[1:2]), Swap(tensors[2:3], tensors[3:])]))
        1
    """
    found: list[Move] = []
    size = 0
    for move in moves:
        if not isinstance(move, Swap):
            found.append(move)
            continue
        own = sum(one.numel() for one in move.ones)
        last = found[-1] if found else None
        if isinstance(last, Swap) and size + own <= SWAPPED:
            last.ones += move.ones
            last.others += move.others
            size += own
        else:
            found.append(move)
            size = own
    return found


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
        >>> with exchanged([Swap([weight], [other])]):
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
