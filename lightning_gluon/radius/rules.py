"""The rules that set radii during training. A new rule is one class and one row of `RULES`.

A rule is called before every step with an `Observation` and returns one factor on all initial radii, or `Factors` of
what an LMO steps and what AdamW does, or a mapping from group names or layer names to radii, or `None` to leave
everything as it is. Its attribute `needs` says what has to be measured for it: `"agreement"`, `"smoothness"` or
`None`. A plain function is a rule; it may carry that attribute too.

    theory       radius_k = radius_0 (k + 1)^-p                  p = 3/4 (Gluon), 2/3 (with the second gradient)
    smoothness   t = kappa ||g||_* / (L0 + L1 ||g||_*)           per role or layer, from the live same-sample fit
    calibrate    grow from tiny, slow down, hold, freeze         `lightning_gluon.radius.calibrate`
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning_gluon.radius.calibrate import Calibrate, Observation
from lightning_gluon.smoothness.fit import RunningFit

__all__ = ["RULES", "Smoothness", "Theory", "make_rule"]


class Theory:
    """The decay of the papers' theorems, `radius_k = radius_0 (k + 1)^-p`, as a rule for the radius alone.

    `schedule="theory"` of `configure_optimizers` decays `lr` instead and sets the theorem's momentum with it.

    Args:
        power: `p`; default 3/4, and 2/3 for methods that take the second gradient.

    Raises:
        ValueError: If `power` is not positive.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416, Theorem 2 (3/4).
        "LiMuon", arXiv 2509.14562 (2/3).

    Example:
        >>> Theory()(Observation(step=15))
        0.125
    """

    needs = None

    def __init__(self, power: float | None = None) -> None:
        if power is not None and not power > 0:
            raise ValueError(f"Expected `power` to satisfy power > 0, but got {power!r}.")
        self.power = power

    def __call__(self, seen: Observation) -> float:
        """Return the factor on all radii."""
        power = self.power or (2 / 3 if seen.variance_reduced else 3 / 4)
        return (seen.step + 1) ** -power


class Smoothness:
    """The paper's Theorem 1 on the live same-sample fit, `t = kappa ||g||_* / (L0 + L1 ||g||_*)`, per role or layer.

    The one continuous rule with a fixed point that is approached from both sides, but its `kappa` does not transfer:
    the best one was 0.6 on a small GPT and 0.33 on a small ViT, and it depends on the batch size.

    Args:
        kappa: Factor on the radius of the theorem.
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

    needs = "smoothness"

    def __init__(self, *, kappa: float = 0.5, per: str = "role", window: int = 10, samples: int = 3) -> None:
        if not kappa > 0:
            raise ValueError(f"Expected `kappa` to satisfy kappa > 0, but got {kappa!r}.")
        if per not in ("role", "layer"):
            raise ValueError(f"Expected `per` to be 'role' or 'layer', but got {per!r}.")
        RunningFit(window)  # checks it
        if not 1 <= samples <= window:
            raise ValueError(
                f"Expected `samples` to satisfy 1 <= samples <= window, but got {samples!r} with window={window}."
            )
        self.kappa = kappa
        self.per = per
        self.window = window
        self.samples = samples
        self.fits: dict[str, RunningFit] = {}

    def __call__(self, seen: Observation) -> dict[str, float] | None:
        """Return new radii by name, on steps where smoothness was measured."""
        if not seen.layers:
            return None
        radii = {}
        for name, reading in seen.layers.items():
            running = self.fits.setdefault(name, RunningFit(self.window))
            running.add(reading["L_hat"], reading["grad_dual_norm"])
            fit = running.fit()
            if fit is None or fit.samples < self.samples or reading["grad_dual_norm"] == 0:
                continue
            length = fit.radius(reading["grad_dual_norm"], self.kappa)
            if math.isfinite(length):
                radii[name] = length / reading["lr"]
        return radii

    def state_dict(self) -> dict[str, Any]:
        """Return the samples."""
        return {name: running.state_dict() for name, running in self.fits.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.fits = {name: RunningFit(self.window) for name in state}
        for name, saved in state.items():
            self.fits[name].load_state_dict(saved)


RULES: dict[str, Callable[..., Any]] = {"theory": Theory, "smoothness": Smoothness, "calibrate": Calibrate}


def make_rule(rule: Any, options: Mapping[str, Any] | None = None) -> Any:
    """Return a rule by its name, or the rule given.

    Args:
        rule: A name of `RULES`, a rule, or a function of an `Observation`.
        options: Arguments of the rule, for a name.

    Returns:
        The rule.

    Raises:
        ValueError: If the name or an option is unknown, or options are given for something that is not a name.
        TypeError: If it is none of the three.

    Example:
        >>> make_rule("theory", {"power": 0.5}).power
        0.5
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(f"Expected `rule` to be one of {', '.join(RULES)}, or a function, but got {rule!r}.")
        known = inspect.signature(RULES[rule]).parameters
        for option in options or {}:
            if option not in known:
                raise ValueError(f"Unknown option {option!r} of rule {rule!r}. Expected one of: {', '.join(known)}.")
        return RULES[rule](**(options or {}))
    if options:
        raise ValueError("`options` are for rules given by name: give a rule or a function its own arguments instead.")
    if not callable(rule):
        raise TypeError(f"Expected `rule` to be a name, a rule or a function, but got {type(rule).__name__}.")
    return rule
