"""Late groups: parameters that are added while training, as callbacks that unfreeze layers do.

A group that is given without roles becomes several here, but whoever added it knows of one, and moves the last. So
groups that were added together follow each other: if some of them have a new `lr`, the others get it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_gluon.options import Group
from lightning_gluon.partition.result import Partition
from lightning_gluon.step.groups import PER_ROLE, build_groups
from lightning_gluon.step.sources import free_name, read_group


@dataclass(frozen=True)
class Construction:
    """Arguments that an optimizer was built with."""

    method: str
    lr: float | None
    weight_decay: PER_ROLE
    momentum: float | None
    radius: Mapping[str, float] | None
    options: Mapping[str, object]
    total_steps: int | None = None

    def build(self, partial: list[Group]) -> list[Group]:
        """Complete groups by these settings."""
        return build_groups(partial, **vars(self))

    def of_roles(self, partial: list[Group]) -> list[Group]:
        """Complete groups by these settings, leaving out radii of roles that are not among them."""
        roles = {group["role"] for group in partial}
        radii = self.radius or {}
        own = {role: radius for role, radius in radii.items() if role in roles}
        return replace(self, radius=own).build(partial)


def late_groups(group: Group, settings: Construction, known: Partition | None, present: Sequence[Group]) -> list[Group]:
    """Return the complete groups of a given one.

    Args:
        group: A dict with `params` and any option of a group.
        settings: What the optimizer was built with.
        known: The partition of its module.
        present: The groups it has.

    Returns:
        One group per role, named apart from those there are.

    Raises:
        ValueError: If the group has no `params`, or a value does not fit.
    """
    if not isinstance(group, Mapping) or "params" not in group:
        found = list(group) if isinstance(group, Mapping) else type(group).__name__
        raise ValueError(f"Expected `param_group` to be a dict with `params`, but got {found}.")
    added = settings.of_roles(read_group(dict(group), known))
    name_apart(added, present)
    steps = [other["steps"] for other in present]
    for new in added:
        new["steps"] = max(steps, default=0)
    if len(added) > 1:
        _bind(added)
    return added


def _bind(groups: Sequence[Group]) -> None:
    """Remember which groups were added as one, and at which learning rate."""
    family = groups[0]["name"]
    for group in groups:
        group["family"] = family
        group["family_lr"] = group["lr"]


def name_apart(groups: Sequence[Group], present: Sequence[Group] = ()) -> None:
    """Number the names of groups and parameters that are taken: a saved state is matched by them.

    Args:
        groups: New groups, whose names are changed in place.
        present: Groups that keep theirs.

    Raises:
        ValueError: If a parameter is given twice.
    """
    _check_once(groups, present)
    taken = {group["name"] for group in present}
    names: set[str] = set()
    for group in present:
        names.update(group["param_names"])
    for group in groups:
        group["name"] = free_name(group["name"], taken)
        others = frozenset(names)
        own = []
        for name in group["param_names"]:
            wanted = f"{name}_{group['name']}" if name in others else name
            own.append(free_name(wanted, names))
        group["param_names"] = own


def _check_once(groups: Sequence[Group], present: Sequence[Group]) -> None:
    """Raise if a parameter is in two groups, or twice in one."""
    seen: set[Tensor] = set()
    for group in present:
        seen.update(group["params"])
    for group in groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter in seen:
                raise ValueError(f"{name!r} is given twice: a parameter belongs to exactly one group.")
            seen.add(parameter)


def follow_family(groups: Iterable[Group]) -> None:
    """Give groups that were added together the learning rate that one of them was given since the last step.

    If several have a new one, the last group's counts: it is `param_groups[-1]` to a callback, and a schedule may have
    moved them all.

    Args:
        groups: All groups of the optimizer.

    Example:
        >>> members = [{"family": "a", "family_lr": 0.1, "lr": lr} for lr in (0.1, 0.5)]
        >>> follow_family(members)
        >>> [group["lr"] for group in members]
        [0.5, 0.5]
    """
    families: dict[str, list[Group]] = {}
    for group in groups:
        family = group.get("family")
        if family is not None and not isinstance(group["lr"], Tensor):  # a tensor is shared as it is
            families.setdefault(family, []).append(group)
    for members in families.values():
        rates = [group["lr"] for group in members if group["lr"] != group["family_lr"]]
        for group in members if rates else ():
            group["lr"] = group["family_lr"] = rates[-1]
