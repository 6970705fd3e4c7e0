"""The calibrating warm-up: grow all radii from tiny, the slower the less the last step pays off, and keep them.

With `s` the common factor on the radii, `b` the weight on the old momentum, `m = max(10, 1 / (1 - b))` the steps it
remembers, `T_i` the last step of matrix i and `g_i` a fresh gradient,

    a = sum_i <g_i, T_i> / sum_i ||g_i|| ||T_i||             agreement of the gradient with the last step, in [-1, 1]
    P <- (1 - 1 / n) P + a / n,  Q <- (1 - 1 / n) Q + a^2 / n,  e = sqrt(Q / (2 n - 1))      for n = m and n = 2 m
    s <- (1 + r max(0, P) / max_k P_k) s     n = m, r = 1.5 / m, max_k over the ramp so far  e: standard error of P
    s <- (1 + r / 3) s                       where that is more, until the loss has fallen beyond chance
    s <- s                                   at the first P < -3.2 e, of either n, and frozen

The sums are over the matrices that the LMO steps. What AdamW steps beside them goes on agreeing long after they do not,
and has a ramp of its own, by the same rule over its own matrices, with four times `largest`. The agreement falls as `s`
nears the radius from which steps jump over the minimum along them; growth falls with it, and there it ends. `P` is seen
late, but a ramp that has slowed down does not overshoot meanwhile, and the steps it takes while it waits are ordinary
ones: there is nothing to step back from.

A fixed step along a direction of mere noise only bounces, which makes the agreement of a batch as often negative as
positive long before the radii matter. On a plateau it has no sign, so `s` grows whatever `P` is until the loss has
fallen: its average over 10 steps to 3.2 standard errors below that of the first 10, counted in the geometric mean of
the two errors. To freeze, `P` has to be negative by as many: the average over `m` steps sees a clear turn soon, that
over `2 m` a faint one. A loss whose average rises 8 standard errors above its lowest ends the ramp as well, and takes
it back to 0.48 s. No stop is believed before `s` has grown fourfold.

In a network without normalisation, steps may pay off at first that are twenty times too long for the whole training: no
look at the last step tells. `largest` ends the ramp there at the latest, with the same step back; `lr="auto"` sets it.

A method that takes the second gradient has the curvature along its last step from one and the same sample, and freezes
when the best step along `T` is within `M = 3 sqrt(m / 10)` of the last one, that is when the same test finds
`a_old < M (a_old - a)`, with `a_old` the agreement of `c_old`: the longer the memory, the more steps like the last one
follow it. It grows by `1 + 2 r / 3` while the test finds the opposite, and by `1 + r / 3`
else: in proportion to `P`, or held where `P` is negative, ramps of this form came no nearer.

Where the constants come from: the step back is from a study on a byte-level GPT and a ViT at equal vector and hidden
radii; the errors and the growth are from three small tasks (`benchmarks/self_tuning.py`).
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lightning_gluon.radius.radii import Factors

__all__ = ["Calibrate", "Observation"]

KEEP = 0.9  # weight on the old average of the loss
AVERAGED = (1, 2)  # memories that the agreement is averaged over: one shows a clear turn soon, two show a faint one
# Standard errors that count, for the agreement and for the loss: picked on twelve recorded ramps of the benchmark's
# tasks; 2.5 for the agreement stopped two below a tenth of the best fixed radius, and 6 for the loss two below a half.
ERRORS = 3.2
LOSS_ERRORS = 8.0
SETTLED = 20  # steps after which the average loss is judged; half as many are its beginning
BELIEVED = 4.0  # growth before a stop is believed: a start far too small gives chance many steps to stop at
BACK = 0.48  # factor where the ramp has gone too far
MEMORY = 10.0  # steps that a momentum of .9 remembers
GROWTH = 1.5  # growth over one memory at full agreement; 2 landed at 1.5 times the best radius on text
UNSEEN = 1 / 3  # share of it while the agreement says nothing
# Two-point form: stop when the best step along the last direction is less than this many steps long, at a momentum of
# .9; times sqrt(m / 10) in general. Without the root ramps at .97 ended at twice the best radius, by 6 to 13 % too high
# a loss on the worst of eight cells; with it by 3 %.
MARGIN = 3.0
BESIDE = 4.0  # `largest` of what AdamW steps beside an LMO, in units of that of the LMO


@dataclass(frozen=True)
class Observation:
    """What a rule is shown before a step.

    Args:
        step: Steps taken so far.
        total_steps: Steps in all; `None` if nobody knows.
        momentum: Weight on the old momentum.
        agreement: Agreement of this sample's gradient with the last step, in [-1, 1]; `None` before the second step.
        reference_agreement: The same with `c_old`, this sample's gradient before the last step, over the same norms;
            `None` without one.
        beside: Agreement over what AdamW steps beside an LMO; `None` where there is no such thing.
        loss: Training loss of this step's sample; like the agreements, for rules that need `agreement`.
        layers: Readings by group or layer name, for rules that need `smoothness` (see
            `lightning_gluon.smoothness.readings`).
        variance_reduced: Whether the method takes the second gradient.
        warming_up: Share of its peak that a rising learning-rate schedule has reached; 1 when it is not rising.
    """

    step: int
    total_steps: int | None = None
    momentum: float = 0.9
    agreement: float | None = None
    reference_agreement: float | None = None
    beside: float | None = None
    loss: float | None = None
    layers: Any = None
    variance_reduced: bool = False
    warming_up: float = 1.0


@dataclass
class _State:
    """What resumes: plain numbers."""

    scale: float
    start: float
    averages: list[float] = field(default_factory=lambda: [0.0] * len(AVERAGED))
    squares: list[float] = field(default_factory=lambda: [0.0] * len(AVERAGED))
    peak: float = 0.0
    loss: float | None = None
    spread: float = 0.0
    first: float | None = None
    first_error: float = 0.0
    fallen: bool = False
    lowest: float = math.inf
    lowest_error: float = 0.0
    seen: int = 0
    frozen: bool = False
    reason: str = ""


class Calibrate:
    """The rule `calibrate`: one factor on all radii, found in the first steps and then kept.

    80 % of the final factor were reached after 27 to 60 steps at a momentum of .9, 50 to 70 at .95, 80 to 110 at .97;
    a training of fewer than four times as many has no room for it.

    Args:
        start: First factor; at most 1/30 of anything plausible.
        growth: Factor per step at full agreement; default as above.
        shrink: Factor where the loss or `largest` ends the ramp.
        two_point: Use the form with the second gradient where the method has one.
        line_search: After the first step that moves anything, look along it for the loss's minimum on a second batch,
            and start at 1/256 of that: for a start that may be too large.
        share: Largest share of the training to calibrate over; the step length reached then is kept.
        largest: Factor at which the ramp ends, with a step back, if nothing has ended it before.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> rule = Calibrate(start=0.01)
        >>> seen = [Observation(step=k, agreement=1.0 if k < 30 else -1.0, loss=3 - 0.01 * k) for k in range(100)]
        >>> factors = [rule(one) for one in seen]
        >>> round(factors[29], 4), round(max(factors), 4), round(factors[-1], 4)
        (0.6621, 0.9296, 0.9296)
    """

    needs = "agreement"

    def __init__(
        self,
        *,
        start: float = 1 / 64,
        growth: float | None = None,
        shrink: float = BACK,
        two_point: bool = True,
        line_search: bool = False,
        share: float = 1 / 3,
        largest: float | None = None,
    ) -> None:
        _check("start", start, 0, math.inf)
        _check("growth", growth, 1, math.inf)
        _check("shrink", shrink, 0, math.inf)
        _check("share", share, 0, 1)
        _check("largest", largest, 0, math.inf)
        self.growth = growth
        self.shrink = shrink
        self.two_point = two_point
        self.line_search = line_search
        self.share = share
        self.largest = math.inf if largest is None else largest
        self.state = _State(start, start)
        self.beside: _State | None = None

    @property
    def done(self) -> bool:
        """True when the radii no longer change."""
        return self.state.frozen and (self.beside is None or self.beside.frozen)

    def __call__(self, seen: Observation) -> float | Factors:
        """Return the factor on all radii for the coming step, or two where AdamW steps something beside an LMO."""
        if seen.beside is not None and self.beside is None:
            self.beside = deepcopy(self.state)
        self._advance(self.state, seen, self.largest)
        if self.beside is None:
            return self.state.scale
        self._advance(
            self.beside, replace(seen, agreement=seen.beside, reference_agreement=None), BESIDE * self.largest
        )
        return Factors(self.state.scale, self.beside.scale)

    def _advance(self, state: _State, seen: Observation, largest: float) -> None:
        """Advance one ramp by one step."""
        if state.frozen or seen.agreement is None or not math.isfinite(seen.agreement):
            return
        two = self.two_point and seen.reference_agreement is not None
        memory = max(MEMORY, 1 / (1 - seen.momentum))
        sign = _sign(state, _slack(seen, memory) if two else seen.agreement, memory)
        rising = _rising(state, seen.loss)
        believed = state.scale >= BELIEVED * state.start
        if state.scale * seen.warming_up >= largest or (believed and (sign < 0 or rising)):
            reason = "loss" if rising else "largest" if sign >= 0 else "curvature" if two else "agreement"
            state.scale *= (self.shrink if reason in ("loss", "largest") else 1.0) * seen.warming_up
            state.frozen, state.reason = True, reason
        elif seen.total_steps is not None and seen.step >= self.share * seen.total_steps:
            state.scale *= seen.warming_up
            state.frozen, state.reason = True, "held" if state.fallen and sign <= 0 else "share"
        else:
            paid = max(0.0, state.averages[0]) / (state.peak or 1.0)
            if two:
                paid = UNSEEN if sign <= 0 else 2 * UNSEEN
            elif not state.fallen:
                paid = max(paid, UNSEEN)
            state.scale *= 1 + paid * (self.growth - 1 if self.growth else GROWTH / memory)

    def restart(self, scale: float) -> None:
        """Start anew from a factor that a line search found."""
        self.state, self.beside = _State(scale, scale), None

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"state": asdict(self.state), "beside": None if self.beside is None else asdict(self.beside)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.state = _State(**deepcopy(state["state"]))
        self.beside = None if state["beside"] is None else _State(**deepcopy(state["beside"]))


def _sign(state: _State, value: float, memory: float) -> int:
    """Add an agreement to the averages, and return its sign where that is beyond chance, else 0."""
    signs = []
    state.seen += 1
    for index, memories in enumerate(AVERAGED):
        keep = 1 - 1 / (memories * memory)
        average = keep * state.averages[index] + (1 - keep) * value
        square = keep * state.squares[index] + (1 - keep) * value**2
        state.averages[index], state.squares[index] = average, square
        beyond = abs(average) > ERRORS * math.sqrt(square * (1 - keep) / (1 + keep))
        signs.append(int(math.copysign(beyond, average)))
    state.peak = max(state.peak, state.averages[0])
    return -1 if -1 in signs else signs[0]


def _rising(state: _State, loss: float | None) -> bool:
    """Add a loss to the averages, note whether it has fallen, and return whether it has risen beyond chance."""
    if loss is None or not math.isfinite(loss):
        return False
    state.loss = loss if state.loss is None else state.loss
    state.spread = KEEP * state.spread + (1 - KEEP) * (loss - state.loss) ** 2
    state.loss = KEEP * state.loss + (1 - KEEP) * loss
    error = math.sqrt(state.spread * (1 - KEEP) / (1 + KEEP))
    if state.first is None:
        if state.seen >= SETTLED // 2:
            state.first, state.first_error = state.loss, error
        return False
    fall = state.first - state.loss
    state.fallen = state.fallen or fall > ERRORS * math.sqrt(error * state.first_error)
    if state.loss < state.lowest:
        state.lowest, state.lowest_error = state.loss, error
    rise = state.loss - state.lowest
    return state.seen > SETTLED and rise > LOSS_ERRORS * math.sqrt(error * state.lowest_error)


def _slack(seen: Observation, memory: float) -> float:
    """Return how far the best step along the last direction is beyond its margin: `a_old - margin (a_old - a)`."""
    assert seen.agreement is not None and seen.reference_agreement is not None
    margin = MARGIN * math.sqrt(memory / MEMORY)
    return seen.reference_agreement - margin * (seen.reference_agreement - seen.agreement)


def _check(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low < value < high:
        raise ValueError(f"Expected `{name}` to satisfy {low} < {name} < {high}, but got {value!r}.")
