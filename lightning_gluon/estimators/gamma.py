"""The share of a correction: a number, or an estimate from the noise of the correction itself, `gamma="auto"`.

    gamma = <d_A, d_B> / ||(d_A + d_B) / 2||^2,        d = c_new - c_old of two halves of the batch

Noise of the halves is independent, so the product is that of the true difference with itself. Of all gamma, this one
makes the squared error `E||gamma d - E d||^2` smallest. It is not the one that trains best: what a closer estimate
follows is mostly an oscillation, which momentum should average away (`docs/primers/second-gradient.md`).

Numerator and denominator are averaged apart, over the memory of the momentum, and their ratio is kept within [0, 1].

References:
    E. Shulgin et al., "Understanding MARS", ICML 2026: `||d||^2 / mean ||d_B||^2` over 512 batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_gluon.two_point.parts import Spread

__all__ = ["MOMENTS", "estimated_gamma", "is_estimated", "live_gamma", "observe_"]

ESTIMATED = "auto"
MOMENTS = "gamma_moments"  # of a group: the averages of numerator and denominator, once there are some

NO_PARTS = (
    "`{}` compares parts of a batch, but here there is one, a single micro-batch on a single rank. Accumulate two or "
    "more, as by `Trainer(accumulate_grad_batches=2)`, train on two ranks, or do without it."
)
NO_LOCAL = (
    "`{}` reads the gradients of every rank before they are averaged, which sharded parameters do not show. Use "
    "`strategy='ddp'`, or do without it."
)
NO_CALLBACK = (
    "`gamma='auto'` compares the gradients of micro-batches or ranks, which a closure or a loop adds up unseen. Train "
    "with `lightning_gluon.callbacks.VarianceReduction()` in the Trainer's callbacks, or give `gamma` a number."
)


def is_estimated(options: Mapping[str, Any]) -> bool:
    """Return whether the gamma of a group is estimated.

    Args:
        options: Options of the group.
    """
    return options.get("gamma") == ESTIMATED


def estimated_gamma(options: Mapping[str, Any]) -> float | None:
    """Return the present estimate of a group, in [0, 1]; `None` before the first.

    Args:
        options: Options of the group.

    Returns:
        The ratio of the averages; 1 if nothing has moved yet, so that there is nothing to correct.

    Example:
        >>> estimated_gamma({"gamma": "auto", "gamma_moments": (0.2, 0.8)})
        0.25
    """
    if MOMENTS not in options:
        return None
    signal, power = options[MOMENTS]
    return min(1.0, max(0.0, signal / power)) if power > 0 else 1.0


def live_gamma(options: Mapping[str, Any]) -> dict[str, float]:
    """Return this step's gamma if it is estimated, else nothing."""
    if not is_estimated(options):
        return {}
    estimate = estimated_gamma(options)
    return {"gamma": 1.0 if estimate is None else estimate}  # the first step has no difference to correct


def observe_(group: dict[str, Any], spread: Spread | None) -> None:
    """Add a reading to the averages of a group.

    Args:
        group: A group whose gamma is estimated.
        spread: Power and signal of this step's difference; `None` if the batch had one part.

    Raises:
        ValueError: If there is no reading, and none before.
    """
    if spread is None:
        if MOMENTS not in group:
            raise ValueError(NO_PARTS.format("gamma='auto'"))
        return
    if not math.isfinite(spread.power):
        return
    kept = group["momentum"] if MOMENTS in group else 0.0
    signal, power = group.get(MOMENTS, (0.0, 0.0))
    group[MOMENTS] = (kept * signal + (1 - kept) * spread.signal, kept * power + (1 - kept) * spread.power)
