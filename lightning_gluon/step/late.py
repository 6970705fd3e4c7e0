"""Late groups: parameters that are added while training, as callbacks that unfreeze layers do.

A group that is given without roles becomes several here, but whoever added it knows of one, and moves the last. So
groups that were added together follow each other: where some of them have a new `lr`, the others get it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_gluon.options import Group
from lightning_gluon.partition.result import Partition
from lightning_gluon.step.groups import PER_ROLE, build_groups
from lightning_gluon.step.sources import free_name, read_group


@dataclass(frozen=True)
class Settings:
    """What an optimizer was built with."""

    method: str
    lr: float | None
    weight_decay: PER_ROLE
    momentum: float | None
    radius: Mapping[str, float] | None
    options: Mapping[str, Any]
    total_steps: int | None = None

    def build(self, partial: list[Group]) -> list[Group]:
        """Complete groups by these settings."""
        return build_groups(partial, **vars(self))


def late_groups(group: Group, settings: Settings, known: Partition | None, present: Sequence[Group]) -> list[Group]:
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
    partial = read_group(dict(group), known)
    roles = {part["role"] for part in partial}
    radii = {role: radius for role, radius in (settings.radius or {}).items() if role in roles}
    added = Settings(**{**vars(settings), "radius": radii}).build(partial)
    name_apart(added, present)
    family = added[0]["name"] if len(added) > 1 else None
    for new in added:
        new["steps"] = max((other["steps"] for other in present), default=0)
        if family is not None:
            new.update(family=family, family_lr=new["lr"])
    return added


def name_apart(groups: Sequence[Group], present: Sequence[Group] = ()) -> None:
    """Number the names of groups and parameters that are taken: a saved state is matched by them.

    Args:
        groups: New groups, whose names are changed in place.
        present: Groups that keep theirs.

    Raises:
        ValueError: If a parameter is given twice.
    """
    seen = {parameter for group in present for parameter in group["params"]}
    for group in groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter in seen:
                raise ValueError(f"{name!r} is given twice: a parameter belongs to exactly one group.")
            seen.add(parameter)
    taken = {group["name"] for group in present}
    names = {name for group in present for name in group["param_names"]}
    for group in groups:
        group["name"] = free_name(group["name"], taken)
        others = set(names)
        wanted = [f"{name}_{group['name']}" if name in others else name for name in group["param_names"]]
        group["param_names"] = [free_name(name, names) for name in wanted]


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
        if "family" in group and not isinstance(group["lr"], Tensor):  # a tensor is shared as it is
            families.setdefault(group["family"], []).append(group)
    for members in families.values():
        changed = [group["lr"] for group in members if group["lr"] != group["family_lr"]]
        for group in members if changed else ():
            group["lr"] = group["family_lr"] = changed[-1]
