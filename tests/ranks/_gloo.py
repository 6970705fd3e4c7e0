"""Processes of a run over several ranks: started once, asked many times, ended if one of them does not answer."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, by the process that all ranks are forks of.
CONTEXT.set_forkserver_preload(["lightning.pytorch", "timm", "transformers", "lightning_gluon.callbacks"])
START = 120  # seconds that ranks may take to import and to meet


@dataclass
class Outcome:
    """An answer of one rank.

    Args:
        value: What the function returned.
        error: Type and text of what it raised, or that the process died or hung.
        trace: The traceback.
        seconds: Time that it took.
    """

    value: Any = None
    error: str | None = None
    trace: str = ""
    seconds: float = 0.0


DIED, HUNG = "died", "hung"


class Ranks:
    """As many processes as ranks, in one group of gloo, or of NCCL with `RANKS_DEVICE=cuda`.

    Args:
        size: Number of ranks.
        timeout: Seconds that a collective waits for the others.
        leaves: Whether a rank ends after an error, as a script does; the others then notice.
    """

    def __init__(self, size: int, timeout: float = 100, leaves: bool = False) -> None:
        self.size, self.timeout, self.leaves = size, timeout, leaves
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []
        self.folder = ""

    def call(self, function: Callable[..., Any], *args: Any, timeout: float = 100) -> list[Any]:
        """Run a function on every rank and return what it returned there; raise if one of them does."""
        outcomes = self.attempt(function, *args, timeout=timeout)
        errors = [f"rank {rank}: {one.error}\n{one.trace}" for rank, one in enumerate(outcomes) if one.error]
        if errors:
            self.close()  # the others may wait for this one for ever
            raise AssertionError("\n".join(errors))
        return [one.value for one in outcomes]

    def attempt(self, function: Callable[..., Any], *args: Any, timeout: float = 30) -> list[Outcome]:
        """Run a function on every rank and return what came of it; after a timeout all ranks are ended."""
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, args))
        return self._answers(timeout)

    def _start(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ranks")
        for rank in range(self.size):
            ours, theirs = CONTEXT.Pipe()
            given = (rank, self.size, self.folder, theirs, self.timeout, self.leaves)
            process = CONTEXT.Process(target=_serve, args=given, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)
        met = self._answers(START)
        assert all(one.value == "ready" for one in met), met

    def _answers(self, timeout: float) -> list[Outcome]:
        found: dict[Connection, Outcome] = {}
        end = time.monotonic() + timeout
        while len(found) < self.size and (left := end - time.monotonic()) > 0:
            for pipe in wait([one for one in self.pipes if one not in found], timeout=left):
                assert isinstance(pipe, Connection)
                try:
                    found[pipe] = pipe.recv()
                except (EOFError, OSError):
                    found[pipe] = Outcome(error=DIED)
        outcomes = [found.get(pipe, Outcome(error=HUNG)) for pipe in self.pipes]
        if any(one.error in (DIED, HUNG) for one in outcomes):
            self.close()
        return outcomes

    def close(self) -> None:
        """End the ranks; the next call starts others."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.kill()
            process.join()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.processes, self.pipes, self.folder = [], [], ""


def _serve(rank: int, size: int, folder: str, pipe: Connection, timeout: float, leaves: bool) -> None:
    """Meet the other ranks, and answer calls until the pipe is closed."""
    own = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "NODE_RANK": 0, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update({key: str(value) for key, value in own.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    on_gpus = os.environ.get("RANKS_DEVICE") == "cuda"
    if not on_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    _quiet(folder, rank)

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if on_gpus:
        torch.cuda.set_device(rank)
    backend, wait_for = "nccl" if on_gpus else "gloo", timedelta(seconds=timeout)
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=wait_for)
    pipe.send(Outcome("ready"))
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            os._exit(0)
        start = time.monotonic()
        try:
            outcome = Outcome(function(*args))
        except BaseException as error:
            outcome = Outcome(error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
        outcome.seconds = time.monotonic() - start
        pipe.send(outcome)
        if outcome.error and leaves:
            os._exit(1)


def _quiet(folder: str, rank: int) -> None:
    """Send what the ranks print into a file: they print at once, and much of it from C++."""
    log = os.open(f"{folder}/{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
