"""Messages between workers that train copies of one model: the exchange as an interface, and one inside a process.

Every worker has a copy of the model, an optimizer and samples of its own. In a step each one sends what its compressor
makes of its news, gets what all others sent, and moves its copy as they move theirs.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

__all__ = ["ALONE", "Exchange", "run_workers"]

Result = TypeVar("Result")
Tensors: TypeAlias = list[Tensor]


class Exchange(ABC):
    """Exchange of messages between the workers of one training, as one of them sees it.

        gather(m_j) = [m_1, ..., m_N]        the same list for every worker

    Shapes: messages are lists of tensors of any shape and dtype, of the same shapes on every worker.

    Args:
        rank: Place of this worker.
        size: Number of workers.

    Attributes:
        sent: Bytes that this worker has sent so far.

    References:
        "EF21-Muon", arXiv 2510.00643.

    Example:
        >>> class Echo(Exchange):
        ...     def _gather(self, tensors):
        ...         return [tensors] * self.size
        >>> echo = Echo(rank=0, size=2)
        >>> len(echo.gather([torch.zeros(3)])), echo.sent, echo.any([torch.tensor([True, False])])
        (2, 12, [tensor([ True, False])])
        >>> echo.failure("Non-finite gradient")
        'Non-finite gradient'
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.sent = 0

    def gather(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        """Return the tensors of all workers, by their rank.

        Args:
            tensors: Those of this worker.
        """
        self.sent += sum(tensor.nbytes for tensor in tensors)
        return self._gather(tensors)

    def any(self, flags: list[Tensor]) -> list[Tensor]:
        """Return where any worker has a flag.

        Args:
            flags: Tensors of bools.
        """
        return [torch.stack(same).any(0) for same in zip(*self.gather(flags), strict=True)]

    def failure(self, error: str | None) -> str | None:
        """Return the error of any worker, the same for all; by default a worker knows its own alone.

        Args:
            error: What this worker would raise, if anything.
        """
        return error

    @abstractmethod
    def _gather(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        """Return the tensors of all workers, by their rank."""


class _Alone(Exchange):
    """No other worker: nothing is sent."""

    def gather(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        """Return the own tensors."""
        return [tensors]

    def _gather(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        return [tensors]


ALONE = _Alone()


@dataclass
class _Meeting:
    """A place where all workers of a process meet.

    Args:
        seats: A seat for every worker, with what it has brought; `None` if it has left.
    """

    seats: list[Tensors | None]
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(len(self.seats))


class _LocalExchange(Exchange):
    """Exchange between the threads of one process."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        super().__init__(rank, len(meeting.seats))
        self.meeting = meeting

    def _gather(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        self.meeting.seats[self.rank] = tensors
        self.meeting.barrier.wait()
        found = [seat for seat in self.meeting.seats if seat is not None]
        if len(found) < self.size:
            raise RuntimeError(
                f"Worker {self.rank} sends a message, but {self.size - len(found)} of {self.size} workers have ended. "
                "Let all workers take as many steps."
            )
        self.meeting.barrier.wait()  # nobody brings the next message before all have seen this one
        return found

    def leave(self) -> None:
        """End, with all others or before them: those who still send are told."""
        self.meeting.seats[self.rank] = None
        self.meeting.barrier.wait()


def run_workers(size: int, work: Callable[[Exchange], Result]) -> list[Result]:
    """Run workers of one training as threads of this process, and count what they send.

        results[j] = work(exchange_j),        j = 0, ..., N - 1

    Draws from torch's own generator come in no fixed order. Build the copies of the model before, and give every
    worker a generator of its own.

    Shapes: messages are lists of tensors of any shape, see `Exchange`.

    Args:
        size: Number of workers.
        work: A whole training of one worker; it sets `optimizer.exchange`.

    Returns:
        What every worker returned, by rank.

    Raises:
        ValueError: If there is no worker.
        RuntimeError: If a worker sends a message after another has ended. The error of a worker that fails is raised
            itself, and ends the others.

    References:
        "EF21-Muon", arXiv 2510.00643.

    Example:
        >>> def work(exchange):
        ...     mine = [torch.full((2,), float(exchange.rank))]
        ...     return sum(values.sum().item() for values, in exchange.gather(mine)), exchange.sent
        >>> run_workers(3, work)
        [(6.0, 8), (6.0, 8), (6.0, 8)]
    """
    if size < 1:
        raise ValueError(f"Expected `size` to be a number of workers, but got {size!r}.")
    meeting = _Meeting([[] for _ in range(size)])

    def guarded(rank: int) -> Result:
        try:
            exchange = _LocalExchange(rank, meeting)
            result = work(exchange)
            exchange.leave()
            return result
        except BaseException:
            meeting.barrier.abort()  # or the others would wait for ever
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(guarded, rank) for rank in range(size)]
    _raise_first(futures)
    return [future.result() for future in futures]


def _raise_first(futures: list[Future]) -> None:
    """Raise the error of the worker that failed first, rather than those of workers that waited for it."""
    errors = [future.exception() for future in futures]
    raised = [error for error in errors if error is not None]
    causes = [error for error in raised if not isinstance(error, threading.BrokenBarrierError)]
    for error in causes or raised:
        raise error
