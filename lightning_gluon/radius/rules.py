"""The rules that set radii during training, by name. A new rule is one class and one row of `RADIUS_RULES`.

    smoothness   t = kappa ||g||_* / (L0 + L1 ||g||_*)           per role or layer, from the live same-sample fit
    calibrate    grow from tiny, slow down, hold, freeze         `lightning_gluon.radius.calibrate`
    floor        a least length relative to the weights          `lightning_gluon.radius.relative`
    momo, ngn    in proportion to what is left to lose           `lightning_gluon.radius.polyak`

A rule from outside the package gets its name by `register_radius_rule`. A rule or a plain function also works as it is,
without a name. `schedule="theory"` of `configure_optimizers` is the decay of the papers' theorems.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning_gluon.radius.calibrate import Calibrate
from lightning_gluon.radius.observe import GroupReadings, LayerReadings, Observation
from lightning_gluon.radius.polyak import Momo, Ngn
from lightning_gluon.radius.radii import Proposal
from lightning_gluon.radius.relative import UpdateFloor
from lightning_gluon.radius.rule import Adapter, RadiusRule
from lightning_gluon.radius.saved import Saved, SavedState
from lightning_gluon.smoothness.fit import RunningFit
from lightning_gluon.valid import number, one_of, plain, whole

SCOPES = {"role": GroupReadings, "layer": LayerReadings}


class Smoothness(RadiusRule):
    """The paper's Theorem 1 on the live same-sample fit, per role or layer.

        radius = kappa ||g||_* / (L0 + L1 ||g||_*) / lr

    This rule has a fixed point that it approaches from both sides, but its `kappa` does not transfer. The best one was
    0.6 on a small GPT and 0.33 on a small ViT, and it depends on the batch size.

    Shapes: plain numbers; radii in units of the layer's norm.

    Args:
        kappa: Factor on the step length of the theorem.
        per: `"role"` or `"layer"`; a group that AdamW steps has one radius either way.
        window: Samples that the fit is over: short, since the smoothness seen depends on the radius itself.
        samples: Samples before the first radius is set, at most `window`.

    Raises:
        ValueError: If an argument is out of range.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416, Theorem 1.

    Example:
        >>> rule = Smoothness(kappa=0.5, samples=1)
        >>> reading = {"L_hat": 100.0, "grad_dual_norm": 2.0, "lr": 1.0}
        >>> rule(Observation(step=10, layers={"hidden": reading}))
        {'hidden': 0.01}
    """

    def __init__(
        self,
        *,
        kappa: float = 0.5,
        per: str = "role",
        window: int = 10,
        samples: int = 3,
    ) -> None:
        positive = number(signs="< <")
        positive("kappa", kappa)
        known = one_of(*SCOPES)
        known("per", per)
        RunningFit(window)  # checks it
        at_least_one = whole(1)
        at_least_one("samples", samples)
        if samples > window:
            raise ValueError(
                f"Expected `samples` to satisfy 1 <= samples <= window, but got {samples!r} with window={window}."
            )
        self.needs = (SCOPES[per],)
        self.kappa = kappa
        self.window = window
        self.samples = samples
        self.fits: dict[str, RunningFit] = {}

    def __call__(self, observation: Observation) -> dict[str, float] | None:
        """Return new radii by name, on steps with a sample of the smoothness."""
        if not observation.layers:
            return None
        radii = {}
        for name, reading in observation.layers.items():
            length = self._length(name, reading)
            if math.isfinite(length):
                lr = reading["lr"]
                radii[name] = length / lr
        return radii

    def _length(self, name: str, reading: dict[str, float]) -> float:
        """Add a sample to the fit and return the step length it asks for; NaN if it asks for none."""
        if name not in self.fits:
            self.fits[name] = RunningFit(self.window)
        running = self.fits[name]
        gradient = reading["grad_dual_norm"]
        running.add(reading["L_hat"], gradient)
        fit = running.fit()
        if fit is None or gradient == 0:
            return math.nan
        if fit.samples < self.samples:
            return math.nan
        return fit.radius(gradient, self.kappa)

    def state_dict(self) -> SavedState:
        """Return the samples."""
        states = {}
        for name, running in self.fits.items():
            states[name] = running.state_dict()
        return states

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore them, or raise a `ValueError` before anything has changed."""
        saved = Saved(state, "RadiusScheduler.rule")
        fits = {}
        for name in saved.state:
            running = RunningFit(self.window)
            running.load_state_dict(saved.value(name))
            fits[name] = running
        self.fits = fits


