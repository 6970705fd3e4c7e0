"""Sharing of the LMOs between ranks that hold the same matrices: asked for, or found out by the clock.

Shared, every rank takes its part of the LMOs and receives the others' steps: less arithmetic, more traffic. Which is
faster depends on the network. Both ways give the same weights bit for bit, so the first steps take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from lightning_gluon.ranks.groups import Ranks

BY_CLOCK = "auto"
TURNS = 3  # of each way; the first one makes plans and buffers and does not count

Elapsed = Callable[[], float]  # milliseconds, once the device has got there


class Sharing:
    """A choice between two ways to step.

    Args:
        ranks: The ranks that hold the same matrices.
        asked: Whether they share; `auto` times both ways.
    """

    def __init__(
        self,
        ranks: Ranks,
        asked: bool | str,
    ) -> None:
        self.ranks = ranks
        undecided = asked == BY_CLOCK and ranks.size > 1
        self.decided = None if undecided else bool(asked)
        self.readings: list[Elapsed] = []

    @property
    def now(self) -> bool:
        """True if the coming step is shared."""
        if self.decided is not None:
            return self.decided
        return len(self.readings) % 2 == 0

    @contextmanager
    def timed(
        self,
        device: torch.device,
    ) -> Iterator[None]:
        """Time the step inside, as long as nothing is decided.

        Args:
            device: Where it runs.

        Yields:
            Nothing.
        """
        if self.decided is not None:
            yield
            return
        stop = _stopwatch(device)
        yield
        self.readings.append(stop())
        if len(self.readings) == 2 * TURNS:
            self._decide(device)

    def _decide(
        self,
        device: torch.device,
    ) -> None:
        """Decide by the faster of the last turns, on the slowest rank: all ranks see the same numbers."""
        counted = [elapsed() for elapsed in self.readings[2:]]
        times = torch.tensor([min(counted[0::2]), min(counted[1::2])], device=device)
        dist.all_reduce(times, op=dist.ReduceOp.MAX, group=self.ranks.group)
        shared, alone = times.tolist()
        self.decided = shared <= alone
        self.readings = []


def _stopwatch(device: torch.device) -> Callable[[], Elapsed]:
    """Start a clock; it returns a function that stops it, and that one what it says."""
    if device.type == "cuda":
        first, last = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        first.record()

        def stop() -> Elapsed:
            last.record()

            def elapsed() -> float:
                last.synchronize()
                return first.elapsed_time(last)

            return elapsed

        return stop
    begun = time.perf_counter()

    def stop_now() -> Elapsed:
        passed = 1000 * (time.perf_counter() - begun)
        return lambda: passed

    return stop_now


def check_sharing(
    asked: object,
    compiled: bool | str,
) -> bool | str:
    """Return whether ranks share work; a compiled step, which knows no other ranks, shares none.

    Args:
        asked: The argument `share_work`.
        compiled: Whether the step is compiled.

    Raises:
        ValueError: If it is no answer, or asks for what cannot be compiled.
    """
    if asked not in (True, False, BY_CLOCK):
        raise ValueError(f"Expected `share_work` to be True, False or 'auto', but got {asked!r}.")
    if compiled and asked is True:
        raise ValueError("Expected no `compile` with `share_work=True`: a graph waits for no rank. Leave one out.")
    return False if compiled else asked
