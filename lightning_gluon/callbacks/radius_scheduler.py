"""Radii that a rule sets while training: written to the groups' `radius`, never to `lr`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_gluon.callbacks.smoothness_monitor import SmoothnessMonitor
from lightning_gluon.optimizer import Gluon
from lightning_gluon.radius.agreement import LastStep
from lightning_gluon.radius.calibrate import Calibrate, Observation
from lightning_gluon.radius.radii import Limits, Radius, first_radius, peak_lr, set_radii_
from lightning_gluon.radius.rules import make_rule
from lightning_gluon.replay.lightning import check_log, log_values, should_log
from lightning_gluon.replay.line_search import search_along
from lightning_gluon.replay.probe import Probe, own_optimizer, unwrapped
from lightning_gluon.replay.probing import Probing, loss_scale, repeatable
from lightning_gluon.replay.replay import Replay
from lightning_gluon.smoothness.readings import combine, derive, measure

__all__ = ["RadiusScheduler"]

SEARCHED = 1 / 256  # a ramp starts at this share of what a line search found
FIRST = 1 / 256  # factor of the one step that shows the line search its direction


class RadiusScheduler(Probing):
    """Set per-group or per-layer radii during training by a rule; any learning-rate schedule works on top.

        t_i = lr * radius_i,        radius_i by the rule, lr by the schedule

    Rules: `calibrate` (grow from tiny, the slower the less the last step pays off, then freeze), `smoothness` (the
    paper's Theorem 1 on the live fit), `theory` (the papers' decays), or a function that takes a
    `lightning_gluon.radius.Observation` and returns one factor on all initial radii, or radii by group or layer
    name, or `None`. See `lightning_gluon.radius.rules`.

    While `calibrate` runs it keeps one copy of the matrices, but none of those whose previous iterate the method keeps
    anyway, and waits for the device once per step; both end when it freezes. What AdamW steps beside an LMO gets a
    factor of its own. A learning-rate warm-up may run at the same time: the radius is then frozen so that the
    calibrated step length is reached at the schedule's peak. Radii are logged as `radius/<group>`, or `radius/<layer>`
    where they differ within a group.

    Args:
        rule: A name of `lightning_gluon.radius.RULES`, a rule, or a function.
        options: Arguments of a rule given by name, such as `{"line_search": True}`.
        every_n_steps: Steps between two samples of the smoothness, for rules that need it; the method's own second
            gradient is used where it has one, else a probe pass is run.
        bounds: Smallest and largest radius, relative to the initial one.
        max_growth: Largest factor by which a radius may grow in one step.
        smoothing: Weight on the old radius, in [0, 1), of a geometric average; a ramp starts without.
        freeze_step: Step, or share of all steps if below 1, from which the radii stay.
        log: Whether to log; default: if the Trainer has a logger.

    Raises:
        ValueError: If an argument is out of range, the bounds are crossed, or a name is unknown; at the start of
            training if the rule needs a second pass that cannot be taken, logging is asked for without a logger, or
            `freeze_step` is a share of a length that nobody knows.
        TypeError: If the rule is none of the three kinds; at the start of training if the optimizer is not one of this
            library.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> scheduler = RadiusScheduler("calibrate", bounds=(1e-3, 10.0))
        >>> scheduler.rule.state.scale
        0.015625
    """

    def __init__(
        self,
        rule: str | Callable[[Observation], Any] = "calibrate",
        *,
        options: Mapping[str, Any] | None = None,
        every_n_steps: int = 25,
        bounds: tuple[float, float] | None = None,
        max_growth: float | None = None,
        smoothing: float = 0.0,
        freeze_step: int | float | None = None,
        log: bool | None = None,
    ) -> None:
        super().__init__(every_n_steps)
        if freeze_step is not None and not (isinstance(freeze_step, (int, float)) and freeze_step > 0):
            raise ValueError(f"Expected `freeze_step` to satisfy freeze_step > 0, but got {freeze_step!r}.")
        self.name = rule if isinstance(rule, str) else getattr(rule, "__name__", type(rule).__name__)
        self.rule = make_rule(rule, options)
        self.needs = getattr(self.rule, "needs", None)
        if self.needs not in ("agreement", "smoothness", None):
            raise ValueError(
                f"Expected `needs` of the rule to be 'agreement', 'smoothness' or None, but got {self.needs!r}."
            )
        self.limits = Limits(bounds, max_growth, smoothing)
        self.freeze_step = freeze_step
        self.logging = log  # Lightning sets `log` on callbacks
        self.loss: Any = 0.0  # of the window so far; a tensor, so that nobody waits for it
        self.parts = 0  # micro-batches in it
        self.base: dict[str, Radius] = {}
        self.radii: dict[str, Radius] = {}
        self._loaded: dict[str, Any] | None = None
        self._total: int | None = None
        self._logs = False
        self._last: LastStep | None = None
        self._replay: Replay | None = None
        self._searchable = False
        self._searching = isinstance(self.rule, Calibrate) and self.rule.line_search  # a search is still to come

    @property
    def state_key(self) -> str:
        """Tell instances apart by their rule."""
        return self._generate_state_key(rule=self.name)

    @staticmethod
    def attach(trainer: Any, rule: str = "calibrate", **arguments: Any) -> None:
        """Add a scheduler to a Trainer that has none, also after checkpoints were read.

        Args:
            trainer: The Trainer.
            rule: The rule.
            **arguments: Further arguments of the scheduler.

        Raises:
            ValueError: If the Trainer has a scheduler with another rule.
        """
        scheduler = RadiusScheduler(rule, **arguments)
        for present in (callback for callback in trainer.callbacks if isinstance(callback, RadiusScheduler)):
            if isinstance(present.rule, type(scheduler.rule)):
                return
            raise ValueError(
                f"`lr='auto'` sets the radii by the rule {rule!r}, but the Trainer has a RadiusScheduler with the rule "
                f"{present.name!r} already. Pass a number as `lr`, or take that callback away."
            )
        scheduler._precede_monitors(trainer)
        # Callback states are restored before optimizers are configured; one that comes later looks for its own.
        loaded = getattr(trainer._checkpoint_connector, "_loaded_checkpoint", None) or {}
        state = loaded.get("callbacks", {}).get(scheduler.state_key)
        if state:
            scheduler.load_state_dict(deepcopy(state))

    # ------------------------------------------------------------------ begin and end

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Move before the monitors, which then see the radius of the step to come."""
        self._precede_monitors(trainer)

    def _precede_monitors(self, trainer: Any) -> None:
        others = [callback for callback in trainer.callbacks if callback is not self]
        monitors = [index for index, callback in enumerate(others) if isinstance(callback, SmoothnessMonitor)]
        place = monitors[0] if monitors else len(others)
        if self not in trainer.callbacks or monitors:
            trainer.callbacks = [*others[:place], self, *others[place:]]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the initial radii, or those of the run that is resumed, and find out what can be measured."""
        self._release()
        optimizer = own_optimizer(trainer)
        self._logs = check_log(trainer, self.logging, "RadiusScheduler")
        _refuse(self.name, self.needs, self._searching, optimizer, repeatable=repeatable(pl_module))
        self._trainer, self._last = trainer, LastStep(optimizer)
        total = trainer.estimated_stepping_batches  # where nobody knows, infinite or -1
        self._total = int(total) if 0 < total < math.inf else None
        if self._total is None and self.freeze_step is not None and self.freeze_step < 1:
            raise ValueError(
                f"`freeze_step`={self.freeze_step} is a share of all steps, but the Trainer does not know how many "
                "there will be. Give a number of steps, or set `max_steps`."
            )
        for group in optimizer.param_groups:
            self.base.setdefault(group["name"], deepcopy(group["radius"]))
            radius = deepcopy(self.radii.get(group["name"], group["radius"]))
            if isinstance(radius, list) and len(radius) != len(group["params"]):
                raise ValueError(
                    f"This RadiusScheduler holds {len(radius)} radii for group {group['name']!r}, which has "
                    f"{len(group['params'])} parameters: they are another model's. Use a new one."
                )
            group["radius"] = radius
        if self._searching and self.steps == 0:
            self.rule.restart(FIRST)
        if self.needs == "smoothness":
            self._probe = Probe(optimizer, optimizer.layers(), same_sample=True)
        self._load()
        if self._searching or (self._probe is not None and self._probe.probing):
            self._listen()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the Trainer as it was, but keep the state: a checkpoint may be saved after this."""
        self._loaded = self.state_dict()
        self._release()

    def _release(self) -> None:
        super()._release()
        self._last = self._replay = None
        self._searchable = False

    # ------------------------------------------------------------------ one micro-batch

    def _entry(self, training_step: Callable, args: tuple, kwargs: dict) -> None:
        super()._entry(training_step, args, kwargs)
        # A step may skip its micro-batch: then the next one.
        if self._searching and self.steps and not (self._searchable or self._frozen):
            self._replay = Replay(self._trainer, training_step, args, kwargs, self._moving)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Add up the loss of the window."""
        self._searchable = self._replay is not None
        if self.needs == "agreement" and self._last is not None and not self._frozen:
            self.loss = self.loss + loss.detach().float() / loss_scale(trainer)
            self.parts += 1

    # ------------------------------------------------------------------ one step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Measure what the rule needs, and set the radii of the coming step."""
        last = self._last
        if last is None or unwrapped(optimizer) is not last.optimizer:
            return
        self._admit(last.optimizer.param_groups)
        if not self._frozen:
            self._advance(trainer, last)
        self.steps += 1
        self.loss, self.parts = 0.0, 0
        if self._frozen:  # nothing is measured any more
            last.before, self._probe = {}, None
        if self._logs and should_log(trainer):
            log_values(trainer, _named(last.optimizer))

    def _admit(self, groups: list[dict[str, Any]]) -> None:
        """Take in groups that were added late: a factor on the radius that all others of their kind have is theirs."""
        for group in (group for group in groups if group["name"] not in self.base):
            self.base[group["name"]] = deepcopy(group["radius"])
            alike = [other for other in groups if (other["estimator"] == "adamw") == (group["estimator"] == "adamw")]
            pairs = [
                (self.radii[other["name"]], self.base[other["name"]]) for other in alike if other["name"] in self.radii
            ]
            factors = [first_radius(radius) / first_radius(base) for radius, base in pairs if first_radius(base)]
            if factors and math.isclose(min(factors), max(factors)):
                set_radii_([group], factors[0], base=self.base, limits=Limits())
                self.radii[group["name"]] = deepcopy(group["radius"])

    @property
    def _frozen(self) -> bool:
        if getattr(self.rule, "done", False):
            return True
        if self.freeze_step is None:
            return False
        if self.freeze_step < 1:
            return self._total is not None and self.steps >= self.freeze_step * self._total
        return self.steps >= self.freeze_step

    def _advance(self, trainer: Any, last: LastStep) -> None:
        groups = last.optimizer.param_groups
        if self._replay is not None and self._searchable:
            step = last.unit_step()
            if any(bool(part.any()) for part in step.values()):  # else none was taken: after an overflow, at lr = 0
                self.rule.restart(search_along(self._replay, last.before, step) * SEARCHED)
                self._searching = False
        self._replay, self._searchable = None, False
        proposal = self.rule(self._observe(trainer, last))
        if proposal is not None:
            # A ramp starts where it starts: no step has been taken with the radius before.
            first = self.steps == 0 and isinstance(self.rule, Calibrate)
            limits = replace(self.limits, smoothing=0.0) if first else self.limits
            set_radii_(groups, proposal, base=self.base, limits=limits)
            self.radii = {group["name"]: deepcopy(group["radius"]) for group in groups}
        if getattr(self.rule, "done", False):
            _report(self.rule, self.radii, self.steps)
        elif self.needs == "agreement":
            last.remember(self.base, copy=self._searching)
        if self._probe is not None and self._due(self.steps + 1):
            self._probe.layers = last.optimizer.layers()  # some may have been added
            self._probe.remember()

    def _observe(self, trainer: Any, last: LastStep) -> Observation:
        optimizer = last.optimizer
        two = optimizer.reference_point == "previous"
        found: dict[str, Tensor] = {}
        if self.needs == "agreement" and self.steps > 0:
            gradients = {p: p.grad for group in optimizer.param_groups for p in group["params"]}
            sums = {"agreement": last.agreement(gradients)}
            if two and optimizer.reference_gradients:
                sums["reference_agreement"] = last.agreement(optimizer.reference_gradients)
            if len(last.families()) > 1:
                sums["beside"] = last.agreement(gradients, family=1)
            largest = {name: both[1] for name, both in sums.items()}
            largest["reference_agreement"] = largest["agreement"]
            found = {name: both[0] / largest[name].where(largest[name] > 0, 1.0) for name, both in sums.items()}
            found["loss"] = torch.as_tensor(self._mean_loss(trainer)).to(largest["agreement"])
            found = {name: value.to(found["loss"].device) for name, value in found.items()}
        measured = dict(zip(found, _agreed(trainer, torch.stack([*found.values()])), strict=True)) if found else {}
        return Observation(
            step=self.steps,
            total_steps=self._total,
            momentum=max(group["momentum"] for group in optimizer.param_groups),
            **measured,
            layers=self._readings(trainer) if self.needs == "smoothness" else None,
            variance_reduced=two,
            warming_up=last.warming_up(),
        )

    def _mean_loss(self, trainer: Any) -> Any:
        """Return the loss of the window; Lightning divides by the length of a whole one, at an epoch's end as well."""
        if not (self.parts and trainer.lightning_module.automatic_optimization):
            return self.loss
        return self.loss * (trainer.accumulate_grad_batches / self.parts)

    def _readings(self, trainer: Any) -> dict[str, dict[str, float]]:
        """Return readings by group or layer name, on the steps that have some."""
        probe = self._probe
        if probe is None or not (self._due(self.steps) and probe.ready):
            return {}
        pairs = probe.pairs(loss_scale(trainer))
        per_layer = getattr(self.rule, "per", "role") == "layer"
        members: dict[str, list[tuple[Any, dict[str, float]]]] = {}
        for pair, raw in zip(pairs, measure(pairs), strict=True):
            apart = per_layer and pair.layer.group["estimator"] != "adamw"  # which takes one radius
            members.setdefault(pair.layer.name if apart else pair.layer.group["name"], []).append((pair.layer, raw))
        found = {}
        for name, rows in members.items():
            layer, raw = rows[0][0], combine(raw for _, raw in rows)
            agreed = _agreed(trainer, torch.tensor(list(raw.values()), dtype=torch.float64))
            readings = derive(dict(zip(raw, agreed, strict=True)))
            found[name] = {**readings, "lr": peak_lr(layer.group), "radius": layer.radius}
        return found

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, and the weights before the last step while they are needed."""
        kept = self._loaded or {}
        return {
            "steps": self.steps,
            "loss": float(self.loss),
            "parts": self.parts,
            "searching": self._searching,
            "base": deepcopy(self.base),
            "radii": deepcopy(self.radii),
            "rule": self.rule.state_dict() if hasattr(self.rule, "state_dict") else None,
            "last": self._last.state_dict() if self._last is not None else kept.get("last"),
            "probe": self._probe.state_dict() if self._probe is not None else kept.get("probe"),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.steps, self.loss, self.parts = state["steps"], state["loss"], state["parts"]
        self._searching = state["searching"]
        self.base, self.radii = deepcopy(state["base"]), deepcopy(state["radii"])
        if state["rule"] is not None and hasattr(self.rule, "load_state_dict"):
            self.rule.load_state_dict(state["rule"])
        self._loaded = state

    def _load(self) -> None:
        """Restore what belongs to parameters, now that they are known."""
        state, self._loaded = self._loaded or {}, None
        if self._last is not None and state.get("last"):
            self._last.load_state_dict(state["last"])
        if self._probe is not None and state.get("probe"):
            self._probe.load_state_dict(state["probe"])


def _refuse(name: str, needs: str | None, searching: bool, optimizer: Gluon, *, repeatable: bool) -> None:
    """Raise where the rule needs a second look at a batch that cannot be had."""
    if needs == "smoothness" and not repeatable:
        raise ValueError(
            f"Rule {name!r} needs the gradient of the same sample at two points, but under manual optimization a "
            "training step cannot be repeated, nor one that draws its own batch. Use automatic optimization and "
            "`training_step(batch, batch_idx)`, or the rule 'calibrate'."
        )
    if searching and not repeatable:
        raise ValueError(
            "`line_search` needs a second look at a batch, but under manual optimization a training step cannot be "
            "repeated, nor one that draws its own batch. Use automatic optimization and "
            "`training_step(batch, batch_idx)`, or leave `line_search` out and start small."
        )
    if searching and any(p.element_size() < 4 for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "`line_search` starts with a step too small for half-precision weights. Train with 'bf16-mixed' instead of "
            "'bf16-true', or leave `line_search` out."
        )


def _report(rule: Any, radii: Mapping[str, Radius], step: int) -> None:
    listed = ", ".join(f"{name} {first_radius(radius):.4g}" for name, radius in radii.items())
    if getattr(getattr(rule, "state", None), "reason", "") == "share":
        rank_zero_warn(
            f"Calibration reached its share of the training while larger radii still paid off; they stay at {listed}. "
            "Train longer, raise `share`, or start from a larger radius."
        )
    else:
        rank_zero_info(f"`RadiusScheduler`: radii frozen at {listed} before step {step}.")


def _named(optimizer: Gluon) -> dict[str, float]:
    """Return the radii under the keys they are logged by."""
    values = {}
    for group in optimizer.param_groups:
        if isinstance(group["radius"], list):
            values.update({f"radius/{n}": r for n, r in zip(group["param_names"], group["radius"], strict=True)})
        else:
            values[f"radius/{group['name']}"] = group["radius"]
    return values


def _agreed(trainer: Any, values: Tensor) -> list[float]:
    """Wait for numbers, and return what is the same on all ranks: their mean."""
    if trainer.world_size > 1:
        values = trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op="mean")
    return values.tolist()
