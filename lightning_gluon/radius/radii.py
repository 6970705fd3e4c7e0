"""Radii of parameter groups, read and written: one number per group, or one per parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsFloat, TypeAlias

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.options import Group
from lightning_gluon.valid import number, pair_of

Radius: TypeAlias = float | list[float]


class Factors(NamedTuple):
    """Factors on the initial radii: of the groups that an LMO steps, and of those that AdamW steps.

        radius_i = lmo * base_i  or  adamw * base_i

    Shapes: plain numbers, in units of the initial radius.

    Args:
        lmo: Factor for the groups that an LMO steps.
        adamw: Factor for the groups that AdamW steps.

    References:
        `docs/primers/radius.md`, after Theorem 1 of "Gluon", arXiv 2505.13416.

    Example:
        >>> Factors(lmo=0.5, adamw=2.0).adamw
        2.0
    """

    lmo: float
    adamw: float


Proposal: TypeAlias = SupportsFloat | Factors | Mapping[str, SupportsFloat]


@dataclass(frozen=True)
class Limits:
    """Limits on the radii that a rule asks for.

        radius = clip(min(current^s wanted^(1 - s), max_growth * current), low * base, high * base)

    Args:
        bounds: Smallest and largest radius `(low, high)`, relative to the initial one.
        max_growth: Largest factor by which a radius may grow in one step.
        smoothing: Weight on the current radius (`s`), in [0, 1), of a geometric average.

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
        growth = number(1, signs="< <", none=True)
        growth("max_growth", self.max_growth)
        weight = number(0, 1)
        weight("smoothing", self.smoothing)
        if self.bounds is None:
            return
        two = pair_of(number())
        low, high = two("bounds", self.bounds)
        if low >= high:
            raise ValueError(f"Expected `bounds` (low, high) to satisfy 0 <= low < high, but got {self.bounds!r}.")
        object.__setattr__(self, "bounds", (low, high))

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
        allowed = math.isfinite(wanted) and wanted >= 0
        if not allowed:
            raise ValueError(f"Expected the rule to return finite radii >= 0, but got {wanted!r}.")
        if self.smoothing and wanted and current:
            weight = self.smoothing
            wanted = current**weight * wanted ** (1 - weight)
        if self.max_growth is not None and current:
            wanted = min(wanted, self.max_growth * current)
        if self.bounds is not None:
            low, high = self.bounds
            wanted = max(wanted, low * base)
            wanted = min(wanted, high * base)
        return wanted


def set_radii_(
    groups: Iterable[Group],
    proposal: Proposal,
    *,
    base: Mapping[str, Radius],
    limits: Limits,
) -> None:
    """Write radii into groups: one factor on all initial ones or two, or new ones by group or layer name.

    Everything is checked first: an error leaves all groups as they were.

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
    if isinstance(proposal, Mapping):
        _check_targets(proposal, groups)
    written = []
    for group in groups:
        name = group["name"]
        start = radius_each(base[name], group)
        now = radius_each(group["radius"], group)
        wanted = _wanted(proposal, group, start, now)
        radii = []
        for one, current, first in zip(wanted, now, start, strict=True):
            limited = limits(one, current=current, base=first)
            radii.append(limited)
        written.append(_one_or_several(radii, group))
    for group, radius in zip(groups, written, strict=True):
        group["radius"] = radius


def _check_targets(proposal: Mapping[str, object], groups: list[Group]) -> None:
    known: set[str] = set()
    for group in groups:
        known.add(group["name"])
        known.update(group["param_names"])
    names = [group["name"] for group in groups]
    for name in proposal:
        if name not in known:
            raise ValueError(
                f"Expected the rule to return radii of groups or layers, but got one of {name!r}. There are groups "
                f"{', '.join(names)}."
            )


def _wanted(
    proposal: Proposal,
    group: Group,
    start: list[float],
    current: list[float],
) -> list[float]:
    """Return the radii that a proposal asks for, one per parameter of a group."""
    if isinstance(proposal, Mapping):
        return _radii_by_name(proposal, group, current)
    if isinstance(proposal, Factors):
        kernel = stepped_by_adamw(group)
        proposal = proposal.adamw if kernel else proposal.lmo
    factor = _plain_radius(proposal)
    return [factor * radius for radius in start]


def _radii_by_name(
    proposal: Mapping[str, SupportsFloat],
    group: Group,
    current: list[float],
) -> list[float]:
    radii = list(current)
    whole = proposal.get(group["name"])
    if whole is not None:
        radii = [_plain_radius(whole)] * len(current)
    for index, name in enumerate(group["param_names"]):
        if name in proposal:
            radii[index] = _plain_radius(proposal[name])
    return radii


def _plain_radius(value: Any) -> float:
    """Return a rule's answer as a plain float, for checkpoints and logs; it may be a tensor."""
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"Expected the rule to return a factor, radii by group or layer name, or None, but got {value!r}.")


def _one_or_several(radii: list[float], group: Group) -> Radius:
    if len(set(radii)) == 1:
        return radii[0]
    if stepped_by_adamw(group):
        raise ValueError(
            f"Group {group['name']!r} is stepped by AdamW and takes one radius, but the rule returned several. Return "
            "one for the group."
        )
    return radii


def radius_each(radius: Radius, group: Group) -> list[float]:
    """Return one radius for every parameter of a group."""
    if isinstance(radius, list):
        return list(radius)
    return [radius] * len(group["params"])


def stepped_by_adamw(group: Group) -> bool:
    """Return whether a kernel such as AdamW steps a group: it has one radius, and no LMO."""
    return ESTIMATORS[group["estimator"]].step_ is not None


def first_radius(radius: Radius) -> float:
    """Return the radius of a group's first parameter."""
    return radius[0] if isinstance(radius, list) else radius


def peak_lr(group: Group) -> float:
    """Return the largest `lr` of the group's schedule, if it says so, else `lr`."""
    largest = group.get("max_lr") or 0.0
    start = group.get("initial_lr") or 0.0
    return max(largest, start) or group["lr"]


def logged_radii(groups: Iterable[Group]) -> dict[str, float]:
    """Return the radii under the keys they are logged by: `radius/<group>`, or `radius/<layer>` if they differ."""
    values: dict[str, float] = {}
    for group in groups:
        names = group["param_names"]
        radii = group["radius"]
        if not isinstance(radii, list):
            names = [group["name"]]
            radii = [radii]
        for name, one in zip(names, radii, strict=True):
            values[f"radius/{name}"] = one
    return values
