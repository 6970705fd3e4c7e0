"""How long a step is along training: the schedules that multiply every group's `lr`, and the momentum of the theory.

With `K` steps in all, `W` warmup steps and `k` counted from 0, the factor on `lr` is `min(1, (k + 1) / W)` times

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
from dataclasses import asdict, dataclass

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lightning_gluon.optimizer import Gluon

__all__ = ["SCHEDULES", "RadiusSchedule", "Schedule"]

SCHEDULES = ("constant", "cosine", "linear", "wsd", "theory", "theory_constant")


@dataclass(frozen=True)
class Schedule:
    """The factor on `lr`, and the momentum of the theory, as pure functions of the step.

    Args:
        name: One of `SCHEDULES`.
        total_steps: Optimizer steps in all; not needed by `constant` and `theory`.
        warmup: Steps of linear warmup.
        decay: Share of the steps that `wsd` spends on its way down.
        rates: Exponents `(radius, momentum)` of the theory.

    Raises:
        ValueError: If the name is unknown, a count is negative, or a schedule with an end has no length.

    Example:
        >>> [round(Schedule("linear", total_steps=4).factor(k), 2) for k in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> Schedule("theory", rates=(0.75, 0.5)).momentum(3)
        0.5
    """

    name: str = "constant"
    total_steps: int | None = None
    warmup: int = 0
    decay: float = 0.2
    rates: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the schedule before anything is built on it."""
        if self.name not in SCHEDULES:
            raise ValueError(f"Expected `schedule` to be one of {', '.join(SCHEDULES)}, but got {self.name!r}.")
        if not (isinstance(self.warmup, int) and self.warmup >= 0):
            raise ValueError(f"Expected `warmup` to be a whole number of steps >= 0, but got {self.warmup!r}.")
        if not (isinstance(self.decay, (int, float)) and 0 < self.decay <= 1):
            raise ValueError(f"Expected `decay` to satisfy 0 < decay <= 1, but got {self.decay!r}.")
        if self.name in ("theory", "theory_constant") and self.rates is None:
            raise ValueError(
                f"Schedule {self.name!r} needs a method whose theory has one, such as 'gluon' or 'gluon-mvr1'."
            )
        known = isinstance(self.total_steps, (int, float)) and math.isfinite(self.total_steps) and self.total_steps >= 1
        if self.name not in ("constant", "theory") and not known:
            raise ValueError(
                f"Schedule {self.name!r} needs to know its length, but `total_steps` is {self.total_steps!r}. "
                "Pass `total_steps=`, or set `max_steps` or `max_epochs` on the Trainer."
            )

    def factor(self, step: int) -> float:
        """Return what `lr` is multiplied by at a step counted from 0."""
        ramp = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return ramp * self._decay(step)

    def _decay(self, step: int) -> float:
        theory = self._theory(step)
        if theory is not None:
            return theory[0]
        if self.name == "constant" or self.total_steps is None:  # only a constant one is built without a length
            return 1.0
        left = min(1.0, max(0.0, (self.total_steps - step) / max(1, self.total_steps - self.warmup)))
        if self.name == "linear":
            return left
        if self.name == "cosine":
            return (1 + math.cos(math.pi * (1 - left))) / 2
        return min(1.0, max(0.0, (self.total_steps - step) / (self.decay * self.total_steps)))

    def momentum(self, step: int) -> float | None:
        """Return the theory's weight on the old momentum at a step, or `None` where the schedule leaves it alone."""
        theory = self._theory(step)
        return None if theory is None else 1 - theory[1]

    def _theory(self, step: int) -> tuple[float, float] | None:
        """Return the theory's factor on `lr` and its weight on the new gradient, `None` for the other schedules."""
        count = {"theory": step + 1, "theory_constant": self.total_steps}.get(self.name)
        if count is None or self.rates is None:
            return None
        return count ** -self.rates[0], count ** -self.rates[1]


class RadiusSchedule(LRScheduler):
    """Step a `Schedule`: multiplies every group's `lr`, and sets `momentum` where the theory says how.

    The radii of the groups are never touched, so the geometry and the schedule stay apart. AdamW groups, whose averages
    are governed by `betas`, keep their momentum.

    Args:
        optimizer: The optimizer whose groups are scheduled.
        schedule: The schedule to follow, one `step()` per optimizer step.
        last_epoch: The last step taken; -1 at the start.

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
                if group["estimator"] != "adamw":
                    group["momentum"] = momentum
        factor = self.schedule.factor(self.last_epoch)
        self._admit_late_groups()
        return [base * factor for base in self.base_lrs]

    def _admit_late_groups(self) -> None:
        """Let groups that were added while training follow the schedule from the `lr` that they were given last.

        A callback that added a group may go on to raise its `lr`, as `BackboneFinetuning` does.
        """
        past = self.schedule.factor(max(0, self.last_epoch - 1))
        for index, group in enumerate(self.optimizer.param_groups):
            known = index < self.first_groups
            if known or (index < len(self.base_lrs) and group["lr"] == self._last_lr[index]):
                continue
            group["initial_lr"] = group["lr"] / past if past else group["lr"]
            self.base_lrs[index : index + 1] = [group["initial_lr"]]

    def state_dict(self) -> dict:
        """Return plain values only, so that a checkpoint loads with `weights_only`."""
        return {**super().state_dict(), "schedule": asdict(self.schedule)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the position; the schedule itself is the one given at construction."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "schedule"})
