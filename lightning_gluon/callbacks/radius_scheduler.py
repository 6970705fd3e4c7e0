"""Radii that a rule sets during training: written to the groups' `radius`, never to `lr`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_gluon.callbacks.smoothness_monitor import SmoothnessMonitor
from lightning_gluon.optimizer import Gluon
from lightning_gluon.radius.control import RadiusControl
from lightning_gluon.radius.observe import Observation, StepRecord
from lightning_gluon.radius.radii import Limits, Proposal, Radius, logged_radii
from lightning_gluon.radius.rule import RadiusRule
from lightning_gluon.radius.rules import make_rule
from lightning_gluon.radius.saved import SavedState
from lightning_gluon.replay.lightning import (
    callbacks_of,
    check_log,
    late_state,
    log_values,
    loss_scale,
    place_before,
    should_log,
    state_key,
)
from lightning_gluon.replay.optimizers import own_optimizer, repeatable, unwrapped
from lightning_gluon.replay.ranks import agreed
from lightning_gluon.replay.session import Session


class RadiusScheduler(Callback):
    """Set per-group or per-layer radii during training by a rule; any learning-rate schedule works on top.

        t_i = lr * radius_i,        radius_i = limits(rule(observation)),        lr by the schedule

    The rule `calibrate` grows the radii from tiny, the slower the less the last step pays off, and then freezes them.
    `smoothness` is the paper's Theorem 1 on the live fit. Others are a name given by `register_radius_rule`, or a
    function. A function takes a `lightning_gluon.radius.Observation`. It returns one factor on all initial radii, radii
    by group or layer name, or `None`. See `lightning_gluon.radius.RadiusRule`.

    Until `calibrate` freezes, it waits for the device once per step and copies the matrices, unless the method keeps
    the previous iterate. A learning-rate warm-up may run at the same time: the calibrated step length is then reached
    at the schedule's peak. Radii are logged as `radius/<group>`, or `radius/<layer>` if they differ within a group.

    Shapes: plain numbers; `t_i` in units of the layer's own norm.

    Args:
        rule: A name of `lightning_gluon.radius.RADIUS_RULES`, a rule, or a function (`rule`).
        options: Arguments of a rule given by name, such as `{"largest": 5.0}`.
        every_n_steps: Optimizer steps between two samples of the smoothness, for rules that need it. The sample is the
            method's own second gradient if it has one, else a further pass.
        bounds: Smallest and largest radius, relative to the initial one (`limits`).
        max_growth: Largest factor by which a radius may grow in one step (`limits`).
        smoothing: Weight on the old radius, in [0, 1), of a geometric average (`limits`); a ramp starts without.
        freeze_step: Step, or share of all steps if below 1, from which the radii stay.
        log: Whether to log; default: if the Trainer has a logger.

    Raises:
        ValueError: If an argument is out of range or a name is unknown. At the start of training, if the rule needs a
            pass that cannot be taken, `log` has no logger, or `freeze_step` is a share of an unknown length. On
            loading, if a checkpoint holds values that no run has written.
        TypeError: If the rule is no rule. At the start of training, if the optimizer is not one of this library.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> scheduler = RadiusScheduler("calibrate", bounds=(1e-3, 10.0))
        >>> scheduler.rule.main.scale
        0.015625
    """

    def __init__(
        self,
        rule: str | Callable[[Observation], Proposal | None] = "calibrate",
        *,
        options: Mapping[str, object] | None = None,
        every_n_steps: int = 25,
        bounds: tuple[float, float] | None = None,
        max_growth: float | None = None,
        smoothing: float = 0.0,
        freeze_step: int | float | None = None,
        log: bool | None = None,
    ) -> None:
        limits = Limits(bounds, max_growth, smoothing)
        self.control = RadiusControl(make_rule(rule, options), limits, freeze_step, every_n_steps)
        self.name = rule if isinstance(rule, str) else getattr(rule, "__name__", type(rule).__name__)
        self.logging = log  # Lightning sets `log` on callbacks
        self._logs = False
        self._session: Session | None = None
        self._optimizer: Gluon | None = None

    @property
    def rule(self) -> RadiusRule:
        """The rule."""
        return self.control.rule

    @property
    def radii(self) -> dict[str, Radius]:
        """Radii that the rule has set, by group name; empty before the first."""
        return self.control.radii

    @property
    def state_key(self) -> str:
        """Tell instances apart by their rule."""
        return state_key(self, rule=self.name)

    @staticmethod
    def attach(trainer: Trainer, rule: str = "calibrate", **arguments: Any) -> None:
        """Add a scheduler to a Trainer that has none, also after checkpoints were read.

        Args:
            trainer: The Trainer.
            rule: The rule.
            **arguments: Further arguments of the scheduler.

        Raises:
            ValueError: If the Trainer has a scheduler with another rule.

        Example:
            >>> trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
            >>> RadiusScheduler.attach(trainer, options={"largest": 5.0})
            >>> any(isinstance(callback, RadiusScheduler) for callback in trainer.callbacks)
            True
        """
        scheduler = RadiusScheduler(rule, **arguments)
        for present in [one for one in callbacks_of(trainer) if isinstance(one, RadiusScheduler)]:
            if isinstance(present.rule, type(scheduler.rule)):
                return
            raise ValueError(
                f"`lr='auto'` sets the radii by the rule {rule!r}, but the Trainer has a RadiusScheduler with the rule "
                f"{present.name!r}. Pass a number as `lr`, or take that callback away."
            )
        place_before(trainer, scheduler, SmoothnessMonitor)
        # Callback states are restored before optimizers are configured; one that comes later looks for its own.
        state = late_state(trainer, scheduler)
        if state:
            scheduler.load_state_dict(deepcopy(dict(state)))

    # ------------------------------------------------------------------ begin and end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Move before the monitors, which then see the radius of the step to come."""
        place_before(trainer, self, SmoothnessMonitor)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the session if the rule needs gradients at two points, before it reads a checkpoint."""
        self._session = Session.of(trainer) if self.control.second_gradient else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the initial radii, or those of the run that is resumed, and find the measurements that are possible."""
        optimizer = own_optimizer(trainer)
        self._logs = check_log(trainer, self.logging, "RadiusScheduler")
        if self.control.second_gradient and not repeatable(pl_module):
            raise ValueError(
                f"Rule {self.name!r} needs the gradient of the same sample at two points. Under manual optimization a "
                "training step cannot be repeated, nor one that draws its own batch. Use automatic optimization and "
                "`training_step(batch, batch_idx)`, or the rule 'calibrate'."
            )
        total = trainer.estimated_stepping_batches  # if nobody knows, infinite or -1
        self.control.begin(optimizer, int(total) if 0 < total < math.inf else None)
        self._optimizer = optimizer

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the Trainer as it was, but keep the state: a checkpoint may be saved after this."""
        self.control.release(keep=True)
        self._optimizer = self._session = None

    # ------------------------------------------------------------------ one step

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add up the loss of the window."""
        if self._optimizer is not None and not self.control.frozen:
            plain = loss.detach().float()
            self.control.loss.add(plain / loss_scale(trainer))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        """Take the rule's measurements, and set the radii of the coming step."""
        own, control, session, done = self._optimizer, self.control, self._session, self.rule.done
        if own is None or unwrapped(optimizer) is not own:
            return
        window = trainer.accumulate_grad_batches if pl_module.automatic_optimization else None
        pairs = session.pairs(own.layers()) if session is not None and control.sampled else []
        control.advance(StepRecord(control.loss.mean(window), pairs, partial(agreed, trainer)))
        if self.rule.done and not done:
            say = rank_zero_warn if self.rule.doubt else rank_zero_info
            say(control.outcome())
        if session is not None and control.sampled:
            session.want(own.layers(), again=True)
        if self._logs and should_log(trainer):
            log_values(trainer, logged_radii(own.param_groups))

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> SavedState:
        """Return plain values, and the weights before the last step while they are needed."""
        return self.control.state_dict()

    def load_state_dict(self, state: SavedState) -> None:
        """Restore them, or raise a `ValueError` before anything has changed."""
        self.control.load_state_dict(state)
