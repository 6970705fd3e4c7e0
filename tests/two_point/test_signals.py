"""Ctrl-C in the middle of a step or of an exchange is answered when the weights are whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.two_point.signals import held


@contextmanager
def handler(number: int, answer: Any) -> Iterator[None]:
    before = signal.signal(number, answer)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_a_signal_waits_for_the_end() -> None:
    seen = []
    with pytest.raises(KeyboardInterrupt), held():
        os.kill(os.getpid(), signal.SIGINT)
        seen.append("all of it")
    assert seen == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_users_handler_is_called_and_stays() -> None:
    heard: list[str] = []

    def own(number: int, frame: Any) -> None:
        heard.append(signal.Signals(number).name)

    with handler(signal.SIGINT, own), handler(signal.SIGUSR1, own):
        with held():
            with held():  # the outer one decides
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGUSR1)
            assert heard == []
        assert heard == ["SIGUSR1", "SIGINT"]
        assert signal.getsignal(signal.SIGINT) is own


def test_a_signal_is_not_lost_where_the_block_raises() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, held():
        signal.raise_signal(signal.SIGINT)
        raise KeyError("first")
    assert isinstance(caught.value.__context__, KeyError)


def test_ignored_signals_stay_ignored() -> None:
    with handler(signal.SIGINT, signal.SIG_IGN), held():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_are_left_alone() -> None:
    seen = []

    def work() -> None:
        with held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


class Interrupts(nn.Module):
    """A network whose weights, when they are written to, send the process a Ctrl-C after so many operations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


class Sender(torch.utils._python_dispatch.TorchDispatchMode):
    """Send SIGINT at the n-th operation."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.count += 1
        if self.count == self.at:
            signal.raise_signal(signal.SIGINT)
        return result


def ready(method: str) -> tuple[nn.Module, Gluon]:
    """A network that has taken one step, with the gradients of the next."""
    torch.manual_seed(0)
    net = Interrupts()
    optimizer = Gluon(net, lr=0.1, method=method)
    optimizer.two_point = "callback"
    x = torch.randn(5, 4)
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        if not optimizer.needs_reference:
            optimizer.step()
    optimizer.reference_gradients = {p: p.grad.clone() for p in net.parameters()} if optimizer.needs_reference else {}
    return net, optimizer


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("method", ["gluon", "gluon-mvr1", "adamw"])
def test_a_step_is_taken_whole_or_not_at_all(method: str) -> None:
    net, optimizer = ready(method)
    before = weights(net)
    with Sender(-1) as clean:
        optimizer.step()
    after, total = weights(net), clean.count
    assert total > 10 and not torch.equal(before, after)
    moved = 0
    for at in range(1, total + 1, max(1, total // 40)):
        net, optimizer = ready(method)
        steps = optimizer.param_groups[0]["steps"]
        with pytest.raises(KeyboardInterrupt), Sender(at):
            optimizer.step()
        whole = torch.equal(weights(net), after)
        moved += whole
        assert whole or torch.equal(weights(net), before), f"torn at operation {at} of {total}"
        assert optimizer.param_groups[0]["steps"] == steps + whole
    assert moved > 0


def test_a_second_pass_that_is_interrupted_leaves_the_weights_where_they_were() -> None:
    net, optimizer = ready("gluon-mvr1")
    before = weights(net)
    previous = [optimizer.state[p]["previous"].clone() for p in net.parameters()]
    with Sender(-1) as clean, optimizer.at_reference():
        net(torch.ones(1, 4)).sum().backward()
    for at in range(1, clean.count + 1):
        with pytest.raises(KeyboardInterrupt), Sender(at), optimizer.at_reference():
            net(torch.ones(1, 4)).sum().backward()
        assert torch.equal(weights(net), before), at
        kept = [optimizer.state[p]["previous"] for p in net.parameters()]
        assert all(map(torch.equal, previous, kept)), at


def test_nobody_saves_weights_that_are_elsewhere() -> None:
    """Lightning's handler for the end of a SLURM job saves a checkpoint wherever the program is."""
    net, optimizer = ready("gluon-mvr1")
    here, saved = weights(net), []
    with handler(signal.SIGUSR1, lambda *_: saved.append(weights(net))):
        with optimizer.at_reference():
            signal.raise_signal(signal.SIGUSR1)
            assert not torch.equal(weights(net), here)
        assert len(saved) == 1
    assert torch.equal(saved[0], here)
