"""Steps in which one rank is not like the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import nn

from lightning_gluon import Gluon
from tests.ranks._gradients import Case, give, optimizer_of
from tests.ranks._layouts import build, spread, whole
from tests.ranks._training import Run, fit

NAME = "model.layers.1.mlp.up_proj.weight"
ODD = 1  # the rank that is not like the others
MESSAGE = "the batch was broken"


def piece(net: nn.Module) -> torch.Tensor:
    """Return this rank's part of one gradient."""
    gradient = net.get_parameter(NAME).grad
    assert gradient is not None
    return getattr(gradient, "_local_tensor", gradient)


def poison(net: nn.Module) -> None:
    piece(net)[0, 0] = float("nan")


def forget(net: nn.Module) -> None:
    net.get_parameter(NAME).grad = None


FAULTS: dict[str, Callable[[nn.Module], None]] = {"nan": poison, "missing": forget}


def step_with(fault: str, strategy: str, options: dict[str, Any]) -> dict[str, Any]:
    """Take a good step, and one with a fault on one rank; return what became of the second.

    Returns:
        The error, if there is one; whether weights have moved in it; whether the ranks can go on and are equal then.
    """
    net = build("qwen")
    given = spread(net, strategy)
    optimizer = optimizer_of(net, Case("gluon", options), **given)
    give(net, optimizer, 0)
    optimizer.step()
    before = {name: whole(one) for name, one in net.named_parameters()}
    give(net, optimizer, 1)
    if dist.get_rank() == ODD:
        FAULTS[fault](net)
    error = None
    try:
        optimizer.step()
    except (FloatingPointError, RuntimeError) as found:
        error = f"{type(found).__name__}: {found}"
    after = {name: whole(one) for name, one in net.named_parameters()}
    moved = [name for name, one in before.items() if not torch.equal(one, after[name])]
    give(net, optimizer, 2)
    optimizer.step()
    sums = torch.stack([whole(one).double().sum() for one in net.parameters()])
    copies = [torch.empty_like(sums) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, sums)
    return {"error": error, "moved": moved, "equal": all(torch.equal(one, sums) for one in copies)}


def differ(strategy: str, what: str) -> None:
    """Build optimizers that are not alike on all ranks, and take a step."""
    net = build("qwen")
    given = spread(net, strategy)
    odd = dist.get_rank() == ODD
    if what == "method":
        optimizer = optimizer_of(net, Case("muon" if odd else "gluon"), **given)
    elif what == "frozen":
        net.get_parameter(NAME).requires_grad_(not odd)
        optimizer = optimizer_of(net, Case("gluon"), **given)
    else:
        groups = [{"params": [one], "param_names": [name]} for name, one in net.named_parameters() if one.ndim == 2]
        optimizer = Gluon(groups[::-1] if odd else groups, lr=0.02, **given)
    give(net, optimizer, 0)
    optimizer.step()


class Breaks(pl.Callback):
    """Raise on one rank in the middle of a step."""

    def __init__(self, hook: str, step: int = 2) -> None:
        self.step = step
        setattr(self, hook, self._raise)

    def _raise(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and dist.get_rank() == ODD:
            raise RuntimeError(MESSAGE)


def fit_broken(run: Run, hook: str) -> None:
    """Train until one rank raises."""
    fit(run, [Breaks(hook)])


def closure_broken(strategy: str, method: str) -> None:
    """Step with a closure that raises on one rank."""
    net = build("qwen")
    given = spread(net, strategy)
    optimizer = Gluon(net, lr=0.02, method=method, **given)
    model = nn.parallel.DistributedDataParallel(net) if strategy == "ddp" else net
    tokens = torch.arange(24).view(2, 12)
    for step in range(3):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(input_ids=tokens, labels=tokens).loss
            if step == 1 and dist.get_rank() == ODD:  # noqa: B023
                raise RuntimeError(MESSAGE)
            loss.backward()
            return loss

        optimizer.step(closure)
