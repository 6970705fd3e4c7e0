"""A rule at work on the groups of one optimizer: initial radii, late groups, freezing, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace

from lightning_gluon.optimizer import Gluon
from lightning_gluon.options import Group
from lightning_gluon.radius.observe import Fields, Measurement, Observation, StepRecord, WindowLoss, measurements_of
from lightning_gluon.radius.radii import Limits, Radius, first_radius, radius_each, set_radii_, stepped_by_adamw
from lightning_gluon.radius.rule import RadiusRule
from lightning_gluon.radius.saved import Saved, SavedState
from lightning_gluon.valid import number, whole

UNCHANGED = Limits()


@dataclass
class RadiusControl:
    """Ask a rule for radii before every step, and write them into the groups within limits.

    It knows no Trainer: `begin` once, then `advance` between every backward pass and its step.

    Args:
        rule: The rule.
        limits: Limits on what it asks for.
        freeze_step: Step, or share of all steps if below 1, from which the radii stay.
        every_n_steps: Steps between two samples of the smoothness, for rules that need them.

    Attributes:
        steps: Steps taken so far.
        base: Initial radii by group name.
        radii: Radii that the rule has set, by group name; empty before the first.
        loss: Training loss of the accumulation window so far.
        measurements: The measurements that the rule needs, on the present optimizer; empty outside training.

    Raises:
        ValueError: If `freeze_step` or `every_n_steps` is out of range.
    """

    rule: RadiusRule
    limits: Limits = UNCHANGED
    freeze_step: int | float | None = None
    every_n_steps: int = 25
    steps: int = field(default=0, init=False)
    base: dict[str, Radius] = field(default_factory=dict, init=False)
    radii: dict[str, Radius] = field(default_factory=dict, init=False)
    measurements: list[Measurement] = field(default_factory=list, init=False)
    loss: WindowLoss = field(default_factory=WindowLoss, init=False)
    _optimizer: Gluon | None = field(default=None, init=False)
    _total_steps: int | None = field(default=None, init=False)
    _pending: SavedState = field(default_factory=dict, init=False)  # measurements' states, until there is an optimizer

    def __post_init__(self) -> None:
        """Check the values."""
        positive = number(signs="< <", none=True)
        positive("freeze_step", self.freeze_step)
        at_least_one = whole(1)
        at_least_one("every_n_steps", self.every_n_steps)
        self.kinds = measurements_of(self.rule)

    # ------------------------------------------------------------------ begin and end

    def begin(self, optimizer: Gluon, total_steps: int | None) -> None:
        """Take the initial radii, or write those of the run that is resumed.

        Args:
            optimizer: The optimizer.
            total_steps: Steps in all; `None` if nobody knows.

        Raises:
            ValueError: If `freeze_step` is a share of an unknown length, or saved radii are another model's.
        """
        if total_steps is None and self.freeze_step is not None and self.freeze_step < 1:
            raise ValueError(
                f"`freeze_step`={self.freeze_step} is a share of all steps, but the Trainer does not know how many "
                "there will be. Give a number of steps, or set `max_steps`."
            )
        groups = optimizer.param_groups
        for group in groups:
            for table in (self.base, self.radii):
                _check_count(table.get(group["name"]), group)
        measurements = [kind(optimizer) for kind in self.kinds]
        for measurement in measurements:
            state = self._pending.get(type(measurement).__name__)
            if state is not None:
                measurement.load_state_dict(state)
        self._pending = {}
        self._optimizer = optimizer
        self._total_steps = total_steps
        self.measurements = measurements
        for group in groups:
            name = group["name"]
            self.base.setdefault(name, deepcopy(group["radius"]))
            if name in self.radii:
                group["radius"] = deepcopy(self.radii[name])

    def release(self, *, keep: bool = False) -> None:
        """Let go of the optimizer.

        Args:
            keep: Keep the measurements' states: a checkpoint may be saved after this.
        """
        states = self._states()
        self._pending = states if keep else {}
        self._optimizer = None
        self.measurements = []

    # ------------------------------------------------------------------ one step

    @property
    def second_gradient(self) -> bool:
        """True if a measurement needs the gradient of one sample at two iterates."""
        return any(kind.second_gradient for kind in self.kinds)

    @property
    def sampled(self) -> bool:
        """True if the coming step has a sample of the smoothness, which shows it and the last iterate."""
        due = (self.steps + 1) % self.every_n_steps == 0
        return due and self.second_gradient and not self.frozen

    @property
    def frozen(self) -> bool:
        """True if the radii stay from now on."""
        if self.rule.done:
            return True
        if self.freeze_step is None:
            return False
        end = float(self.freeze_step)
        if end < 1:
            end = math.inf if self._total_steps is None else end * self._total_steps
        return self.steps >= end

    def advance(self, record: StepRecord) -> None:
        """Set the radii of the coming step, unless they are frozen.

        Args:
            record: What was measured since the last step.
        """
        assert self._optimizer is not None
        self._admit(self._optimizer.param_groups)
        if not self.frozen:
            self._ask(self._optimizer, record)
        self.steps += 1
        self.loss.clear()
        if self.frozen:
            for measurement in self.measurements:
                measurement.forget()

    def _ask(self, optimizer: Gluon, record: StepRecord) -> None:
        groups = optimizer.param_groups
        answer = self.rule(self._observe(optimizer, record))
        if answer is not None:
            limits = self.limits
            if self.steps == 0 and self.rule.ramp:  # there is no earlier radius to average with
                limits = replace(limits, smoothing=0.0)
            set_radii_(groups, answer, base=self.base, limits=limits)
            self.radii = {}
            for group in groups:
                self.radii[group["name"]] = deepcopy(group["radius"])
        if not self.rule.done:
            for measurement in self.measurements:
                measurement.remember()

    def _observe(self, optimizer: Gluon, record: StepRecord) -> Observation:
        measured: Fields = {}
        for measurement in self.measurements:
            measured.update(measurement.observe(record))
        return Observation(
            step=self.steps,
            total_steps=self._total_steps,
            momentum=max(group["momentum"] for group in optimizer.param_groups),
            variance_reduced=optimizer.reference_point == "previous",
            base=self._base_of_layers(optimizer.param_groups),
            **measured,
        )

    def _base_of_layers(self, groups: list[Group]) -> dict[str, float]:
        found: dict[str, float] = {}
        for group in groups:
            radii = radius_each(self.base[group["name"]], group)
            found.update(zip(group["param_names"], radii, strict=True))
        return found

    def _admit(self, groups: list[Group]) -> None:
        """Take in groups that were added late: a factor on the radius that all others of their kind have is theirs."""
        for group in groups:
            if group["name"] in self.base:
                continue
            self.base[group["name"]] = deepcopy(group["radius"])
            factors = self._factors(groups, adamw=stepped_by_adamw(group))
            if factors and math.isclose(min(factors), max(factors)):
                set_radii_([group], factors[0], base=self.base, limits=UNCHANGED)
                self.radii[group["name"]] = deepcopy(group["radius"])

    def _factors(self, groups: list[Group], *, adamw: bool) -> list[float]:
        """Return the factors on the initial radii of all groups that AdamW steps, or of all others."""
        factors = []
        for group in groups:
            name = group["name"]
            if stepped_by_adamw(group) != adamw or name not in self.radii:
                continue
            base = first_radius(self.base[name])
            if base:
                factor = first_radius(self.radii[name]) / base
                factors.append(factor)
        return factors

    def outcome(self) -> str:
        """Return the rule's result, as a sentence."""
        parts = [f"{name} {first_radius(radius):.4g}" for name, radius in self.radii.items()]
        radii = ", ".join(parts)
        if self.rule.doubt:
            return f"{self.rule.doubt} Radii stay at {radii}."
        return f"`RadiusScheduler`: radii frozen at {radii} before step {self.steps - 1}."

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> SavedState:
        """Return plain values, and the tensors of the measurements while they are needed."""
        return {
            "steps": self.steps,
            "loss": self.loss.state_dict(),
            "base": deepcopy(self.base),
            "radii": deepcopy(self.radii),
            "rule": self.rule.state_dict(),
            "measurements": self._states(),
        }

    def _states(self) -> SavedState:
        if not self.measurements:
            return self._pending
        states = {}
        for measurement in self.measurements:
            name = type(measurement).__name__
            states[name] = measurement.state_dict()
        return states

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore them, or raise a `ValueError` before anything has changed.

        Args:
            state: Result of `state_dict`.
        """
        saved = Saved(state, "RadiusScheduler")
        steps = saved.whole("steps")
        base = saved.radii("base")
        radii = saved.radii("radii")
        measurements = saved.table("measurements")
        loss = WindowLoss()
        loss.load_state_dict(saved.value("loss"))
        self.rule.load_state_dict(saved.value("rule"))
        self.loss = loss
        self.steps = steps
        self.base = base
        self.radii = radii
        self._pending = dict(measurements.state)


def _check_count(radius: Radius | None, group: Group) -> None:
    """Raise if there is one radius per parameter of another group."""
    if isinstance(radius, list) and len(radius) != len(group["params"]):
        raise ValueError(
            f"This RadiusScheduler holds {len(radius)} radii for group {group['name']!r}, which has "
            f"{len(group['params'])} parameters: they are another model's. Use a new one."
        )
