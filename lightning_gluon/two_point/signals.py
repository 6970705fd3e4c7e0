"""Ctrl-C held back while weights are between two states: it is answered as soon as they are whole again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

# Handlers of these may save a checkpoint where they stand, as Lightning's does for a SLURM job that is about to end.
SAVING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
ALL = (signal.SIGINT, *SAVING)


class _Note:
    """A handler that only remembers which signals came."""

    def __init__(self) -> None:
        self.caught: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.caught.append(number)


@contextmanager
def held(signals: Iterable[signal.Signals] = ALL) -> Iterator[None]:
    """Hold signals back, and deliver those that came to the handlers that were there before.

    Handlers run in the main thread; elsewhere nothing is done. Signals without a Python handler keep their meaning.

    Args:
        signals: The signals to hold back.

    Yields:
        Nothing.

    Example:
        >>> weights = [1.0]
        >>> try:
        ...     with held():
        ...         signal.raise_signal(signal.SIGINT)
        ...         weights = [2.0]
        ... except KeyboardInterrupt:
        ...     print("interrupted at", weights)
        interrupted at [2.0]
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    note = _Note()
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    try:
        with undone(restore):
            for number in signals:
                handler = signal.getsignal(number)
                if callable(handler) and not isinstance(handler, _Note):
                    handlers[number] = handler
                    signal.signal(number, note)
            yield
    finally:
        for number in reversed(ALL):  # a checkpoint is saved before a KeyboardInterrupt is raised
            if number in note.caught:
                signal.raise_signal(number)


@contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Call `undo` on leaving, and once more where that is cut short: it goes on from wherever it was.

    Args:
        undo: A function that may be called at any point, and twice.

    Yields:
        Nothing.
    """
    complete = False
    try:
        try:
            yield
        finally:
            undo()
            complete = True
    finally:
        if not complete:
            undo()
