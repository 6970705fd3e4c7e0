"""The calibrating warm-up: grow all radii from tiny until the last step stops paying off, step back, keep them.

With `s` the common factor on the radii, `u_i` layer i's step length at `s = 1`, `b` the weight on the old momentum and
`m = max(10, 1 / (1 - b))` the steps it remembers,

    P <- 0.8 P + 0.2 sum_i u_i <g_i^k, D_i^{k-1}>          agreement of a fresh gradient with the last step: unbiased
    s <- (1 + 1 / (2 m)) s                                 while P > 0
    s <- (1 + 1 / (2 m))^-m s,  then frozen                at the first P < 0, that is about 0.61 s

The stop is seen about `m` steps late, and the step back undoes exactly the growth of those steps, so growth and shrink
both follow `1 / (1 - b)`. A method that takes the second gradient `c_old` also has the curvature along its last step:

    a <- 0.8 a + 0.2 sum_i u_i <c_old_i, D_i>,   h <- 0.8 h + 0.2 sum_i u_i <c_old_i - c_new_i, D_i> / s      same
    sample stop at a < 3 s h                                      the best step along D, `a / h`, is within three of
    this one
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Calibrate", "Observation"]

KEEP = 0.8  # weight on the old average of the agreement
MEMORY = 10.0  # steps the average and a momentum of .9 remember; growth faster than 1 + 1/20 was measured to overshoot
MARGIN = 3.0  # two-point form: stop when the best step along the last direction is less than this many steps long


@dataclass(frozen=True)
class Observation:
    """What a rule is shown before a step.

    Args:
        step: Steps taken so far.
        total_steps: Steps in all; `None` if nobody knows.
        momentum: Weight on the old momentum.
        agreement: `sum_i u_i <g_i^k, D_i^{k-1}>`: loss per unit of `s` that the last step still promises on a fresh
            sample; `None` before the second step.
        reference_agreement: The same with `c_old`, the gradient of this sample before the last step; `None` without
        one.
        layers: Readings by layer name, for rules that need `smoothness` (see `lightning_gluon.readings`).
        variance_reduced: Whether the method takes the second gradient.
        warming_up: Share of its peak that a rising learning-rate schedule has reached; 1 when it is not rising.
    """

    step: int
    total_steps: int | None = None
    momentum: float = 0.9
    agreement: float | None = None
    reference_agreement: float | None = None
    layers: Any = None
    variance_reduced: bool = False
    warming_up: float = 1.0


@dataclass
class _State:
    """What resumes: plain numbers."""

    scale: float
    average: float = 0.0
    promise: float = 0.0
    curvature: float = 0.0
    seen: int = 0
    frozen: bool = False
    reason: str = ""


class Calibrate:
    """The rule `calibrate`: one factor on all radii, found in the first steps and then kept.

    Args:
        start: First factor; at most 1/30 of anything plausible.
        growth: Factor per step; default `1 + 1 / (2 m)`.
        shrink: Factor at the stop; default `growth ** -m`.
        two_point: Use the form with the second gradient where the method has one.
        line_search: Before the second step, look along the first direction for the loss's minimum on a second batch and
            start at 1/256 of it: for a start that may be too large.
        share: Largest share of the training to calibrate over; the factor reached then is kept.
        patience: Steps before a stop is believed.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> rule = Calibrate(start=0.01, patience=1)
        >>> [round(rule(Observation(step=k, agreement=a)), 4) for k, a in enumerate([None, 1.0, 1.0, -9.0, 1.0])]
        [0.01, 0.0105, 0.011, 0.0068, 0.0068]
    """

    needs = "agreement"

    def __init__(
        self,
        *,
        start: float = 1 / 64,
        growth: float | None = None,
        shrink: float | None = None,
        two_point: bool = True,
        line_search: bool = False,
        share: float = 0.2,
        patience: int = 5,
    ) -> None:
        _check("start", start, 0, math.inf)
        _check("growth", growth, 1, math.inf)
        _check("shrink", shrink, 0, 1)
        _check("share", share, 0, 1)
        if patience < 1:
            raise ValueError(f"Expected `patience` to satisfy patience >= 1, but got {patience!r}.")
        self.growth = growth
        self.shrink = shrink
        self.two_point = two_point
        self.line_search = line_search
        self.share = share
        self.patience = patience
        self.state = _State(start)

    @property
    def done(self) -> bool:
        """True when the radii no longer change."""
        return self.state.frozen

    def __call__(self, seen: Observation) -> float:
        """Return the factor on all radii for the coming step."""
        state = self.state
        if state.frozen or seen.agreement is None or not math.isfinite(seen.agreement):
            return state.scale
        self._average(seen.agreement, seen.reference_agreement)
        memory = max(MEMORY, 1 / (1 - seen.momentum))
        growth = self.growth or 1 + 1 / (2 * memory)
        if state.seen >= self.patience and self._stop(seen):
            state.scale *= (self.shrink or growth**-memory) * seen.warming_up
            state.frozen = True
        elif seen.total_steps is not None and seen.step >= self.share * seen.total_steps:
            state.frozen, state.reason = True, "share"
        else:
            state.scale *= growth
        return state.scale

    def _average(self, new: float, old: float | None) -> None:
        state = self.state
        state.seen += 1
        state.average = _mix(state.average, new)
        if old is not None and self.two_point:
            state.promise = _mix(state.promise, old)
            state.curvature = _mix(state.curvature, (old - new) / state.scale)

    def _stop(self, seen: Observation) -> bool:
        state = self.state
        if state.average < 0:  # exactly 0: half-precision weights that steps this small do not move yet
            state.reason = "agreement"
        elif state.promise < MARGIN * state.scale * state.curvature:  # both 0 in the form with one gradient
            state.reason = "curvature"
        return bool(state.reason)

    def restart(self, scale: float) -> None:
        """Start anew from a factor that a line search found."""
        self.state = _State(scale)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.state = _State(**state)


def _mix(old: float, new: float) -> float:
    return KEEP * old + (1 - KEEP) * new


def _check(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low < value < high:
        raise ValueError(f"Expected `{name}` to satisfy {low} < {name} < {high}, but got {value!r}.")
