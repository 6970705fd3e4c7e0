"""Radii of parameter groups, read and written: one number per group, or one per parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Factors", "Limits", "first_radius", "peak_lr", "set_radii_"]

Radius = float | list[float]


class Factors(NamedTuple):
    """Factors on the initial radii: of what an LMO steps, and of what AdamW steps beside it."""

    lmo: float
    adamw: float


@dataclass(frozen=True)
class Limits:
    """How far radii may go.

    Args:
        bounds: Smallest and largest radius, relative to the initial one.
        max_growth: Largest factor by which a radius may grow in one step.
        smoothing: Weight on the old radius, in [0, 1), of a geometric average.

    Raises:
        ValueError: If a value is out of range or the bounds are crossed.

    Example:
        >>> Limits(bounds=(0.1, 10.0), max_growth=2.0)(50.0, current=1.0, base=1.0)
        2.0
    """

    bounds: tuple[float, float] | None = None
    max_growth: float | None = None
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        pair = isinstance(self.bounds, (list, tuple)) and len(self.bounds) == 2
        if self.bounds is not None and not (pair and 0 <= self.bounds[0] < self.bounds[1]):
            raise ValueError(f"Expected `bounds` (low, high) to satisfy 0 <= low < high, but got {self.bounds!r}.")
        if self.max_growth is not None and not self.max_growth > 1:
            raise ValueError(f"Expected `max_growth` to satisfy max_growth > 1, but got {self.max_growth!r}.")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"Expected `smoothing` to satisfy 0 <= smoothing < 1, but got {self.smoothing!r}.")

    def __call__(self, wanted: float, *, current: float, base: float) -> float:
        """Return the radius that a wanted one becomes.

        Args:
            wanted: The radius a rule returned.
            current: The radius now.
            base: The initial radius.

        Returns:
            The radius within limits.

        Raises:
            ValueError: If the wanted radius is negative or not a number.
        """
        if not (math.isfinite(wanted) and wanted >= 0):
            raise ValueError(f"Expected the rule to return finite radii >= 0, but got {wanted!r}.")
        if self.smoothing and wanted and current:
            wanted = current**self.smoothing * wanted ** (1 - self.smoothing)
        if self.max_growth is not None and current:
            wanted = min(wanted, self.max_growth * current)
        if self.bounds is not None:
            wanted = min(max(wanted, self.bounds[0] * base), self.bounds[1] * base)
        return wanted


def set_radii_(
    groups: Iterable[dict[str, Any]],
    proposal: float | Factors | Mapping[str, float],
    *,
    base: Mapping[str, Radius],
    limits: Limits,
) -> None:
    """Write radii into groups: one factor on all initial ones or two, or new ones by group or layer name.

    Args:
        groups: Parameter groups of a `Gluon` optimizer.
        proposal: A factor, two of them, or radii by name; groups and layers that are not named keep theirs.
        base: Initial radii by group name.
        limits: Limits on what is written.

    Raises:
        ValueError: If a name is unknown, a radius is not finite, or a group of AdamW would get several radii.
        TypeError: If the proposal is of another kind.
    """
    groups = list(groups)
    names = {name for group in groups for name in (group["name"], *group["param_names"])}
    unknown = sorted(map(str, set(proposal) - names)) if isinstance(proposal, Mapping) else []
    if unknown:
        raise ValueError(
            f"Expected the rule to return radii of groups or layers, but got one of {unknown[0]!r}. There are groups "
            f"{', '.join(group['name'] for group in groups)}."
        )
    for group in groups:
        initial, current = _listed(base[group["name"]], group), _listed(group["radius"], group)
        wanted = _wanted(proposal, group, initial, current)
        radii = [limits(w, current=c, base=b) for w, c, b in zip(wanted, current, initial, strict=True)]
        group["radius"] = _joined(radii, group)


def _wanted(
    proposal: float | Factors | Mapping[str, float],
    group: Mapping[str, Any],
    initial: list[float],
    current: list[float],
) -> list[float]:
    if isinstance(proposal, Factors):
        proposal = proposal.adamw if group["estimator"] == "adamw" else proposal.lmo
    if not isinstance(proposal, Mapping):
        factor = _number(proposal)
        return [factor * radius for radius in initial]
    of_group = proposal.get(group["name"])
    of_layers = current if of_group is None else [_number(of_group)] * len(current)
    pairs = zip(group["param_names"], of_layers, strict=True)
    return [_number(proposal[name]) if name in proposal else radius for name, radius in pairs]


def _number(value: Any) -> float:
    """Return what a rule answered as a plain float, for checkpoints and logs; it may be a tensor."""
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"Expected the rule to return a factor, radii by group or layer name, or None, but got {value!r}.")


def _joined(radii: list[float], group: Mapping[str, Any]) -> Radius:
    if len(set(radii)) == 1:
        return radii[0]
    if group["estimator"] == "adamw":
        raise ValueError(
            f"Group {group['name']!r} is stepped by AdamW and takes one radius, but the rule returned several. Return "
            "one for the group."
        )
    return radii


def _listed(radius: Radius, group: Mapping[str, Any]) -> list[float]:
    return list(radius) if isinstance(radius, list) else [radius] * len(group["params"])


def first_radius(radius: Radius) -> float:
    """Return the radius of a group's first parameter."""
    return radius[0] if isinstance(radius, list) else radius


def peak_lr(group: Mapping[str, Any]) -> float:
    """Return the largest `lr` of the group's schedule, as far as it says."""
    return max(group.get("max_lr") or 0.0, group.get("initial_lr") or 0.0) or group["lr"]
