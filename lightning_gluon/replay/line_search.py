"""A look along the first step for the lowest loss on a second batch: where to start when nothing is known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_gluon.replay.replay import Replay
from lightning_gluon.replay.snapshot import untouched

__all__ = ["search_along"]

FACTORS = tuple(2.0**power for power in range(-14, 9))
RISE = 1.1  # of the loss at the start: where the search ends
LOWER = 1e-3  # of the loss at the start: less is no minimum


@torch.no_grad()
def search_along(replay: Replay, start: Mapping[Tensor, Tensor], step: Mapping[Tensor, Tensor]) -> float:
    """Return the `s` in `FACTORS` with the lowest loss at `start - s * step`; weights come out as before, bit for bit.

    A direction from one small batch may lead nowhere on another. Where no `s` lowers the loss, the answer is a quarter
    of the first that raises it by a tenth: about where the minimum of a parabola with that curvature would lie.

    Args:
        replay: The second batch.
        start: The weights before the first step.
        step: The first step, for `s = 1`.

    Returns:
        The best factor; all ranks agree on it.
    """
    held = {parameter: parameter.detach().clone() for parameter in start}
    losses: list[float] = []
    try:
        for factor in (0.0, *FACTORS):
            for parameter, origin in start.items():
                parameter.copy_(origin - factor * step[parameter])
            losses.append(_loss(replay))
            if not math.isfinite(losses[0]):
                return 1.0  # there is nothing to compare with: go on from where the first step was
            if losses[-1] > RISE * losses[0]:
                break
    finally:
        for parameter, value in held.items():
            parameter.copy_(value)
    tried = FACTORS[: len(losses) - 1]
    best = min(range(len(tried)), key=lambda index: losses[index + 1])
    lowered = losses[best + 1] < losses[0] * (1 - LOWER)
    return tried[best] if lowered else tried[-1] / 4


def _loss(replay: Replay) -> float:
    """Return the loss of a remembered micro-batch at these weights, without a trace; infinite if there is none."""
    trainer = replay.trainer
    with untouched(trainer, trainer.lightning_module, replay.start):
        found = replay.loss()
    loss = (
        found.detach().float() if found is not None else torch.full((), math.inf, device=trainer.strategy.root_device)
    )
    if trainer.world_size > 1:
        loss = trainer.strategy.reduce(loss, reduce_op="mean")
    return float(loss) if bool(loss.isfinite()) else math.inf
