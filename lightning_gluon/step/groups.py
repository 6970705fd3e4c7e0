"""Complete parameter groups: each says its norm, its estimator and every option, in plain values."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_gluon.estimators.recursions import ESTIMATORS
from lightning_gluon.methods import Method, Rule
from lightning_gluon.norms.table import NORMS, REFINEMENTS, refined
from lightning_gluon.options import Group
from lightning_gluon.roles import ROLES
from lightning_gluon.step.checks import COMMON, USUAL_DECAY, check_group, check_names, check_options, find_method
from lightning_gluon.valid import plain

PER_ROLE = float | Mapping[str, float] | None
TENSORS = ("params", "param_names", "views", "partners")  # what is listed per parameter, as it was given


def build_groups(
    partial: list[Group],
    *,
    method: str,
    lr: float | None,
    weight_decay: PER_ROLE,
    radius: Mapping[str, float] | None,
    momentum: float | None,
    options: Mapping[str, object],
    total_steps: int | None = None,
) -> list[Group]:
    """Return groups completed from their method.

    Args:
        partial: Groups as `lightning_gluon.step.sources` reads them.
        method: Name of a row of `METHODS`.
        lr: Hidden radius.
        weight_decay: One value, or one per role; `None`: the method's.
        radius: Radii per role that replace the method's.
        momentum: Weight on the old momentum; `None`: the method's.
        options: Further options of the method, one value each, or one per role.
        total_steps: Steps of the whole training, for estimators that need to know.

    Returns:
        Groups of plain values, ready for `torch.optim.Optimizer.add_param_group`.

    Raises:
        ValueError: If a name, a value or a parameter is not what the method can take.
    """
    row = find_method(method)
    check_options(method, options)
    _check_radii(radius, partial)
    for key, value in {"weight_decay": weight_decay, **options}.items():
        _check_roles(key, value)
    named = {group["norm"] for group in partial if "norm" in group}
    shared = {**options, "lr": lr, "momentum": row.momentum if momentum is None else momentum}
    for group in partial:
        role = group["role"]
        check_names(group)
        rule = row.rules[role]
        usual = row.weight_decay if rule.weight_decay is None else rule.weight_decay
        given = {**shared, "weight_decay": _for_role(weight_decay, role, usual)}
        given["radius"] = _for_role(radius, role, rule.radius)
        for key, value in given.items():
            absent = isinstance(value, Mapping) and role not in value
            if absent or _is_elsewhere(key, group, named):
                continue
            if key not in _FOR_SOME or _FOR_SOME[key](group, row):
                group.setdefault(key, _for_role(value, role, value))
        if ESTIMATORS[group.get("estimator", rule.estimator)].length:
            group.setdefault("total_steps", total_steps)
    return [complete_group(group, row) for group in partial]


def _takes_decay(group: Group, row: Method) -> bool:
    """Return whether a decay that is given for a whole method is for this group, not only for its neighbours."""
    alone = all(ESTIMATORS[name].step_ is not None for name in row.estimators)
    own = ESTIMATORS[group.get("estimator", row.rules[group["role"]].estimator)]
    return alone or own.step_ is None


def _takes_retraction(group: Group, row: Method) -> bool:
    """Return whether a retraction that is given for a whole method is for this group: it is for matrices."""
    every = not any(NORMS[name].matrices for name in row.norms)
    own = NORMS[group.get("norm", row.rules[group["role"]].norm)]
    return every or own.matrices


def _is_elsewhere(key: str, group: Group, named: set[str]) -> bool:
    """Return whether an option refines groups whose norm was named, and this is none of them."""
    refinement = REFINEMENTS.get(key)
    return refinement in named and group.get("norm") != refinement


# Options of a method that not all of its groups take.
_FOR_SOME = {"decay": _takes_decay, "retract": _takes_retraction}


def _for_role(given: object, role: str, default: Any) -> Any:
    """Return the value for a role."""
    value = given.get(role) if isinstance(given, Mapping) else given
    return default if value is None else value


def _check_radii(radius: Mapping[str, float] | None, groups: Iterable[Group]) -> None:
    if radius is not None and not isinstance(radius, Mapping):
        raise ValueError(f"Expected `radius` to map roles to radii, such as {{'bias': 0.1}}, but got {radius!r}.")
    _check_roles("radius", radius)
    lacking = set(radius or ()) - {group["role"] for group in groups}
    if lacking:
        warnings.warn(
            f"`radius` is given for {', '.join(sorted(lacking))}, but no trainable parameter has that role.",
            stacklevel=5,
        )


def _check_roles(key: str, by_role: object) -> None:
    if not isinstance(by_role, Mapping):
        return
    for role in by_role:
        if role not in ROLES:
            raise ValueError(f"Expected the keys of `{key}` to be among {', '.join(ROLES)}, but got {role!r}.")


def complete_group(group: Group, row: Method) -> Group:
    """Complete a group from its method's rule, and check every value.

    Args:
        group: A group with at least `params`, `role`, `lr`, `weight_decay`, `momentum` and `radius`.
        row: The method it belongs to.

    Returns:
        The same group, complete, with plain values only.

    Raises:
        ValueError: If a value is out of range, unknown, or does not fit the parameters.
    """
    check_names(group)
    rule = row.rules[group["role"]]
    group.setdefault("norm", rule.norm)
    group.setdefault("estimator", rule.estimator)
    check_names(group)
    group["norm"] = refined(group)
    defaults = _default_options(group, row, rule)
    for key in foreign_options() - set(defaults):
        group.pop(key, None)
    if group.get("scaling") is None:
        group.pop("scaling", None)
    for key, value in defaults.items():
        group.setdefault(key, value)
    for key in set(group) - set(TENSORS):
        group[key] = plain(group[key])
    check_group(group)
    return group


def _default_options(group: Group, row: Method, rule: Rule) -> Group:
    """Return the options that a group has, with their defaults."""
    defaults = {
        **COMMON,
        **NORMS[group["norm"]].defaults(),
        **ESTIMATORS[group["estimator"]].options,
        "start": row.start,
        "decay": USUAL_DECAY,
    }
    of_rule = dict(rule.options)
    if rule.scaling is not None:
        of_rule["scaling"] = rule.scaling
    for key, value in of_rule.items():
        if key in defaults:
            defaults[key] = value
    return {**defaults, "steps": 0, "gradient_evaluations": 0}


def foreign_options() -> set[str]:
    """Return the options of all norms and estimators; a group has those of its own."""
    names: set[str] = set()
    for estimator in ESTIMATORS.values():
        names.update(estimator.options)
    for norm in NORMS.values():
        names.update(norm.options)
    return names
