"""The calibrating warm-up: grow all radii from tiny, the slower the less the last step pays off, and freeze them.

`s` is the common factor on the radii, `b` the weight on the old momentum, and `m = max(10, 1 / (1 - b))` the steps it
remembers. With `T_i` the last step of matrix i and `g_i` a fresh gradient,

    a = sum_i <g_i, T_i> / sum_i ||g_i|| ||T_i||             agreement of the gradient with the last step, in [-1, 1]
    P <- (1 - 1 / n) P + a / n,  Q <- (1 - 1 / n) Q + a^2 / n,  e = sqrt(Q / (2 n - 1))      for n = m and n = 2 m
    s <- (1 + r max(0, P) / max_k P_k) s     n = m, r = 1.5 / m, max_k over the ramp so far  e: standard error of P
    s <- (1 + r / 3) s                       if that is more, until the loss has fallen beyond chance
    s <- s                                   at the first P < -3.2 e, of either n, and frozen

The sums are over the matrices that the LMO steps; those of AdamW have a ramp of their own, with four times `largest`. A
loss that rises beyond chance, `largest` and `share` end a ramp as well. Methods with the second gradient freeze when
the test finds `a_old < M (a_old - a)`, with `M = 3 sqrt(m / 10)`: the best step along `T` is then within `M` steps.

The reasons for each of these, and the sources of the constants: `docs/primers/radius.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace

from lightning_gluon.radius.agreement import Agreement
from lightning_gluon.radius.observe import Observation
from lightning_gluon.radius.radii import Factors
from lightning_gluon.radius.rule import RadiusRule
from lightning_gluon.radius.saved import Saved, SavedState
from lightning_gluon.valid import number, one_of

# Sources of all of these: docs/primers/radius.md, "Constants".
LOSS_EMA = 0.9  # weight on the old average of the loss
MEMORIES = (1, 2)  # memories that the agreement is averaged over: one shows a clear turn soon, two show a faint one
AGREEMENT_ERRORS = 3.2  # standard errors beyond which an agreement counts
LOSS_ERRORS = 8.0  # standard errors beyond which a rise of the loss counts
LOSS_STEPS = 20  # steps after which the average loss is judged; half as many are its beginning
MIN_GROWTH_TO_STOP = 4.0  # growth before a stop counts: a start far too small gives chance many steps to stop at
STEP_BACK = 0.48  # factor on radii if the ramp has gone too far
SHORTEST_MEMORY = 10.0  # steps that a momentum of .9 remembers
GROWTH = 1.5  # growth over one memory at full agreement
PLATEAU_SHARE = 1 / 3  # share of the growth while the agreement says nothing
MARGIN = 3.0  # steps to the best one along the last direction at which the two-point form stops, at a momentum of .9
ADAMW_LARGEST = 4.0  # `largest` of the groups that AdamW steps next to an LMO, in units of that of the LMO

ENDS = AGREEMENT, CURVATURE, LOSS, LARGEST, SHARE, HELD = "agreement", "curvature", "loss", "largest", "share", "held"


@dataclass
class AgreementAverage:
    """Running averages of the agreement over one and two memories, and its largest one.

    Args:
        averages: Averages `P`, one per entry of `MEMORIES`.
        squares: Averages of the squares, `Q`.
        peak: Largest average over one memory so far.
        count: Agreements seen.
    """

    averages: list[float] = field(default_factory=lambda: [0.0] * len(MEMORIES))
    squares: list[float] = field(default_factory=lambda: [0.0] * len(MEMORIES))
    peak: float = 0.0
    count: int = 0

    def add(self, value: float, memory: float) -> int:
        """Add an agreement and return the sign of the averages if it is beyond chance, else 0."""
        self.count += 1
        signs = []
        for index in range(len(MEMORIES)):
            sign = self._sign(index, value, memory)
            signs.append(sign)
        self.peak = max(self.peak, self.averages[0])
        if -1 in signs:
            return -1
        return signs[0]

    def _sign(self, index: int, value: float, memory: float) -> int:
        steps = MEMORIES[index] * memory
        old = 1 - 1 / steps
        average = old * self.averages[index] + (1 - old) * value
        square = old * self.squares[index] + (1 - old) * value**2
        self.averages[index] = average
        self.squares[index] = square
        variance = square * (1 - old) / (1 + old)
        threshold = AGREEMENT_ERRORS * math.sqrt(variance)
        if average > threshold:
            return 1
        if average < -threshold:
            return -1
        return 0

    @property
    def share(self) -> float:
        """Present average over one memory as a share of the largest one; 0 if it is negative."""
        positive = max(0.0, self.averages[0])
        return positive / (self.peak or 1.0)


@dataclass
class LossAverage:
    """Running average of the training loss: has it fallen, does it rise, beyond chance?

    Args:
        mean: The average; `None` before the first loss.
        variance: Average squared distance from it.
        begin: The average at the end of the beginning; `None` before that.
        begin_error: Its standard error.
        lowest: The lowest average since.
        lowest_error: Its standard error.
        drop: Whether the loss has fallen beyond chance.
    """

    mean: float | None = None
    variance: float = 0.0
    begin: float | None = None
    begin_error: float = 0.0
    lowest: float = math.inf
    lowest_error: float = 0.0
    drop: bool = False

    def add(self, loss: float | None, step: int) -> bool:
        """Add the loss of a step of the ramp, counted from 1, and return whether losses rise beyond chance."""
        if loss is None or not math.isfinite(loss):
            return False
        error = self._update(loss)
        assert self.mean is not None
        if self.begin is None:
            if step >= LOSS_STEPS // 2:
                self.begin = self.mean
                self.begin_error = error
            return False
        fall = self.begin - self.mean
        if fall > AGREEMENT_ERRORS * math.sqrt(error * self.begin_error):
            self.drop = True
        if self.mean < self.lowest:
            self.lowest = self.mean
            self.lowest_error = error
        if step <= LOSS_STEPS:
            return False
        rise = self.mean - self.lowest
        return rise > LOSS_ERRORS * math.sqrt(error * self.lowest_error)

    def _update(self, loss: float) -> float:
        """Average, and return the standard error of the average."""
        mean = loss
        if self.mean is not None:
            mean = self.mean
        distance = (loss - mean) ** 2
        self.variance = LOSS_EMA * self.variance + (1 - LOSS_EMA) * distance
        self.mean = LOSS_EMA * mean + (1 - LOSS_EMA) * loss
        variance = self.variance * (1 - LOSS_EMA) / (1 + LOSS_EMA)
        return math.sqrt(variance)


@dataclass
class Ramp:
    """One factor on its way up, with everything that a resumed run needs.

    Args:
        scale: The factor now (`s`).
        start: The factor it started from.
        reason: End of the ramp, one of `ENDS`; empty before it.
        agreement: Averages of the agreement.
        loss: Average of the loss.
    """

    scale: float
    start: float
    reason: str = ""
    agreement: AgreementAverage = field(default_factory=AgreementAverage)
    loss: LossAverage = field(default_factory=LossAverage)

    @property
    def frozen(self) -> bool:
        """True after its end."""
        return bool(self.reason)

    def end(self, reason: str, factor: float) -> None:
        """Freeze the ramp at a factor times the present scale."""
        self.scale *= factor
        self.reason = reason

    @staticmethod
    def load(saved: Saved) -> Ramp:
        """Return the ramp that `asdict` wrote, or raise a `ValueError` if it is none."""
        saved.only([one.name for one in fields(Ramp)])
        check_reason = one_of("", *ENDS)
        return Ramp(
            scale=saved.number("scale"),
            start=saved.number("start", number(signs="< <")),
            reason=check_reason("reason", saved.value("reason"), f" in {saved.where}"),
            agreement=_load_agreement(saved.table("agreement")),
            loss=_load_loss(saved.table("loss")),
        )


def _load_agreement(saved: Saved) -> AgreementAverage:
    count = len(MEMORIES)
    return AgreementAverage(
        averages=saved.numbers("averages", number(-math.inf), count=count),
        squares=saved.numbers("squares", count=count),
        peak=saved.number("peak"),
        count=saved.whole("count"),
    )


def _load_loss(saved: Saved) -> LossAverage:
    anything = number(-math.inf, math.inf, signs="<= <=")
    return LossAverage(
        mean=saved.optional("mean"),
        variance=saved.number("variance"),
        begin=saved.optional("begin"),
        begin_error=saved.number("begin_error"),
        lowest=saved.number("lowest", anything),
        lowest_error=saved.number("lowest_error"),
        drop=saved.flag("drop"),
    )


class Calibrate(RadiusRule):
    """The rule `calibrate`: one factor on all radii, found in the first steps and then frozen.

        s <- (1 + r max(0, P) / max_k P_k) s,    r = 1.5 / m,    frozen at the first P < -3.2 e

    The symbols and the other ends of the ramp are at the top of this module. 80 % of the final factor were reached
    after 27 to 60 steps at a momentum of .9, 50 to 70 at .95, 80 to 110 at .97. A training of fewer than four times as
    many has no room for it. If the initial radii may be far too large, take a smaller `start`.

    Args:
        start: First factor (`s`); at most 1/30 of anything plausible.
        growth: Factor per step at full agreement (`1 + r`); default as above.
        shrink: Factor on `s` if the loss or `largest` ends the ramp.
        two_point: Use the form with the second gradient if the method has one.
        share: Largest share of the training to calibrate over; the step length reached then stays.
        largest: Factor at which the ramp ends, with a step back, if nothing has ended it before.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Measurements and constants: `docs/primers/radius.md`, `docs/self-tuning.md`.

    Example:
        >>> rule = Calibrate(start=0.01)
        >>> seen = [Observation(step=k, agreement=1.0 if k < 30 else -1.0, loss=3 - 0.01 * k) for k in range(100)]
        >>> factors = [rule(one) for one in seen]
        >>> round(factors[29], 4), round(max(factors), 4), round(factors[-1], 4)
        (0.6621, 0.9296, 0.9296)
    """

    needs = (Agreement,)
    ramp = True

    def __init__(
        self,
        *,
        start: float = 1 / 64,
        growth: float | None = None,
        shrink: float = STEP_BACK,
        two_point: bool = True,
        share: float = 1 / 3,
        largest: float | None = None,
    ) -> None:
        positive = number(signs="< <", none=True)
        positive("start", start)
        positive("shrink", shrink)
        positive("largest", largest)
        number(1, signs="< <", none=True)("growth", growth)
        number(0, 1, signs="< <")("share", share)
        self.growth = growth
        self.shrink = shrink
        self.two_point = two_point
        self.share = share
        self.largest = math.inf
        if largest is not None:
            self.largest = largest
        self.main = Ramp(start, start)
        self.adamw: Ramp | None = None

    @property
    def done(self) -> bool:
        """True when the radii no longer change."""
        return self.main.frozen and (self.adamw is None or self.adamw.frozen)

    @property
    def doubt(self) -> str:
        """A reason to doubt the radii: the training was too short for the ramp."""
        if self.main.reason != "share":
            return ""
        return (
            f"Calibration stopped after {100 * self.share:.0f} % of training while larger radii still reduced the "
            "loss. Train longer, raise `share`, or start from a larger radius."
        )

    def __call__(self, observation: Observation) -> float | Factors:
        """Return the factor on all radii for the coming step, or two if AdamW steps something next to an LMO."""
        if observation.adamw_agreement is not None and self.adamw is None:
            self.adamw = deepcopy(self.main)
        self._advance(self.main, observation, self.largest)
        if self.adamw is None:
            return self.main.scale
        beside = replace(
            observation,
            agreement=observation.adamw_agreement,
            reference_agreement=None,
        )
        self._advance(self.adamw, beside, ADAMW_LARGEST * self.largest)
        return Factors(self.main.scale, self.adamw.scale)

    def _advance(self, ramp: Ramp, observation: Observation, largest: float) -> None:
        """Advance one ramp by one step."""
        agreement = observation.agreement
        if ramp.frozen or agreement is None or not math.isfinite(agreement):
            return
        memory = max(SHORTEST_MEMORY, 1 / (1 - observation.momentum))
        two_point = self.two_point and observation.reference_agreement is not None
        evidence = _slack(observation, memory) if two_point else agreement
        sign = ramp.agreement.add(evidence, memory)
        rising = ramp.loss.add(observation.loss, ramp.agreement.count)
        reason = self._end(ramp, observation, largest, sign, rising, two_point)
        if reason:
            back = self.shrink if reason in (LOSS, LARGEST) else 1.0
            ramp.end(reason, back * observation.warming_up)
            return
        growth = GROWTH / memory
        if self.growth is not None:
            growth = self.growth - 1
        ramp.scale *= 1 + _gain(ramp, sign, two_point) * growth

    def _end(
        self, ramp: Ramp, observation: Observation, largest: float, sign: int, rising: bool, two_point: bool
    ) -> str:
        """Return why the ramp ends here; empty if it goes on."""
        judged = ramp.scale >= MIN_GROWTH_TO_STOP * ramp.start
        limit = ramp.scale * observation.warming_up >= largest
        turned = judged and (sign < 0 or rising)
        if limit or turned:
            if rising:
                return LOSS
            if sign >= 0:
                return LARGEST
            return CURVATURE if two_point else AGREEMENT
        total = observation.total_steps
        if total is not None and observation.step >= self.share * total:
            return HELD if ramp.loss.drop and sign <= 0 else SHARE
        return ""

    def state_dict(self) -> SavedState:
        """Return plain values."""
        adamw = None
        if self.adamw is not None:
            adamw = asdict(self.adamw)
        return {"main": asdict(self.main), "adamw": adamw}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore them, or raise a `ValueError` before anything has changed."""
        saved = Saved(state, "RadiusScheduler.rule")
        main = Ramp.load(saved.table("main"))
        adamw = saved.part("adamw")
        self.adamw = None if adamw is None else Ramp.load(adamw)
        self.main = main


def _gain(ramp: Ramp, sign: int, two_point: bool) -> float:
    """Return the growth of a step as a share of the growth at full agreement."""
    if two_point:
        return PLATEAU_SHARE if sign <= 0 else 2 * PLATEAU_SHARE
    if ramp.loss.drop:
        return ramp.agreement.share
    return max(ramp.agreement.share, PLATEAU_SHARE)


def _slack(observation: Observation, memory: float) -> float:
    """Return how far the best step along the last direction is beyond its margin: `a_old - margin (a_old - a)`."""
    new, old = observation.agreement, observation.reference_agreement
    assert new is not None and old is not None
    margin = MARGIN * math.sqrt(memory / SHORTEST_MEMORY)
    return old - margin * (old - new)
