"""Weights and gradients come back bit for bit, at whatever line an exchange is cut short."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.two_point import exchange, reference, signals
from lightning_gluon.two_point.exchange import Detour, Move, Shift, Swap, exchanged, exchanged_gradients

FILES = {str(Path(module.__file__)) for module in (exchange, reference, signals)}


class Cut(BaseException):
    """Like a KeyboardInterrupt, raised between two lines."""


@contextmanager
def cut_at(line: int) -> Iterator[list[int]]:
    """Raise at the given line, counted in the order of execution, of the files that exchange anything."""
    count = [0]

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            count[0] += 1
            if count[0] - 1 == line:
                raise Cut
        return local

    def outer(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename in FILES else None

    before = sys.gettrace()
    sys.settrace(outer)
    try:
        yield count
    finally:
        sys.settrace(before)


def is_cut(use: Callable[[], None], line: int) -> bool:
    """Whether it was cut short; its frames are gone afterwards, as they are for a program that goes on."""
    try:
        with cut_at(line):
            use()
    except Cut:
        return True
    return False


def lines_of(use: Callable[[], None]) -> int:
    with cut_at(-1) as count:
        use()
    return count[0]


def bits(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def check_every_line(use: Callable[[], None], tensors: Callable[[], list[Tensor]]) -> None:
    """Cut `use` short at every line, one after the other; each time the tensors are what they were."""
    before, handler = bits(tensors()), signal.getsignal(signal.SIGINT)
    total = lines_of(use)
    assert total > 20
    for line in range(total):
        assert is_cut(use, line)
        assert all(map(torch.equal, before, tensors())), f"line {line} of {total}"
        assert signal.getsignal(signal.SIGINT) is handler, f"line {line} of {total}"
    use()
    assert all(map(torch.equal, before, tensors()))


def moves(tensors: list[Tensor]) -> list[Move]:
    one, other, third, fourth = tensors
    step = torch.full((3,), 0.25)
    return [Swap([one], [other]), Shift(third, lambda: step), Detour(fourth, lambda held: fourth.add_(held, alpha=0.3))]


def test_an_exchange_is_undone_from_every_line() -> None:
    tensors = [torch.randn(3), torch.randn(3), torch.arange(3.0), torch.randn(3)]
    seen = []

    def use() -> None:
        with exchanged(moves(tensors)):
            seen.append(bits(tensors))

    first = bits(tensors)
    use()
    assert torch.equal(seen[0][0], first[1]) and torch.equal(seen[0][1], first[0])
    assert torch.equal(seen[0][2], first[2] - 0.25) and torch.equal(seen[0][3], first[3] + 0.3 * first[3])
    check_every_line(use, lambda: tensors)


def test_values_that_are_equal_to_nothing_come_back() -> None:
    """NaN is unequal to itself, and zero has two signs: an exchange compares no values."""
    one, other = torch.tensor([float("nan"), -0.0]), torch.tensor([0.0, float("nan")])

    def raw() -> list[Tensor]:
        return [one.view(torch.int32), other.view(torch.int32)]

    def use() -> None:
        with exchanged([Swap([one], [other])]):
            pass

    check_every_line(use, raw)


@pytest.mark.parametrize("body", ["raises", "writes"])
def test_what_happens_inside_does_not_matter(body: str) -> None:
    tensors = [torch.randn(3), torch.randn(3), torch.arange(3.0), torch.randn(3)]
    first = bits(tensors)
    if body == "raises":
        with pytest.raises(KeyError), exchanged(moves(tensors)):
            raise KeyError
    else:
        with exchanged(moves(tensors)):
            tensors[2].add_(0)  # a new version of the tensor, the same values
            tensors[3].zero_()
    assert all(map(torch.equal, first, tensors))


def trained(**options: Any) -> tuple[nn.Module, Gluon]:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = Gluon(net, lr=0.1, **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(torch.randn(5, 3)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return net, optimizer


@pytest.mark.parametrize(
    "options",
    [{"method": "gluon-mvr1", "reference": kind} for kind in ("copy", "step", "step8")] + [{"method": "gluon-igt"}],
    ids=["copy", "step", "step8", "igt"],
)
def test_the_reference_point_is_left_from_every_line(options: dict[str, Any]) -> None:
    net, optimizer = trained(**options)

    def tensors() -> list[Tensor]:
        kept = [value for state in optimizer.state.values() for value in state.values()]
        return [*net.parameters(), *kept]

    def use() -> None:
        with optimizer.at_reference():
            pass

    before = bits(list(net.parameters()))
    with optimizer.at_reference():
        assert not torch.equal(before[0], next(net.parameters()))
        with pytest.raises(RuntimeError, match="it is in use"), optimizer.at_reference():
            pass
    check_every_line(use, tensors)


def test_gradients_are_given_back_from_every_line() -> None:
    params = [nn.Parameter(torch.randn(2)) for _ in range(3)]
    for parameter in params[:2]:
        parameter.grad = torch.randn(2)
    first = [parameter.grad for parameter in params]

    def use() -> None:
        with exchanged_gradients(params, {params[0]: torch.zeros(2), params[2]: torch.zeros(2)}) as taken:
            params[1].grad = torch.ones(2)
        assert list(taken.gradients) == params

    total = lines_of(use)
    for line in range(total):
        assert is_cut(use, line)
        assert all(parameter.grad is one for parameter, one in zip(params, first, strict=True)), line


def test_gradients_in_shared_memory_are_copied() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = bucket = torch.ones(2)
    with exchanged_gradients([weight], {}, clone=True):
        bucket.fill_(7.0)
    assert weight.grad.tolist() == [1.0, 1.0]
