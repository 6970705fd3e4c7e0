"""Schedules of `lr`: the factor on every group's `lr` along training, and the momentum of the theory.

With `K` steps in all, `W` warmup steps and `k` counted from 0, the factor is `min(1, (k + 1) / W)` times

    constant   1
    cosine     (1 + cos(pi (k - W) / (K - W))) / 2
    linear     1 - (k - W) / (K - W)
    wsd        1, then linear to 0 over the last `decay` share of the steps (warmup - stable - decay)
    theory     (k + 1)^-p and 1 - b = (k + 1)^-q
    theory_constant    K^-p and 1 - b = K^-q at every step: the constant form of the same rates

where `(p, q)` is `(3/4, 1/2)` for Gluon (Theorem 2) and `(2/3, 2/3)` for MVR and LiMuon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lightning_gluon.optimizer import Gluon
from lightning_gluon.radius.radii import stepped_by_adamw
from lightning_gluon.radius.saved import Saved, SavedState
from lightning_gluon.valid import number, one_of, pair_of, whole

Count = Callable[["Schedule", int], int]


@dataclass(frozen=True)
class ScheduleShape:
    """One kind of schedule.

    Args:
        factor: Factor on `lr` at a step.
        length: Whether it needs to know the number of steps.
        count: The step count whose powers are the theory's rates; `None` for schedules that follow no theorem.
    """

    factor: Callable[[Schedule, int], float]
    length: bool = True
    count: Count | None = None


@dataclass(frozen=True)
class Schedule:
    """The factor on `lr`, and the momentum of the theory, as pure functions of the step.

        lr[k] = lr * factor(k),        factor(k) = min(1, (k + 1) / warmup) * shape(k)

    The shapes are the table at the top of this module. Those of the theory also set the weight `b` on the old
    momentum, `1 - b[k] = count^-q`, with `count = k + 1` or the number of all steps.

    Args:
        name: One of `SCHEDULES`.
        total_steps: Optimizer steps in all (`K`); not needed by `constant` and `theory`.
        warmup: Steps of linear warmup (`W`).
        decay: Share of the steps, in (0, 1], that `wsd` spends on its way down.
        rates: Exponents of the theory: `p` of the radius and `q` of the momentum.

    Raises:
        ValueError: If the name is unknown, a count is negative, a share is out of range, the rates are not two numbers,
            or a schedule with an end has no length.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416, Theorem 2 (3/4, 1/2).
        "LiMuon", arXiv 2509.14562 (2/3, 2/3).

    Example:
        >>> [round(Schedule("linear", total_steps=4).factor(k), 2) for k in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> Schedule("theory", rates=(0.75, 0.5)).momentum(3)
        0.5
        >>> Schedule("linear", total_steps=4).rest(1, start=0)
        0.75
    """

    name: str = "constant"
    total_steps: int | None = None
    warmup: int = 0
    decay: float = 0.2
    rates: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the schedule before anything is built on it."""
        known = one_of(*SCHEDULES)
        known("schedule", self.name)
        steps = whole(0, unit=" of steps")
        steps("warmup", self.warmup)
        share = number(0, 1, signs="< <=")
        share("decay", self.decay)
        if self.rates is not None:  # plain values, also out of a configuration's own kind of list
            two = pair_of(number())
            object.__setattr__(self, "rates", two("rates", self.rates))
        shape = SCHEDULES[self.name]
        if shape.count is not None and self.rates is None:
            raise ValueError(
                f"Schedule {self.name!r} needs a method whose theory has one. Set method='gluon', say, or 'gluon-mvr1'."
            )
        if shape.length and not _is_length(self.total_steps):
            raise ValueError(
                f"Schedule {self.name!r} needs to know its length, but `total_steps` is {self.total_steps!r}. "
                "Pass `total_steps=`, or set `max_steps` or `max_epochs` on the Trainer."
            )

    def factor(self, step: int) -> float:
        """Return the factor on `lr`.

        Args:
            step: Steps taken before (`k`).
        """
        ramp = 1.0
        if self.warmup:
            ramp = min(1.0, (step + 1) / self.warmup)
        shape = SCHEDULES[self.name]
        return ramp * shape.factor(self, step)

    def momentum(self, step: int) -> float | None:
        """Return the theory's weight on the old momentum, `None` if the schedule has no say in it.

        Args:
            step: Steps taken before (`k`).
        """
        count = SCHEDULES[self.name].count
        if count is None or self.rates is None:
            return None
        exponent = -self.rates[1]
        return 1 - count(self, step) ** exponent

    def rest(self, step: int, start: float) -> float:
        """Return the share of the steps from `start` to the end that are still to come, in [0, 1].

        Args:
            step: Steps taken before (`k`).
            start: Step at which the share is 1.
        """
        assert self.total_steps is not None
        span = max(1, self.total_steps - start)
        share = (self.total_steps - step) / span
        return min(1.0, max(0.0, share))


def _is_length(steps: object) -> bool:
    if not isinstance(steps, (int, float)):
        return False
    return math.isfinite(steps) and steps >= 1


def _level(schedule: Schedule, step: int) -> float:
    return 1.0


def _cosine(schedule: Schedule, step: int) -> float:
    progress = 1 - schedule.rest(step, schedule.warmup)
    wave = math.cos(math.pi * progress)
    return (1 + wave) / 2


def _linear(schedule: Schedule, step: int) -> float:
    return schedule.rest(step, schedule.warmup)


def _wsd(schedule: Schedule, step: int) -> float:
    assert schedule.total_steps is not None
    steps_down = schedule.decay * schedule.total_steps
    share = (schedule.total_steps - step) / steps_down
    return min(1.0, max(0.0, share))


def _steps_so_far(schedule: Schedule, step: int) -> int:
    return step + 1


def _all_steps(schedule: Schedule, step: int) -> int:
    assert schedule.total_steps is not None
    return schedule.total_steps


def _theory(count: Count) -> Callable[[Schedule, int], float]:
    def factor(schedule: Schedule, step: int) -> float:
        assert schedule.rates is not None
        return count(schedule, step) ** -schedule.rates[0]

    return factor


SCHEDULES: dict[str, ScheduleShape] = {
    "constant": ScheduleShape(_level, length=False),
    "cosine": ScheduleShape(_cosine),
    "linear": ScheduleShape(_linear),
    "wsd": ScheduleShape(_wsd),
    "theory": ScheduleShape(_theory(_steps_so_far), length=False, count=_steps_so_far),
    "theory_constant": ScheduleShape(_theory(_all_steps), count=_all_steps),
}


class RadiusSchedule(LRScheduler):
    """Step a `Schedule`: it multiplies every group's `lr`, and sets `momentum` if the theory says how.

        lr_i[k] = lr_i * factor(k),        b[k] = momentum(k),        radius_i stays

    The radii of the groups are never touched, so the geometry and the schedule stay apart. AdamW groups keep their
    momentum: `betas` govern their averages.

    Args:
        optimizer: The optimizer whose groups are scheduled (`lr_i`: the group's `lr` at construction).
        schedule: The schedule to follow (`factor`, `momentum`), one `step()` per optimizer step.
        last_epoch: The last step taken (`k`), counted from 0; -1 at the start.

    Raises:
        ValueError: On loading, if the saved learning rates or counts are missing, negative or no numbers.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> import torch
        >>> optimizer = Gluon(torch.nn.Linear(2, 2), lr=0.1)
        >>> scheduler = RadiusSchedule(optimizer, Schedule("linear", total_steps=2))
        >>> optimizer.step(); scheduler.step(); scheduler.get_last_lr()[0]
        0.05
    """

    def __init__(self, optimizer: Gluon, schedule: Schedule, last_epoch: int = -1) -> None:
        self.schedule = schedule
        self.first_groups = len(optimizer.param_groups)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the groups' `lr` at the present step, and set their momentum on the way."""
        momentum = self.schedule.momentum(self.last_epoch)
        if momentum is not None:
            for group in self.optimizer.param_groups:
                if not stepped_by_adamw(group):
                    group["momentum"] = momentum
        factor = self.schedule.factor(self.last_epoch)
        self._admit_late_groups()
        return [base * factor for base in self.base_lrs]

    def _admit_late_groups(self) -> None:
        """Let groups that were added while training follow the schedule from the `lr` that they were given last.

        A callback that added a group may go on to raise its `lr`, as `BackboneFinetuning` does.
        """
        last = max(0, self.last_epoch - 1)
        past = self.schedule.factor(last)
        for index, group in enumerate(self.optimizer.param_groups):
            if index < self.first_groups:
                continue
            if index < len(self.base_lrs) and group["lr"] == self._last_lr[index]:
                continue
            group["initial_lr"] = group["lr"]
            if past:
                group["initial_lr"] = group["lr"] / past
            start = group["initial_lr"]
            self.base_lrs[index : index + 1] = [start]

    def state_dict(self) -> SavedState:
        """Return plain values only, so that a checkpoint loads with `weights_only`."""
        state = super().state_dict()
        state["schedule"] = asdict(self.schedule)
        return state

    def load_state_dict(self, state_dict: SavedState) -> None:
        """Restore the position; the schedule itself is the one given at construction.

        Args:
            state_dict: Result of `state_dict`.

        Raises:
            ValueError: If learning rates or counts are missing, negative or no numbers; nothing is restored then.
        """
        saved = Saved(state_dict, "RadiusSchedule")
        rates = saved.numbers("base_lrs")
        saved.numbers("_last_lr", count=len(rates))
        saved.whole("first_groups")
        saved.whole("last_epoch")
        saved.whole("_step_count")
        position = {}
        for key in self.__dict__.keys() - {"optimizer", "schedule"}:
            if key in state_dict:
                position[key] = state_dict[key]
        super().load_state_dict(position)
