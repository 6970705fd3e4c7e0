"""The same gradients given to one process and to many ranks: what differs after some steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from lightning_gluon import Gluon
from lightning_gluon.step.plan import CHUNK_NUMEL
from tests.ranks._layouts import build, placed, spread, whole
from tests.ranks._traffic import Traffic

STEPS = 4
LR = {"adamw": 1e-3, "signsgd": 1e-3}


@dataclass
class Case:
    """One optimizer on one model.

    Args:
        method: Its method.
        options: Options of it.
        model: Name of a model.
        given: Arguments of `fully_shard`.
        limit: Entries that an owner takes in one round; by default what suits the device.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    model: str = "qwen"
    given: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None


@dataclass
class Report:
    """What one rank found.

    Args:
        differing: By parameter, the entries that are not equal, bit for bit.
        relative: By parameter, the largest difference relative to its largest entry.
        estimators: By parameter, the estimator of its group.
        coarse: By parameter, whether it is a vector or its rows are cut.
        rounds: Rounds in which matrices travel.
        calls: Collectives of the last step, by name.
        bytes: Bytes that this rank sent in the last step.
        gathers: Calls of `DTensor.full_tensor` in all steps.
        state: Bytes of the state on this rank, and of one process.
        largest: Bytes of the largest tensor that the last step made.
    """

    differing: dict[str, int]
    relative: dict[str, float]
    estimators: dict[str, str]
    coarse: dict[str, bool]
    rounds: int
    calls: dict[str, int]
    bytes: int
    gathers: int
    state: tuple[int, int]
    largest: int


def optimizer_of(net: nn.Module, case: Case, **given: Any) -> Gluon:
    options = {"lr": LR.get(case.method, 0.02), "total_steps": 2 * STEPS, **case.options}
    return Gluon(net, method=case.method, **options, **given)


def draw(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return whole gradients, the same on all ranks."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(one.shape, generator=generator) for name, one in net.named_parameters()}


def give(net: nn.Module, optimizer: Gluon, step: int) -> None:
    """Lay the gradients of a step, and those at the previous iterate, over the ranks."""
    new, old = draw(net, 100 + step), draw(net, 1000 + step)
    params = dict(net.named_parameters())
    for name, parameter in params.items():
        if parameter.requires_grad:
            parameter.grad = placed(new[name], parameter)
    if not optimizer.needs_reference:
        return
    with optimizer.at_reference():  # of transported points the gradients count that are there now
        pass
    if optimizer.reference_point == "previous":
        optimizer.reference_gradients = {params[name]: placed(value, params[name]) for name, value in old.items()}


def run(net: nn.Module, optimizer: Gluon, first: int = 0, steps: int = STEPS) -> Traffic:
    """Take some steps and return the traffic of the last one, and the gathers of all."""
    optimizer.two_point = "loop"
    gathers, traffic = 0, Traffic()
    for step in range(first, first + steps):
        give(net, optimizer, step)
        with (traffic := Traffic()):
            optimizer.step()
        gathers += traffic.gathers
    traffic.gathers = gathers
    return traffic


def local_bytes(optimizer: Gluon) -> int:
    """Return the bytes of the state that lie on this rank."""
    found = 0
    for kept in optimizer.state.values():
        for value in kept.values():
            if isinstance(value, Tensor):
                found += getattr(value, "_local_tensor", value).nbytes
    return found


def compare(case: Case, strategy: str) -> Report:
    """Run a case alone and over all ranks."""
    alone = build(case.model)
    own = optimizer_of(alone, case)
    run(alone, own)
    net = build(case.model)
    given = spread(net, strategy, **case.given)
    optimizer = optimizer_of(net, case, **given)
    limits = {} if case.limit is None else dict.fromkeys(["cpu", "cuda"], case.limit)
    with patch.dict(CHUNK_NUMEL, limits):
        traffic = run(net, optimizer)
        plan = optimizer._plans.find(optimizer.param_groups)
    expected = {name: whole(one) for name, one in alone.named_parameters()}
    found = {name: whole(one) for name, one in net.named_parameters()}
    assert found.keys() == expected.keys()
    estimators = dict.fromkeys(expected, "frozen")
    estimators |= {name: group["estimator"] for group in own.param_groups for name in group["param_names"]}
    return Report(
        differing={name: int((found[name] != one).sum()) for name, one in expected.items()},
        relative={name: relative(found[name], one) for name, one in expected.items()},
        estimators=estimators,
        coarse={name: cuts_rows(one) for name, one in net.named_parameters()},
        rounds=len(plan.trips) if plan is not None else 0,
        calls=dict(traffic.calls),
        bytes=traffic.bytes.total(),
        gathers=traffic.gathers,
        state=(local_bytes(optimizer), local_bytes(own)),
        largest=traffic.largest,
    )


def cuts_rows(parameter: Tensor) -> bool:
    """Return whether a parameter is a vector or a rank holds parts of rows."""
    placements = getattr(parameter, "placements", ())
    return parameter.ndim < 2 or any(getattr(one, "dim", 0) > 0 for one in placements)


def compare_all(cases: Sequence[Case], strategy: str) -> list[Report]:
    """Run cases one after another."""
    return [compare(case, strategy) for case in cases]


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest entry."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30)).item()