RADIUS_RULES: dict[str, Callable[..., Any]] = {
    "smoothness": Smoothness,
    "calibrate": Calibrate,
    "floor": UpdateFloor,
    "momo": Momo,
    "ngn": Ngn,
}


def register_radius_rule(name: str, rule: Callable[..., Any]) -> None:
    """Give a rule a name, which `RadiusScheduler` and configuration files then take.

        radius_i[k] = limits(rule(observation[k]))

    Shapes: plain numbers, in units of the initial radii.

    Args:
        name: The name, not taken yet.
        rule: A callable that makes the rule out of its options, such as a subclass of `RadiusRule`.

    Raises:
        ValueError: If the name is taken or no text.
        TypeError: If the rule cannot be called.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> class Constant(RadiusRule):
        ...     def __init__(self, factor: float = 1.0) -> None:
        ...         self.factor = factor
        ...     def __call__(self, observation):
        ...         return self.factor
        >>> register_radius_rule("constant-factor", Constant)
        >>> make_rule("constant-factor", {"factor": 2.0})(Observation(step=0))
        2.0
        >>> del RADIUS_RULES["constant-factor"]
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"Expected `name` to be a text, but got {name!r}.")
    present = RADIUS_RULES.get(name, rule)
    if present is not rule:
        raise ValueError(f"The name {name!r} belongs to the radius rule {present!r} already. Take another.")
    if not callable(rule):
        raise TypeError(f"Expected `rule` to be a class or a function that makes a rule, but got {rule!r}.")
    RADIUS_RULES[name] = rule


def make_rule(
    rule: str | Callable[[Observation], Proposal | None],
    options: Mapping[str, object] | None = None,
) -> RadiusRule:
    """Return a rule by its name, or the rule given.

    Args:
        rule: A name of `RADIUS_RULES`, a rule, or a function of an `Observation`.
        options: Arguments of the rule, for a name.

    Returns:
        The rule.

    Raises:
        ValueError: If the name or an option is unknown, or options are given for something that is not a name.
        TypeError: If it is none of the three.

    Example:
        >>> make_rule("smoothness", {"kappa": 0.25}).kappa
        0.25
    """
    if isinstance(rule, str):
        arguments = plain(options or {})
        rule = _rule_named(rule, arguments)
    elif options:
        raise ValueError("`options` are for rules given by name: give a rule or a function its own arguments instead.")
    if isinstance(rule, RadiusRule):
        return rule
    if not callable(rule) or isinstance(rule, type):
        kind = type(rule).__name__
        raise TypeError(f"Expected `rule` to be a name, a rule or a function, but got {kind}.")
    return Adapter(rule)


def _rule_named(name: str, options: dict[str, object]) -> Callable[[Observation], Proposal | None]:
    if name not in RADIUS_RULES:
        names = ", ".join(RADIUS_RULES)
        raise ValueError(f"Expected `rule` to be one of {names}, or a function, but got {name!r}.")
    rule = RADIUS_RULES[name]
    parameters = inspect.signature(rule).parameters
    kinds = [parameter.kind for parameter in parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        _check_arguments(name, options, list(parameters))
    return rule(**options)


def _check_arguments(name: str, options: Iterable[str], known: list[str]) -> None:
    for option in options:
        if option not in known:
            names = ", ".join(known)
            raise ValueError(f"Unknown option {option!r} of rule {name!r}. Expected one of: {names}.")
